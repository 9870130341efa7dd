"""A fabric of data nodes in memory, for the GMN's tests: slow, out of step, and mortal as the test wishes.

It keeps the promises of `control.fabric.Fabric`: what is desired is kept; updates of one node are applied in
order; an acknowledgement means that the node acts on it. Updates of different nodes overtake one another, by
delays from a seed. Everything that happens is written to one `log`, and `watch` is called after each change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

import trio

from protego_cli.config.model import Cluster, Role
from protego_cli.control.fabric import FabricObserver, NodeDown, NodeState
from protego_cli.control.messages import AnyRecord, Key, Report, Sa
from protego_cli.errors import Refused

BARRIER_DEADLINE = 0.5


@dataclass
class DataNode:
    name: str
    role: Role
    up: bool = False  # its Sync is applied
    linked: bool = False
    boot: int = 0  # grows by one at every restart
    link: int = 0  # grows by one at every connection
    desired: dict[Key, AnyRecord] = field(default_factory=dict)
    pending: dict[Key, AnyRecord | None] = field(default_factory=dict)
    held: dict[Key, AnyRecord] = field(default_factory=dict)  # what its data path acts on
    report: Report | None = None
    on_the_way: int = 0
    turn: trio.Lock = field(default_factory=trio.Lock)


class DataNodes:
    def __init__(self, cluster: Cluster, seed: int = 0, delay: tuple[float, float] = (0.0001, 0.002)) -> None:
        self.random = Random(seed)
        self.delay = delay
        self.log: list[tuple[object, ...]] = []
        self.watch: Callable[[], None] = lambda: None
        self.tap: Callable[[tuple[object, ...]], None] = lambda entry: None
        self.observer: FabricObserver
        self.all = {node.name: DataNode(node.name, node.role) for node in cluster.nodes if node.role != "gmn"}
        self.left: set[str] = set()
        self.mark: dict[int, int] = {}  # what the GINs have passed on
        self.granted: dict[tuple[int, int], tuple[str, int]] = {}  # (SPI, lo) -> process

    def note(self, *entry: object) -> None:
        self.log.append(entry)
        self.tap(entry)

    # ---- what the GMN calls

    def nodes(self) -> list[NodeState]:
        return [
            NodeState(
                name=node.name,
                role=node.role,
                address="",
                connected=node.up,
                boot=str(node.boot) if node.boot else None,
                report=node.report,
                silent=(),
            )
            for node in self.all.values()
        ]

    def connected(self, role: Role) -> list[str]:
        return [node.name for node in self.all.values() if node.up and node.role == role]

    def desire(self, node: str, put: Iterable[AnyRecord] = (), drop: Iterable[Key] = ()) -> None:
        member = self.all.get(node)
        if member is None and node in self.left:
            return
        member = self.all[node]
        for record in put:
            if member.desired.get(record.key) != record:
                member.desired[record.key] = member.pending[record.key] = record
        for key in drop:
            if member.desired.pop(key, None) is not None:
                member.pending[key] = None

    async def apply(
        self,
        node: str,
        put: Iterable[AnyRecord] = (),
        drop: Iterable[Key] = (),
        barriers: Sequence[str] = (),
    ) -> None:
        self.desire(node, put, drop)
        if node in self.left:
            raise NodeDown(f"{node}: has left the cluster")
        member = self.all[node]
        if not member.linked:
            raise NodeDown(f"{node}: not connected")
        if not (member.pending or barriers or member.on_the_way):
            return
        changes, member.pending = member.pending, {}
        link = member.link
        self.note("sent", node, *changes)
        member.on_the_way += 1
        try:
            async with member.turn:
                await self._travel(member, link)
                self._act(member, changes)
                for gpn in barriers:
                    await self._barrier(member, gpn)
            await self._travel(member, link)
            self.note("acknowledged", node, *changes)
        finally:
            member.on_the_way -= 1

    def reload(self, cluster: Cluster) -> None:
        """The nodes of another file. Neighbours and tenants are for `tests/test_fabric.py`."""
        before, names = self.all, {node.name: node.role for node in cluster.nodes if node.role != "gmn"}
        self.left |= before.keys() - names.keys()
        self.left -= names.keys()
        self.all = {name: before.get(name) or DataNode(name, role) for name, role in names.items()}
        self.note("reload", *self.all)

    async def marks(self, spis: Sequence[int]) -> dict[int, int]:
        await trio.sleep(self.random.uniform(*self.delay))
        gins = self.connected("gin")
        return {spi: self.mark.get(spi, 0) for spi in spis} if gins else {}

    # ---- what happens to nodes

    async def start(self, name: str, *, restarted: bool = True) -> None:
        """The node connects; by default a new process of it."""
        node = self.all[name]
        again = node.boot > 0 and restarted
        await self.observer.node_connecting(name, again)
        if restarted:
            node.boot += 1
            node.held = {}
        node.pending.clear()
        node.link += 1
        node.linked = True
        wanted = dict(node.desired)
        async with node.turn:
            await trio.sleep(self.random.uniform(*self.delay))
            self._act(node, {key: wanted.get(key) for key in wanted | node.held})
            node.up = True
        self.note("up", name)
        await self.observer.node_up(name)

    async def stop(self, name: str) -> None:
        self.kill(name)
        await self.observer.node_down(name)

    def kill(self, name: str) -> None:
        """The node is gone; the observer does not know yet."""
        node = self.all[name]
        node.up = node.linked = False
        node.link += 1
        node.held = {}
        self.note("down", name)

    # ---- inside

    async def _travel(self, node: DataNode, link: int) -> None:
        await trio.sleep(self.random.uniform(*self.delay))
        if not node.linked or node.link != link:
            raise NodeDown(f"{node.name}: gone")

    async def _barrier(self, gen: DataNode, gpn: str) -> None:
        await trio.sleep(self.random.uniform(*self.delay))
        if not self.all[gpn].up:
            await trio.sleep(BARRIER_DEADLINE)
            raise Refused(f"{gen.name}: {gpn} did not echo the barrier")
        self.note("barrier", gen.name, gpn)

    def _act(self, node: DataNode, changes: dict[Key, AnyRecord | None]) -> None:
        for key, record in changes.items():
            if record is None:
                node.held.pop(key, None)
                self.note("drop", node.name, key)
            else:
                node.held[key] = record
                self.note("put", node.name, record)
                if isinstance(record, Sa):
                    self._check_numbers(node, record)
        self.watch()

    def _check_numbers(self, node: DataNode, sa: Sa) -> None:
        """Nobody ever gets numbers that another process had."""
        if sa.seal_lo == sa.seal_hi:
            return
        process = (node.name, node.boot)
        owner = self.granted.setdefault((sa.spi_in, sa.seal_lo), process)
        assert owner == process, f"{sa} seals from {sa.seal_lo} on {process} after {owner}"
