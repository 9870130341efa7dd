"""The Gateway Egress Node: takes tenants' packets to the GPN that seals for their destination.

    VTEP ─▶ address:vxlan ─▶ steering ─▶ GPN address:vxlan
                               └─▶ ARP, neighbour solicitations and pings for the gateway: answered
    TUN device ─▶ steering ─▶ GPN, and GPN ─▶ address:vxlan ─▶ TUN device, where this node is a tenant's VTEP
    barriers and probes leave by the same socket, and their echoes come back to it

It holds no keys of tunnels. Desired state: Neighbour (GPNs), Tenant, Tun, Limit and Route. What tenants send
before the first Sync waits in the socket. Devices are made before that, from the cluster file, so that a
machine on which they cannot be made says so at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial

import trio

from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel.agent import Agent
from protego_cli.control.channel.attachments import tun_records
from protego_cli.control.channel.desired import put
from protego_cli.control.channel.desired_records import AnyRecord, Limit, Neighbour, Route, Tenant, Tun
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.node_messages import Report, Welcome
from protego_cli.counters import Counters
from protego_cli.net import answers
from protego_cli.net.answers import Answers
from protego_cli.net.attachment import Attachments, Spec
from protego_cli.net.attend import attend
from protego_cli.net.bundles import Bundler
from protego_cli.net.pump import drain_trains
from protego_cli.net.steering import HERE, Egress, Gpn, SteeringBackend, choose
from protego_cli.net.tagging import TagLink
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.plugins.manager import Plugins
from protego_cli.roles.cpu import CpuMeter
from protego_cli.roles.offering import offered


class GenPlane:
    """A GEN without its control channel: the socket, and what the desired state acts on."""

    def __init__(self, node: Node, backend: SteeringBackend, stack: ExitStack) -> None:
        """Bind the socket; `stack` closes it. Raises EnvironmentFault."""
        self.counters = Counters()
        self.vxlan = stack.enter_context(closing(UdpSocket.bind(node.address, node.ports.vxlan)))
        self._answers = Answers(self.vxlan, self.counters)
        self._attachments = Attachments(self.counters, stack)
        self._attached: set[int] = set()  # VNIs whose VTEP is here
        self._bundler = Bundler(self.vxlan, self.counters, "gen_forwarded", "gen_drop_send")
        self._steering: Egress = backend.egress(self._bundler, self.counters, self._keep)
        self._tags = TagLink(self.vxlan, self.counters, "gen_drop_tag", bundler=self._bundler)
        self._cpu = CpuMeter()

    async def serve(self, noticed: Callable[[], None]) -> None:
        """The data path, for ever; `noticed` is called when a GPN has fallen silent or come back."""
        async with trio.open_nursery() as nursery:
            handle = self._bundler.over(self._receive, self._receive_row)
            nursery.start_soon(attend, self.vxlan, partial(drain_trains, self.vxlan, handle))
            nursery.start_soon(self._tags.probe, noticed)
            nursery.start_soon(self._attachments.serve, self._steering.forward)

    def _receive(self, batch: Batch) -> None:
        if self._tags.concerns(batch):
            for rest in self._tags.take(batch):
                self._steering.forward(rest)
        else:
            self._steering.forward(batch)

    def _receive_row(self, row: Sequence[Batch]) -> bool:
        return not self._tags.concerns(row[0]) and self._steering.forward_row(row)

    def _keep(self, vni: int, vtep: str | None, view: memoryview, size: int, tos: int) -> None:
        """What the steering leaves here (`steering.Own`)."""
        if vni in self._attached:
            self._attachments.deliver(vni, view, size, tos)
        else:
            self._answers.receive(vni, vtep, view, size)

    # ---- control.agent.DataPlane

    def welcome(self, welcome: Welcome) -> None:
        """Nothing in it concerns a GEN."""

    def put(self, record: AnyRecord) -> None:
        match record:
            case Neighbour(role="gpn"):
                gpn = Gpn(record.name, (record.address, record.vxlan_port), record.tag_key)
                self._steering.put_gpn(gpn)
                self._tags.put_gpn(gpn)
            case Tenant():
                self._put_tenant(record)
            case Tun():
                self._attachments.put(_spec(record))
            case Limit():
                self._steering.limit(record.of, record.outward)
            case Route():
                self._steering.put_route(record.tunnel, record.vni, record.prefixes, record.gpn)
                self._attachments.put_route(record.tunnel, record.vni, record.prefixes)

    def drop(self, key: Key) -> None:
        match key:
            case "neighbour", str(name):
                self._steering.drop_gpn(name)
                self._tags.drop_gpn(name)
            case "tenant", int(vni):
                self._steering.drop_tenant(vni)
                self._answers.drop_tenant(vni)
                self._attached.discard(vni)
            case "tun", int(vni):
                self._attachments.drop(vni)
            case "limit", of:
                self._steering.limit(of, None)
            case "route", str(tunnel):
                self._attachments.drop_route(tunnel)
                self._steering.drop_route(tunnel)

    def _put_tenant(self, record: Tenant) -> None:
        vteps = [answers.Vtep(vtep.prefix, vtep.address, vtep.port, vtep.mac) for vtep in record.vteps]
        tenant = answers.Tenant(record.vni, record.gateway_mac, record.gateway, vteps)
        self._answers.put_tenant(tenant)
        here = any((vtep.address, vtep.port) == self.vxlan.address for vtep in vteps)
        (self._attached.add if here else self._attached.discard)(record.vni)
        addresses = [HERE] if here else [vtep.address for vtep in vteps]
        self._steering.put_tenant(record.vni, addresses, tenant.heard())

    def settle(self) -> None:
        """All acts at once."""

    def barrier(self, gpn: str) -> Awaitable[None]:
        return self._tags.barrier(gpn)

    def marks(self, spis: Sequence[int]) -> dict[int, int]:
        """A GEN forwards no ESP."""
        return {}

    def report(self) -> Report:
        self.counters["gen_drop_overflow"] = self.vxlan.overflow()
        return Report(
            self._cpu(),
            counters=self.counters.nonzero(),
            silent=self._tags.silent(),
            offered=offered(self._steering),
        )


def _spec(tun: Tun) -> Spec:
    return Spec(
        tenant=tun.tenant,
        vni=tun.vni,
        mac=tun.mac,
        gateway_mac=tun.gateway_mac,
        device=tun.device,
        netns=tun.netns,
        addresses=tun.addresses,
        mtu=tun.mtu,
    )


async def run(
    cluster: Cluster,
    node: Node,
    plugins: Plugins,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve as this GEN until cancelled; started once its socket is bound."""
    backend = choose(plugins.steering_backends(), cluster.ingress, "gen")
    with ExitStack() as stack:
        plane = GenPlane(node, backend, stack)
        for tun in tun_records(cluster, node):
            put(plane, tun)
        agent = Agent(cluster, node, plane)
        await agent.run_with(partial(plane.serve, agent.report_now), task_status=task_status)
