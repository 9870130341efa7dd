"""The Gateway Ingress Node: owns the VIPs; IKE goes to the GMN, ESP to the GPN that holds its SPI.

    peer ─▶ VIP:natt ─┬─ ESP ─▶ steering ─▶ GPN address:esp      all from address:fabric
            VIP:ike  ─┴─ IKE ─▶ relay ───▶ GMN address:fabric
            VIP, IP protocol 50 ─▶ steering        with CAP_NET_RAW
    address:fabric ◀─ envelopes of the GMN ─▶ VIP ─▶ peer;  echoes of the GPNs ─▶ tags
    address:fabric ◀─ ESP of the GPNs ─▶ VIP:natt, or raw ─▶ peer    (return = "gin")

With a backend that steers in the kernel, only what that does not know comes to VIP:natt.
It holds no keys of tunnels. Desired state: Neighbour (GPNs), Peer and Steer. What peers send before the first
Sync waits in the sockets; what arrived before a Steer goes is steered by it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial

import trio

from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel.agent import Agent
from protego_cli.control.channel.desired_records import AnyRecord, Neighbour, Peer, Steer
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.node_messages import Report, Welcome
from protego_cli.counters import Counters
from protego_cli.errors import EnvironmentFault, Refused
from protego_cli.net.attend import Socket, attend
from protego_cli.net.bundles import Bundler
from protego_cli.net.pump import CatchUp, Turn, drain, drain_trains
from protego_cli.net.raw import RawSocket
from protego_cli.net.relay import IkeRelay
from protego_cli.net.returns import Returns
from protego_cli.net.steering import Door, Gpn, Ingress, SteeringBackend, choose
from protego_cli.net.tagging import TagLink
from protego_cli.net.udp import Address, Batch, UdpSocket
from protego_cli.net.vip import VipPort
from protego_cli.plugins.manager import Plugins
from protego_cli.roles.cpu import CpuMeter
from protego_cli.roles.offering import offered

log = logging.getLogger(__name__)

TEND_INTERVAL = 1.0


class GinPlane:
    """A GIN without its control channel: the sockets, and what the desired state acts on."""

    def __init__(self, cluster: Cluster, node: Node, backend: SteeringBackend, stack: ExitStack) -> None:
        """Bind everything; `stack` closes it. Raises EnvironmentFault."""

        def bind(address: str, port: int, merge: bool = True) -> UdpSocket:
            return stack.enter_context(closing(UdpSocket.bind(address, port, merge=merge)))

        self.counters = Counters()
        ports, gmn = node.ports, cluster.nodes_of("gmn")[0]
        self.fabric = bind(node.address, ports.fabric)
        door = Door(f"{cluster.name}.{node.name}", cluster.vips, ports.natt)
        self._bundler = Bundler(self.fabric, self.counters, "gin_esp_forwarded", "gin_drop_send")
        self._steering: Ingress = backend.ingress(self._bundler, self.counters, door)
        stack.callback(self._steering.close)
        merge = not self._steering.in_kernel
        self.natt = [bind(vip, ports.natt, merge) for vip in cluster.vips]
        self._ike = [bind(vip, ports.ike) for vip in cluster.vips] if ports.ike else []
        self.raw, self.lacks = _open_raw(cluster, stack)
        self._relay = IkeRelay(self.fabric, (gmn.address, gmn.ports.fabric), self.counters)
        self._relay.attach(self.natt, self._ike)
        self._returns = Returns(self.natt, self.raw, self.counters)
        returned = self._port(self.natt[0].address).receive_returned
        self._tags = TagLink(self.fabric, self.counters, "gin_drop_tag", returned, bundler=self._bundler)
        self._turns: list[tuple[Socket, Turn]] = [
            *((sock, partial(drain_trains, sock, self._receive(sock.address))) for sock in self.natt),
            *((raw, partial(drain, raw, self._port(raw.address).receive_raw)) for raw in self.raw),
            (self.fabric, partial(drain, self.fabric, self._from_fabric)),
        ]
        self._catch_up = CatchUp(*(turn for _, turn in self._turns))
        self._cpu = CpuMeter()

    async def serve(self, noticed: Callable[[], None]) -> None:
        """The data path, for ever; `noticed` is called when a GPN has fallen silent or come back."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tags.probe, noticed)
            nursery.start_soon(self._tend)
            for sock, turn in self._turns:
                nursery.start_soon(attend, sock, turn)
            for ike in self._ike:
                nursery.start_soon(attend, ike, partial(drain, ike, self._port(ike.address).receive_ike))

    async def _tend(self) -> None:
        """Let the steering set up, and mend, what it has outside of this process."""
        while True:
            await self._steering.tend()
            await trio.sleep(TEND_INTERVAL)

    def _port(self, local: Address) -> VipPort:
        return VipPort(partial(self._relay.from_peer, local), self._steering, self.counters)

    def _receive(self, natt: Address) -> Callable[[Sequence[Batch]], None]:
        port = self._port(natt)
        return self._bundler.over(port.receive_natt, port.receive_natt_row)

    def _from_fabric(self, batch: Batch) -> None:
        for rest in self._tags.take(batch):
            if not self._returns.receive(rest):
                self._relay.from_fabric(rest)

    # ---- control.agent.DataPlane

    def welcome(self, welcome: Welcome) -> None:
        self._relay.key = welcome.envelope_key

    def put(self, record: AnyRecord) -> None:
        match record:
            case Neighbour(role="gpn"):
                gpn = Gpn(record.name, (record.address, record.esp_port), record.tag_key)
                self._steering.put_gpn(gpn)
                self._tags.put_gpn(gpn)
                self._returns.put_gpn(gpn)
            case Peer():
                self._relay.callers.expect(record.address)
            case Steer():
                peer = record.peer, record.peer_port
                self._steering.steer(record.spi, record.gpn, peer)
                self._steering.limit(record.spi, record.ceiling)
                self._returns.steer(record.spi, peer)
                self._relay.callers.steer(record.spi, record.peer)

    def drop(self, key: Key) -> None:
        match key:
            case "neighbour", str(name):
                self._steering.drop_gpn(name)
                self._tags.drop_gpn(name)
                self._returns.drop_gpn(name)
            case "peer", str(address):
                self._relay.callers.forget(address)
            case "steer", int(spi):
                self._catch_up()
                self._steering.unsteer(spi)
                self._returns.unsteer(spi)
                self._relay.callers.unsteer(spi)

    def settle(self) -> Awaitable[None] | None:
        return self._steering.settle()

    async def barrier(self, gpn: str) -> None:
        raise Refused(f"a GIN sends no barriers, so none to {gpn}")

    def marks(self, spis: Sequence[int]) -> dict[int, int]:
        return self._steering.marks(spis)

    def report(self) -> Report:
        self._steering.refresh()
        sockets: tuple[UdpSocket | RawSocket, ...] = self.fabric, *self.natt, *self._ike, *self.raw
        self.counters["gin_drop_overflow"] = sum(sock.overflow() for sock in sockets)
        return Report(
            self._cpu(),
            counters=self.counters.nonzero(),
            silent=self._tags.silent(),
            offered=offered(self._steering),
        )


def _open_raw(cluster: Cluster, stack: ExitStack) -> tuple[list[RawSocket], str]:
    """A raw socket for each VIP; none, and why, where this machine lets us have none."""
    with ExitStack() as opened:
        try:
            sockets = [opened.enter_context(closing(RawSocket.bind(vip))) for vip in cluster.vips]
        except EnvironmentFault as fault:
            return [], str(fault)
        stack.push(opened.pop_all())
    return sockets, ""


async def run(
    cluster: Cluster,
    node: Node,
    plugins: Plugins,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve as this GIN until cancelled; started once its sockets are bound."""
    backend = choose(plugins.steering_backends(), node.ingress or cluster.ingress, "gin")
    with ExitStack() as stack:
        plane = GinPlane(cluster, node, backend, stack)
        if plane.lacks and cluster.wants_raw_esp:
            log.warning(
                'tunnels with encapsulation = "auto" will use UDP as well node=%s reason=%s',
                *(node.name, plane.lacks),
            )
        agent = Agent(cluster, node, plane, raw_esp=bool(plane.raw))
        await agent.run_with(partial(plane.serve, agent.report_now), task_status=task_status)
