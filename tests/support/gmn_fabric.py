"""A fabric of data nodes in memory, for the GMN's tests: slow, out of step, and mortal as the test wishes.

It keeps the promises of `control.fabric.Fabric`: what is desired is kept; updates of one node are applied in
order, and leave only when what they reveal is stored; an acknowledgement means that the node acts on it.
Updates of different nodes overtake one another, by delays from a seed. Everything that happens is written to
one `log`, and `watch` is called after each change.

The GMN may die as well: what is on its way to a node then arrives or does not, the nodes act on what they
have, and connect to its next life.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import msgspec
import trio

from protego_cli.config.model import Cluster, Role
from protego_cli.control.channel.desired_records import AnyRecord, Sa
from protego_cli.control.channel.fabric import FabricObserver, NodeDown, NodeState, Reported
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.node_messages import Report
from protego_cli.control.state.journal import NODE, Journal
from protego_cli.errors import ProtegoError, Refused

BARRIER_DEADLINE = 0.5


@dataclass(eq=False)
class Message:
    """A Sync (`whole`) or Update on its way."""

    link: int
    records: dict[Key, AnyRecord | None]
    barriers: Sequence[str] = ()
    whole: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    failure: ProtegoError | None = None


@dataclass(eq=False)
class DataNode:
    name: str
    role: Role
    runs: bool = False
    up: bool = False  # it runs, and has had a Sync
    linked: bool = False
    synced: bool = False  # on this link
    boot: int = 0  # grows by one at every restart
    link: int = 0  # grows by one at every connection
    desired: dict[Key, AnyRecord] = field(default_factory=dict)
    pending: dict[Key, AnyRecord | None] = field(default_factory=dict)
    held: dict[Key, AnyRecord] = field(default_factory=dict)  # what its data path acts on
    report: Report | None = None
    known: str | None = None  # the boot that the GMN knows
    on_the_way: int = 0
    newest: Message | None = None  # of those that were sent
    sync: Message | None = None  # the last
    queue: deque[Message] = field(default_factory=deque)
    refused: dict[Key, str] = field(default_factory=dict)
    pumping: bool = False
    notices: list[Reported] = field(default_factory=list)  # the GMN has not noted yet


class DataNodes:
    def __init__(
        self,
        cluster: Cluster,
        tasks: trio.Nursery,
        seed: int = 0,
        delay: tuple[float, float] = (0.0001, 0.002),
    ) -> None:
        self.random = Random(seed)
        self.delay = delay
        self.log: list[tuple[object, ...]] = []
        self.watch: Callable[[], None] = lambda: None
        self.tap: Callable[[tuple[object, ...]], None] = lambda entry: None
        self.observer: FabricObserver
        self.all = {node.name: DataNode(node.name, node.role) for node in cluster.nodes if node.role != "gmn"}
        self.left: set[str] = set()
        self.lacking: set[str] = set()  # GINs that cannot do without UDP
        self.refuse: Callable[[str, AnyRecord], str | None] = lambda name, record: None  # why a node would
        self.mark: dict[int, int] = {}  # what the GINs have passed on
        self.granted: dict[tuple[int, int], tuple[str, int]] = {}  # (SPI, lo) -> process
        self._tasks = tasks
        self._journal: Journal | None = None

    def note(self, *entry: object) -> None:
        self.log.append(entry)
        self.tap(entry)

    # ---- what the GMN calls

    def nodes(self) -> list[NodeState]:
        return [self._state(node) for node in self.all.values()]

    def node(self, name: str) -> NodeState | None:
        return self._state(self.all[name]) if name in self.all else None

    def _state(self, node: DataNode) -> NodeState:
        return NodeState(
            name=node.name,
            role=node.role,
            address="",
            connected=node.up and node.synced,
            boot=node.known,
            report=node.report,
            silent=(),
            raw_esp=node.name not in self.lacking if node.role == "gin" else False,
            refused=node.refused,
        )

    def refusing(self, keys: Sequence[Key]) -> set[str]:
        return {node.name for node in self.all.values() if not node.refused.keys().isdisjoint(keys)}

    def raw_esp(self) -> bool:
        return not self.lacking

    def connected(self, role: Role) -> list[str]:
        return [node.name for node in self.running(role) if node.synced]

    def is_connected(self, node: str) -> bool:
        return node in self.all and self.all[node].up and self.all[node].synced

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

    def push(self, node: str) -> None:
        member = self.all.get(node)
        if member is not None and member.linked and member.pending:
            self._update(member)

    async def applied(self, node: str, barriers: Sequence[str] = (), needs: Iterable[Key] = ()) -> None:
        if node in self.left:
            raise NodeDown(f"{node}: has left the cluster")
        member = self.all[node]
        if not member.linked:
            raise NodeDown(f"{node}: not connected")
        await self._delivered(member, barriers)
        for key in needs:
            if key in member.refused:
                raise Refused(f"{node}: {member.refused[key]}")

    async def _delivered(self, member: DataNode, barriers: Sequence[str]) -> None:
        newest = member.newest
        if member.pending or barriers or (member.on_the_way and (newest is None or newest.barriers)):
            newest = self._update(member, barriers)
        elif not member.on_the_way or newest is None:
            return
        await self._answer(newest)

    def _update(self, member: DataNode, barriers: Sequence[str] = ()) -> Message:
        changes, member.pending = member.pending, {}
        self.note("sent", member.name, *changes)
        return self._send(member, Message(member.link, changes, barriers))

    def reload(self, cluster: Cluster) -> None:
        """The nodes of another file. Neighbours and tenants are for `tests/test_fabric.py`."""
        before, names = self.all, {node.name: node.role for node in cluster.nodes if node.role != "gmn"}
        self.left |= before.keys() - names.keys()
        self.left -= names.keys()
        self.all = {name: before.get(name) or DataNode(name, role) for name, role in names.items()}
        self.note("reload", *self.all)

    async def marks(self, spis: Sequence[int]) -> dict[int, int]:
        self.note("marks", *spis)
        await trio.sleep(self.random.uniform(*self.delay))
        gins = self.connected("gin")
        return {spi: self.mark.get(spi, 0) for spi in spis} if gins else {}

    # ---- what happens to nodes

    def running(self, role: Role) -> list[DataNode]:
        """Those whose data path works, whether the GMN is there or not."""
        return [node for node in self.all.values() if node.up and node.role == role]

    async def start(self, name: str, *, restarted: bool = True) -> None:
        """The node connects; by default a new process of it."""
        node, journal = self.all[name], self._journal
        assert journal is not None
        node.runs = True
        if restarted:
            node.boot += 1
            node.held = {}
            node.up = False
        await self.observer.node_connecting(name, node.known not in (None, str(node.boot)))
        if self._journal is not journal:
            return  # the GMN died
        node.known = str(node.boot)
        journal.put(NODE, name.encode(), node.known)
        node.pending.clear()
        node.link += 1
        node.linked = True
        node.synced = False
        try:
            node.sync = self._send(node, Message(node.link, dict(node.desired), whole=True))
            await self._answer(node.sync)
        except NodeDown:
            return
        if self._journal is journal:
            self.note("up", name)
            await self.observer.node_up(name)
            self._tell(node)

    async def stop(self, name: str) -> None:
        self.kill(name)
        await self.observer.node_down(name)

    def kill(self, name: str) -> None:
        """The node is gone; the observer does not know yet."""
        node = self.all[name]
        node.runs = node.up = node.linked = node.synced = False
        node.link += 1
        node.held = {}
        self.note("down", name)

    def notify(self, name: str, notice: Reported) -> None:
        """The node says something to the GMN, and says it again until it is noted."""
        node = self.all[name]
        node.notices.append(notice)
        self._tell(node)

    def _tell(self, node: DataNode) -> None:
        if node.synced:
            for notice in node.notices:
                self._tasks.start_soon(self._report, node, notice)

    async def _report(self, node: DataNode, notice: Reported) -> None:
        journal = self._journal
        if journal is not None and notice in node.notices:
            await self.observer.reported(node.name, notice)
            journal.release(lambda: node.notices.remove(notice) if notice in node.notices else None)

    # ---- what happens to the GMN

    def attach(self, journal: Journal) -> None:
        """A life of the GMN begins, that knows no more than its journal tells."""
        self._journal = journal
        known = {name.decode(): msgspec.msgpack.decode(boot, type=str) for name, boot in journal.found(NODE)}
        for node in self.all.values():
            node.desired, node.pending = {}, {}
            node.known, node.report = known.get(node.name), None

    def gmn_died(self) -> None:
        self._journal = None
        for node in self.all.values():
            for message in list(node.queue)[: self.random.randint(0, len(node.queue))]:
                self._arrive(node, message)
            node.queue.clear()
            node.linked = node.synced = False
            node.link += 1
            node.on_the_way = 0
            node.newest = None
            if node.sync is not None and not node.sync.done.is_set():  # it may never have left
                node.sync.failure = NodeDown(f"{node.name}: the GMN is gone")
                node.sync.done.set()

    # ---- inside

    def _send(self, node: DataNode, message: Message) -> Message:
        journal = self._journal
        assert journal is not None
        node.on_the_way += 1
        node.newest = message
        journal.instruct(partial(self._post, node, message))
        return message

    async def _answer(self, message: Message) -> None:
        """Return when it is acknowledged. Raises what became of it."""
        await message.done.wait()
        if message.failure is not None:
            raise message.failure

    def _post(self, node: DataNode, message: Message) -> None:
        node.queue.append(message)
        if not node.pumping:
            node.pumping = True
            self._tasks.start_soon(self._pump, node)

    async def _pump(self, node: DataNode) -> None:
        """One message after another arrives."""
        while node.queue:
            message = node.queue[0]
            await trio.sleep(self.random.uniform(*self.delay))
            if not (node.queue and node.queue[0] is message):
                continue  # the GMN died
            try:
                if not node.linked or node.link != message.link:
                    raise NodeDown(f"{node.name}: gone")
                self._arrive(node, message)
                for gpn in message.barriers:
                    await self._barrier(node, gpn)
            except ProtegoError as error:
                message.failure = error
            if node.queue and node.queue[0] is message:
                node.queue.popleft()
                self._tasks.start_soon(self._acknowledge, node, message)
        node.pumping = False

    async def _acknowledge(self, node: DataNode, message: Message) -> None:
        journal = self._journal
        if message.failure is None:
            await trio.sleep(self.random.uniform(*self.delay))
            if not node.linked or node.link != message.link:
                message.failure = NodeDown(f"{node.name}: gone")
        if journal is self._journal:
            if node.link == message.link:  # else it is counted no more
                node.on_the_way -= 1
            message.done.set()
            if message.failure is None and not message.whole:
                self.note("acknowledged", node.name, *message.records)

    def _arrive(self, node: DataNode, message: Message) -> None:
        if message.whole:
            node.up = node.synced = True
            self._act(node, {key: message.records.get(key) for key in message.records | node.held})
        else:
            self._act(node, message.records)

    async def _barrier(self, gen: DataNode, gpn: str) -> None:
        await trio.sleep(self.random.uniform(*self.delay))
        if not self.all[gpn].up:
            await trio.sleep(BARRIER_DEADLINE)
            raise Refused(f"{gen.name}: {gpn} did not echo the barrier")
        self.note("barrier", gen.name, gpn)

    def _act(self, node: DataNode, changes: dict[Key, AnyRecord | None]) -> None:
        """Puts come before drops, as in the agent."""
        for key, record in sorted(changes.items(), key=lambda item: item[1] is None):
            node.refused.pop(key, None)
            if record is not None and (reason := self.refuse(node.name, record)) is not None:
                node.refused[key] = reason
            elif record is None:
                if node.held.pop(key, None) is not None:
                    self.note("drop", node.name, key)
            elif node.held.get(key) != record:
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
