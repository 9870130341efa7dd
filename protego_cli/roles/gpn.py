"""The Gateway Processing Node: seals and opens ESP. One process, one core; it shares nothing.

    GIN ─▶ address:esp ───▶ gateway ─▶ address:vxlan ─▶ VTEP
    GEN ─▶ address:vxlan ─▶ gateway ─▶ address:esp, or raw, source VIP ─▶ peer
                                   or address:esp ─▶ GIN ─▶ peer    (return = "gin"; raw, without CAP_NET_RAW)
    probes and barriers are echoed by the socket they came to, behind what came before them

Desired state: Neighbour, Tenant, Park, Limit, Sa and Rule. What arrives before the first Sync waits in the
sockets, so a restarted GPN drops nothing for want of keys; what arrived before an Sa or a Rule goes is opened
and sealed by it. The engine itself is `esp/gateway.py`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial

import trio

from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel import desired_records, node_messages
from protego_cli.control.channel.agent import Agent
from protego_cli.control.channel.desired_records import AnyRecord, Limit, Park, Rule, Sa, Tenant
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.node_messages import Notice, Report, SaUsage, SuiteCost, Welcome
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite, Registry
from protego_cli.errors import EnvironmentFault, Refused
from protego_cli.esp import events
from protego_cli.esp.gateway import Gateway, Neighbour
from protego_cli.esp.outbox import Port, Send
from protego_cli.esp.pairs import SaEntry
from protego_cli.esp.tenants import Vtep
from protego_cli.net.attend import attend
from protego_cli.net.bundles import unbundled
from protego_cli.net.pump import CatchUp, drain_trains
from protego_cli.net.raw import RawSocket
from protego_cli.net.steering import Sender
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.plugins.manager import Plugins
from protego_cli.roles.calibration import calibrate
from protego_cli.roles.cpu import CpuMeter

log = logging.getLogger(__name__)

TEND_INTERVAL = 0.5  # seconds
TOGETHER = 128  # batches: what comes of more would leave the cache before it is sent


class GpnPlane:
    """A GPN without its control channel: the sockets, the gateway, and what the desired state acts on."""

    def __init__(
        self, node: Node, registry: Registry, stack: ExitStack, *, through_gins: bool = False
    ) -> None:
        """Bind the sockets; `stack` closes them. `through_gins`: GINs send what goes to peers. Raises
        EnvironmentFault.
        """
        self.counters = Counters()

        def bind(port: int) -> UdpSocket:
            return stack.enter_context(closing(UdpSocket.bind(node.address, port, together=True)))

        self.esp, self.vxlan = bind(node.ports.esp), bind(node.ports.vxlan)
        self._sockets: dict[Port, Sender] = {Port.ESP: self.esp, Port.VXLAN: self.vxlan}
        self.lacks = ""  # what keeps raw ESP from leaving from here
        if not through_gins:
            try:
                self._sockets[Port.RAW] = stack.enter_context(closing(RawSocket.for_sending(node.address)))
            except EnvironmentFault as fault:
                self.lacks = str(fault)
        self._registry = registry
        self._gateway = Gateway(
            self.counters, os.urandom, through_gins=through_gins, raw_through_gins=bool(self.lacks)
        )
        self._turns = (
            (self.esp, partial(drain_trains, self.esp, self.receive_esp)),
            (self.vxlan, partial(drain_trains, self.vxlan, self.receive_vxlan)),
        )
        self._catch_up = CatchUp(*(turn for _, turn in self._turns))
        self._cpu = CpuMeter()
        self._notify: Callable[[Notice], None] | None = None
        self._unmeasured: dict[str, EspSuite] = {}
        self._costs: dict[str, SuiteCost] = {}

    async def serve(self, notify: Callable[[Notice], None]) -> None:
        """The data path, for ever; `notify` tells the GMN."""
        self._notify = notify
        async with trio.open_nursery() as nursery:
            for sock, turn in self._turns:
                nursery.start_soon(attend, sock, turn)
            nursery.start_soon(self._tend)

    async def _tend(self) -> None:
        """Give up what waits too long, and neighbours that are silent, with or without a GMN."""
        while True:
            await trio.sleep(TEND_INTERVAL)
            self._gateway.expire(time.time())
            if self._unmeasured:  # one at a time: packets wait meanwhile
                name, suite = self._unmeasured.popitem()
                self._costs[name] = calibrate(name, suite)

    def receive_esp(self, train: Sequence[Batch]) -> None:
        """Batches on the ESP port."""
        train = unbundled(train, self._gateway.fabric, self.counters, "gpn_drop_tag")
        while len(train) > TOGETHER:
            self._act(self._gateway.receive_esp_train(train[:TOGETHER], time.time()))
            train = train[TOGETHER:]
        self._act(self._gateway.receive_esp_train(train, time.time()))

    def receive_vxlan(self, train: Sequence[Batch]) -> None:
        """Batches on the VXLAN port."""
        train = unbundled(train, self._gateway.fabric, self.counters, "gpn_drop_tag")
        while len(train) > TOGETHER:
            self._act(self._gateway.receive_vxlan_train(train[:TOGETHER], time.time()))
            train = train[TOGETHER:]
        self._act(self._gateway.receive_vxlan_train(train, time.time()))

    def _act(self, sends: list[Send]) -> None:
        """Send what the gateway made, and pass on what it noticed."""
        for way, data, size, packets in sends:
            if self._sockets[way.port].send(data, size, way.dest, source=way.source, tos=way.tos):
                if way.counter:
                    self.counters[way.counter] += packets
            else:
                self.counters["gpn_drop_send"] += packets
        if self._gateway.eventful and self._notify is not None:
            for event in self._gateway.take_events():
                self._notify(_notice(event))

    # ---- control.agent.DataPlane

    def welcome(self, welcome: Welcome) -> None:
        """Nothing in it concerns a GPN."""

    def put(self, record: AnyRecord) -> None:
        gateway = self._gateway
        match record:
            case desired_records.Neighbour():
                gen = (record.address, record.vxlan_port) if record.role == "gen" else None
                gateway.put_neighbour(record.name, Neighbour(record.address, gen, record.tag_key))
            case Tenant():
                vteps = [Vtep(v.prefix, v.address, v.port, v.mac) for v in record.vteps]
                gateway.put_tenant(record.vni, record.gateway_mac, vteps, record.gateway)
            case Park():
                gateway.park(record.spi)
            case Limit():
                gateway.put_limit(record.of, record.inward, record.outward, time.time())
            case Sa():
                self._act(gateway.put_sa(self._entry(record)))
            case Rule():
                gateway.put_rule(record.tunnel, record.spi_in, direct=record.direct)

    def drop(self, key: Key) -> None:
        match key:
            case "neighbour", str(name):
                self._gateway.drop_neighbour(name)
            case "tenant", int(vni):
                self._gateway.drop_tenant(vni)
            case "park", int(spi):
                self._gateway.unpark(spi)
            case "limit", of:
                self._gateway.drop_limit(of)
            case "sa", int(spi):
                self._catch_up()
                self._gateway.drop_sa(spi)
            case "rule", str(tunnel):
                self._catch_up()
                self._gateway.drop_rule(tunnel)

    def settle(self) -> None:
        """All acts at once."""

    async def barrier(self, gpn: str) -> None:
        raise Refused(f"a GPN sends no barriers, so none to {gpn}")

    def marks(self, spis: Sequence[int]) -> dict[int, int]:
        """Only a GIN keeps marks."""
        return {}

    def report(self) -> Report:
        self.counters["gpn_drop_overflow"] = self.esp.overflow() + self.vxlan.overflow()
        usage = tuple(SaUsage(*used) for used in self._gateway.usage())
        costs = tuple(self._costs.values())
        return Report(self._cpu(), usage=usage, counters=self.counters.nonzero(), costs=costs)

    def _entry(self, sa: Sa) -> SaEntry:
        try:
            suite = self._registry.esp_suite(sa.encryption, sa.integrity, esn=sa.esn)
        except KeyError as missing:
            raise Refused(f"sa {sa.spi_in:08x} of {sa.tunnel}: no plugin here provides {missing}") from None
        name = "-".join(filter(None, (sa.encryption, sa.integrity)))
        if name not in self._costs:
            self._unmeasured[name] = suite
        return SaEntry(
            spi_in=sa.spi_in,
            spi_out=sa.spi_out,
            tunnel=sa.tunnel,
            vni=sa.vni,
            suite=suite,
            key_in=sa.key_in,
            key_out=sa.key_out,
            local_ts=sa.local_ts,
            remote_ts=sa.remote_ts,
            vip=sa.vip,
            peer=(sa.peer, sa.peer_port),
            seal_lo=sa.seal_lo,
            seal_hi=sa.seal_hi,
            floor=sa.floor,
            opens=sa.opens,
            window=sa.window,
            expires=sa.expires,
            dscp=sa.dscp,
            mtu=sa.mtu,
            fragment=sa.fragment,
            mss=sa.mss,
        )


def _notice(event: events.Event) -> Notice:
    match event:
        case events.FirstPacket():
            return node_messages.FirstPacket(event.spi_in)
        case events.PeerMoved():
            return node_messages.PeerAddress(event.spi_in, event.address, event.port)
        case events.RangeLow():
            return node_messages.RangeLow(event.spi_in)


async def run(
    cluster: Cluster,
    node: Node,
    plugins: Plugins,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve as this GPN until cancelled; started once its sockets are bound."""
    with ExitStack() as stack:
        plane = GpnPlane(node, plugins.registry(), stack, through_gins=cluster.returns == "gin")
        if plane.lacks and cluster.wants_raw_esp:
            log.warning("ESP without UDP leaves through the GINs node=%s reason=%s", node.name, plane.lacks)
        agent = Agent(cluster, node, plane)
        await agent.run_with(partial(plane.serve, agent.notify), task_status=task_status)
