"""A cluster on loopback to test the control channel: real mTLS, ephemeral ports, a data plane that notes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import trio

from protego_cli.config.model import Cluster, Node, Ports, TenantConfig, VtepConfig, VxlanAttach
from protego_cli.control.channel import pki
from protego_cli.control.channel.agent import Agent, DataPlane
from protego_cli.control.channel.desired_records import AnyRecord
from protego_cli.control.channel.fabric import Fabric
from protego_cli.control.channel.frames import GMN_LIMIT
from protego_cli.control.channel.message import Key, Reply
from protego_cli.control.channel.messages import AnyRequest
from protego_cli.control.channel.node_messages import Noted, Report, Welcome
from protego_cli.control.channel.pki import Identity
from protego_cli.control.channel.rpc import Handler, Link, connect
from protego_cli.control.channel.session import Reported
from protego_cli.control.state.journal import Journal
from protego_cli.errors import Refused
from tests.support.node import Node as BareNode
from tests.support.node import hello
from tests.support.stores import MemoryStore

NAMES = ("gin-1", "gen-1", "gpn-1", "gpn-2")


def make_cluster(directory: Path, *, name: str = "demo", port: int = 0) -> Cluster:
    nodes = [Node("gmn-1", "gmn", "127.0.0.1", Ports(control=port))]
    nodes += [Node(node, node[:3], f"127.1.0.{i}") for i, node in enumerate(NAMES, 1)]  # type: ignore[arg-type]
    tenant = TenantConfig(
        name="acme",
        vni=1001,
        gateway_mac=b"\x02\x50\0\0\x10\x01",
        attach=VxlanAttach((VtepConfig("10.1.0.0/24", "127.2.0.1", b"\x02\0\0\0\0\5"),)),
        tunnels=(),
    )
    return Cluster(
        name=name,
        file=directory / "cluster.toml",
        vips=("127.3.0.1",),
        pki=directory / "pki",
        state=directory / "state",
        nodes=tuple(nodes),
        tenants=(tenant,),
    )


def make_certified(directory: Path) -> Cluster:
    """`make_cluster`, with the certificates of all."""
    cluster = make_cluster(directory)
    pki.init(cluster)
    return cluster


def at_port(cluster: Cluster, port: int) -> Cluster:
    """The same cluster with the GMN's control port known."""
    gmn, *others = cluster.nodes
    gmn = msgspec.structs.replace(gmn, ports=Ports(control=port))
    return msgspec.structs.replace(cluster, nodes=(gmn, *others))


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` holds."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of the test
            await trio.sleep(0.002)


class FakePlane:
    """A role's data plane that writes down what it is told."""

    def __init__(self) -> None:
        self.records: dict[Key, AnyRecord] = {}
        self.log: list[tuple[str, object]] = []
        self.welcomes: list[Welcome] = []
        self.seen: dict[int, int] = {}
        self.bad: set[Key] = set()
        self.echo: trio.Event | None = None  # barriers wait for it
        self.silent: tuple[str, ...] = ()
        self.slow: trio.Event | None = None  # changes act only then

    def welcome(self, welcome: Welcome) -> None:
        self.welcomes.append(welcome)

    def put(self, record: AnyRecord) -> None:
        if record.key in self.bad:
            raise Refused(f"{record.key} is bad")
        self.records[record.key] = record
        self.log.append(("put", record.key))

    def drop(self, key: Key) -> None:
        del self.records[key]
        self.log.append(("drop", key))

    def settle(self) -> Awaitable[None] | None:
        return None if self.slow is None else self.slow.wait()

    def barrier(self, gpn: str) -> Awaitable[None]:
        self.log.append(("barrier", gpn))
        return self._echoed()

    async def _echoed(self) -> None:
        if self.echo is not None:
            await self.echo.wait()

    def marks(self, spis: tuple[int, ...]) -> dict[int, int]:
        return {spi: self.seen.get(spi, 0) for spi in spis}

    def report(self) -> Report:
        return Report(cpu=0.5, silent=self.silent)


class FakeObserver:
    """Writes down what the fabric tells; `on_connecting` may act."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.requests: list[tuple[str, Reported]] = []
        self.on_connecting: Callable[[str], None] = lambda node: None
        self.hold_down: trio.Event | None = None

    async def node_connecting(self, node: str, restarted: bool) -> None:
        self.log.append(("restarted" if restarted else "connecting", node))
        self.on_connecting(node)

    async def node_up(self, node: str) -> None:
        self.log.append(("up", node))

    async def node_down(self, node: str, reason: str = "") -> None:
        if self.hold_down is not None:
            await self.hold_down.wait()
        self.log.append(("down", node))

    async def reported(self, node: str, request: Reported) -> None:
        self.requests.append((node, request))

    def notices(self) -> list[tuple[str, Reported]]:
        return [entry for entry in self.requests if not isinstance(entry[1], Report)]


async def run_agent(
    cluster: Cluster, node: Node, plane: DataPlane, *, task_status: trio.TaskStatus[Agent]
) -> None:
    """`agent = await nursery.start(run_agent, cluster, node, plane)`; started before it connects."""
    agent = Agent(cluster, node, plane)
    task_status.started(agent)
    await agent.run()


class Gmn:
    """A running fabric, and the cluster as its nodes should read it."""

    def __init__(self, fabric: Fabric, cluster: Cluster, observer: FakeObserver) -> None:
        self.fabric = fabric
        self.cluster = cluster
        self.observer = observer
        self.nursery: trio.Nursery

    async def start(self, name: str, plane: FakePlane) -> tuple[Agent, trio.CancelScope]:
        """An agent, and the scope that ends it; returns at once."""
        scope = trio.CancelScope()
        agent: Agent = await self.nursery.start(self._run_agent, name, plane, scope)
        return agent, scope

    async def _run_agent(
        self, name: str, plane: FakePlane, scope: trio.CancelScope, *, task_status: trio.TaskStatus[Agent]
    ) -> None:
        node = self.cluster.node(name)
        assert node is not None
        with scope:
            await run_agent(self.cluster, node, plane, task_status=task_status)

    async def join(self, name: str, plane: FakePlane | None = None) -> tuple[FakePlane, trio.CancelScope]:
        """An agent that is connected and synced."""
        plane = plane or FakePlane()
        agent, scope = await self.start(name, plane)
        await until(lambda: ("up", name) in self.observer.log and agent.connected)
        return plane, scope

    @contextlib.asynccontextmanager
    async def linked(self, name: str, node: BareNode, boot: str = "one") -> AsyncIterator[Link]:
        """The link of a node without an agent that is connected and synced."""
        async with dialled(self.cluster, name, node) as link:
            await link.call(hello(boot))
            await until(lambda: self.fabric.is_connected(name))
            yield link

    async def apply(
        self,
        name: str,
        put: Iterable[AnyRecord] = (),
        barriers: Sequence[str] = (),
        needs: Iterable[Key] = (),
        *,
        drop: Iterable[Key] = (),
    ) -> None:
        """Change what a node should hold, and wait until it does."""
        put = tuple(put)
        self.fabric.desire(name, put, drop)
        await self.fabric.applied(name, barriers, [*(record.key for record in put), *needs])


@contextlib.asynccontextmanager
async def running_gmn(
    cluster: Cluster, *, epoch: int = 1, deadline: float = 1.0, silence: float = 10.0
) -> AsyncIterator[Gmn]:
    journal = Journal(MemoryStore(delay=0.0), {})
    fabric = Fabric(cluster, epoch, journal, deadline=deadline, silence=silence)
    observer = FakeObserver()
    fabric.observer = observer
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.run)
        _, port = await nursery.start(fabric.serve)
        gmn = Gmn(fabric, at_port(cluster, port), observer)
        gmn.nursery = nursery
        yield gmn
        nursery.cancel_scope.cancel()


def no_requests(request: AnyRequest) -> Reply:
    return Noted()


@contextlib.asynccontextmanager
async def dialled(
    cluster: Cluster, name: str, handler: Handler = no_requests, *, certificates: Cluster | None = None
) -> AsyncIterator[Link]:
    """A bare link to the GMN with a node's (or the operator's) certificate."""
    gmn = cluster.nodes[0]
    expected = Identity(cluster.name, "gmn", gmn.name)
    context = pki.client_context(certificates or cluster, name)
    stream = await connect(gmn.address, gmn.ports.control, context, expected, 5)
    async with trio.open_nursery() as nursery:
        link = Link(stream, expected, handler, nursery, limit=GMN_LIMIT)
        nursery.start_soon(link.run)
        yield link
        link.close("the test is over")
        nursery.cancel_scope.cancel()
