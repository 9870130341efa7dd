"""Data nodes of a world: the planes of the roles, at the desired state that the GMN's fabric delivers.

Each process of a node is a plane of its role and a `Holding`, which reconciles as it does behind the real
control channel. What comes before the first Sync waits in the sockets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

import trio

from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel.attachments import known_to, tenant_record
from protego_cli.control.channel.desired import Holding
from protego_cli.control.channel.desired_records import AnyRecord, Neighbour
from protego_cli.control.channel.fabric import NodeDown
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.node_messages import Applied, Sync, Update, Welcome
from protego_cli.control.state.journal import Journal
from protego_cli.plugins.steering_backends import Mux
from protego_cli.roles.gen import GenPlane
from protego_cli.roles.gin import GinPlane
from protego_cli.roles.gpn import GpnPlane
from tests.support.gmn_fabric import DataNode, DataNodes, Message
from tests.support.gmn_socket import KEY
from tests.support.network import REGISTRY

Plane = GinPlane | GenPlane | GpnPlane


@dataclass(eq=False)
class Process:
    plane: Plane
    holding: Holding
    stack: ExitStack
    life: trio.CancelScope = field(default_factory=trio.CancelScope)
    serves: bool = False
    revision: int = 0


class PlaneNodes(DataNodes):
    """Where a barrier is a barrier, a mark a mark, and a first packet a packet."""

    def __init__(self, cluster: Cluster, tasks: trio.Nursery, seed: int, delay: tuple[float, float]) -> None:
        super().__init__(cluster, tasks, seed, delay)
        self.cluster = cluster
        self.processes: dict[str, Process] = {}
        self.spent: Counter[str] = Counter()  # what processes counted that are no more
        self.epoch = 0
        self.alive: Callable[[], bool] = lambda: self._journal is not None

    # ---- processes

    def boot(self, name: str) -> None:
        """A process of this node begins: it binds its sockets, and knows nothing."""
        self.end(name)
        node = self.cluster.node(name)
        assert node is not None
        stack = ExitStack()
        plane: Plane
        match node.role:
            case "gpn":
                plane = GpnPlane(node, REGISTRY, stack)
            case "gin":
                plane = GinPlane(self.cluster, node, Mux(), stack)
                plane.welcome(Welcome(1, KEY))
            case _:
                plane = GenPlane(node, Mux(), stack)
        self.processes[name] = Process(plane, Holding(plane), stack)

    def end(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process is not None:
            process.life.cancel()
            self.spent.update(process.plane.counters.nonzero())
            if isinstance(process.plane, GpnPlane):
                lots = process.plane._gateway._parking._lots.values()
                self.spent["parked in a process that ended"] += sum(len(lot.packets) for lot in lots)
            process.stack.close()

    def counted(self) -> Counter[str]:
        """By all processes there ever were."""
        total = self.spent.copy()
        for process in self.processes.values():
            total.update(process.plane.counters.nonzero())
        return total

    async def _serve(self, name: str, process: Process) -> None:
        plane = process.plane
        with process.life:
            if isinstance(plane, GpnPlane):
                await plane.serve(lambda notice: self.notify(name, notice))
            else:
                await plane.serve(lambda: None)

    async def report(self) -> None:
        """What each GPN says every second, for ever."""
        while True:
            await trio.sleep(1.0)
            for name, process in self.processes.items():
                if isinstance(process.plane, GpnPlane):
                    self.all[name].report = process.plane.report()

    def given(self, node: Node) -> list[AnyRecord]:
        """What the real fabric desires by itself."""
        tenants = [
            known_to(node, tenant, tenant_record(self.cluster, tenant)) for tenant in self.cluster.tenants
        ]
        edge = node.role in ("gin", "gen")
        pairs = [
            other
            for other in self.cluster.nodes
            if (other.role == "gpn") == edge and other.role != "gmn" and "gpn" in (node.role, other.role)
        ]
        neighbours = [
            Neighbour(
                other.name,
                other.role,  # type: ignore[arg-type]
                other.address,
                other.ports.esp if other.role == "gpn" else 0,
                other.ports.vxlan if other.role in ("gpn", "gen") else 0,
                Random(" ".join(sorted((node.name, other.name)))).randbytes(32),
            )
            for other in pairs
        ]
        return [*neighbours, *(tenants if node.role != "gin" else ())]

    # ---- gmn_fabric's nodes, with a data path

    async def start(self, name: str, *, restarted: bool = True) -> None:
        if restarted:
            self.boot(name)
        await super().start(name, restarted=restarted)

    def kill(self, name: str) -> None:
        super().kill(name)
        self.end(name)

    def cut(self, name: str) -> None:
        """The node loses its link, and forwards on."""
        node = self.all[name]
        node.linked = node.synced = False
        node.link += 1
        self.note("cut", name)

    def attach(self, journal: Journal) -> None:
        super().attach(journal)
        self.epoch += 1

    def reload(self, cluster: Cluster) -> None:
        before, self.cluster = self.cluster, cluster
        super().reload(cluster)
        gone: list[Key] = [
            ("tenant", tenant.vni)
            for tenant in before.tenants
            if tenant.vni not in {other.vni for other in cluster.tenants}
        ]
        for name, process in self.processes.items():
            node = cluster.node(name)
            if node is not None and process.serves and self.all[name].synced:
                drops = gone if node.role != "gin" else []
                self._apply(process, Update(self.epoch, 0, tuple(self.given(node)), tuple(drops)))

    def _arrive(self, node: DataNode, message: Message) -> None:
        process, config = self.processes.get(node.name), self.cluster.node(node.name)
        if process is not None and config is not None:
            if message.whole:
                held = [record for record in message.records.values() if record is not None]
                self._apply(process, Sync(self.epoch, 0, (*self.given(config), *held)))
                if not process.serves:
                    process.serves = True
                    self._tasks.start_soon(self._serve, node.name, process)
            else:
                put = tuple(record for record in message.records.values() if record is not None)
                drop = tuple(key for key, record in message.records.items() if record is None)
                self._apply(process, Update(self.epoch, 0, put, drop))
        super()._arrive(node, message)

    def _apply(self, process: Process, message: Sync | Update) -> None:
        process.revision += 1
        if isinstance(message, Sync):
            reply = process.holding.sync(Sync(message.epoch, process.revision, message.records))
        else:
            update = Update(message.epoch, process.revision, message.put, message.drop)
            reply = process.holding.update(update)  # type: ignore[assignment]
        assert isinstance(reply, Applied), reply

    async def _barrier(self, gen: DataNode, gpn: str) -> None:
        process = self.processes.get(gen.name)
        if process is None:
            raise NodeDown(f"{gen.name}: gone")
        await process.plane.barrier(gpn)
        self.note("barrier", gen.name, gpn)

    async def marks(self, spis: tuple[int, ...] | list[int]) -> dict[int, int]:  # type: ignore[override]
        await trio.sleep(self.random.uniform(*self.delay))
        highest: dict[int, int] = {}
        for name in self.connected("gin"):
            for spi, mark in self.processes[name].plane.marks(spis).items():
                highest[spi] = max(mark, highest.get(spi, 0))
        return highest
