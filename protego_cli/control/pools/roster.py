"""The nodes that pools have in use, each from its launch to its end.

    launching ── it has connected ──▶ up ── `retire` ──▶ leaving ── nothing is on it ──▶ retiring ──▶ gone
        ▲                             │
        └── its provisioner has lost it

1. A life begins with `launch`: it is stored, a join token is made, the provisioner is asked to start the
   node. The node is a member of the fabric from now on. If it does not connect in time it is taken back, and
   launched again, later and later.
2. A node that is up and loses its link goes on forwarding, so nothing happens to it, unless its provisioner
   says that it is not there any more: then it is launched anew.
3. A node that leaves takes no tunnels; what it has goes elsewhere, as in a drain. When late packets have had
   their time it is no member any more, its certificate is good for nothing, and the provisioner is asked to
   end it, until it has.

Each step is stored before it shows, so another life of the GMN goes on with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec
import trio
from msgspec import structs

from protego_cli.config.model import Cluster, Node, PoolConfig
from protego_cli.control.operating.events import EventLog
from protego_cli.control.pools.admissions import Admissions
from protego_cli.control.pools.provision import Provisioner, ProvisionerKind
from protego_cli.control.state.journal import Journal
from protego_cli.errors import ProtegoError

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["launching", "up", "leaving", "retiring"]

LIFE: Final = "life"  # kind of record: a node's name -> what it is at
TICK: Final = 0.25  # seconds between two looks at a node
VANISHED: Final = 3.0  # seconds without its link before the provisioner is asked about a node
ASK: Final = 5.0  # seconds between two such questions
DEADLINE: Final = 120.0  # seconds for one call of a provisioner
FIRST_PAUSE: Final = 2.0
LAST_PAUSE: Final = 120.0


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    state: State
    since: float


class Life:
    """A node in use."""

    def __init__(self, node: Node, state: State, since: float) -> None:
        self.node = node
        self.state = state
        self.since = since  # wall time at which the state began
        self.problem = ""  # what stands in the way, for people
        self.how = ""  # what its provisioner says of it
        self.idle: float | None = None  # since when it has been up and carried nothing
        self.tries = 0

    @property
    def name(self) -> str:
        return self.node.name


class Opened(NamedTuple):
    """The provisioner of a pool, and the plugin it comes from."""

    kind: ProvisionerKind
    plugin: str
    provisioner: Provisioner


class Members(Protocol):
    """The part of `Fabric` that the roster changes."""

    def is_connected(self, node: str) -> bool: ...
    def reload(self, cluster: Cluster) -> None: ...


class Occupancy(Protocol):
    """What lies on nodes: the SAD and the drains."""

    def occupied(self, node: str) -> bool:
        """Whether anything is on it, or on its way there."""
        ...

    def close(self, node: str) -> None:
        """Nothing more goes there."""
        ...

    def clear(self, node: str) -> str:
        """Move away what is there; what stands in the way."""
        ...

    def forget(self, node: str) -> None:
        """It is no node any more."""
        ...


class Roster:
    def __init__(
        self,
        cluster: Cluster,
        journal: Journal,
        admissions: Admissions,
        opened: Mapping[str, Opened],
        events: EventLog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`opened`: the provisioner of each pool of the cluster file."""
        self.lives: dict[str, Life] = {}  # in the order of their launches
        self._file = cluster
        self._journal = journal
        self._admissions = admissions
        self._opened = opened
        self._events = events
        self._clock = clock
        self._members: Members | None = None
        self._occupancy: Occupancy | None = None
        self._tasks: trio.Nursery | None = None
        self._pauses: dict[str, float] = {}  # pool -> until when its launches are not to be counted on
        found = {name.decode(): value for name, value in journal.found(LIFE)}
        stored = {name: msgspec.msgpack.decode(value, type=_Stored) for name, value in found.items()}
        for name, each in sorted(stored.items(), key=lambda item: item[1].since):
            node = cluster.pooled(name)
            if node is None or node.pool not in opened:
                log.warning("a node of no pool any more node=%s", name)
                journal.put(LIFE, name.encode(), None)
            else:
                self.lives[name] = Life(node, each.state, each.since)

    def cluster(self) -> Cluster:
        """The cluster file with the nodes in use among its nodes."""
        order = {pool.name: place for place, pool in enumerate(self._file.pools)}
        here = [life.node for life in self.lives.values() if life.state != "retiring"]
        here.sort(key=lambda node: (order[node.pool], int(node.name.rpartition("-")[2])))
        return structs.replace(self._file, nodes=(*self._file.nodes, *here)) if here else self._file

    def reload(self, cluster: Cluster) -> None:
        """Take up another cluster file."""
        self._file = self._admissions.cluster = cluster
        for life in self.lives.values():
            life.node = cluster.pooled(life.name) or life.node
        self._show()

    def _show(self) -> None:
        if self._members is not None:
            self._members.reload(self.cluster())

    # ---- who is there

    def of(self, pool: PoolConfig) -> list[Life]:
        """Those of a pool that are there, or are to be."""
        return [
            life
            for life in self.lives.values()
            if life.node.pool == pool.name and life.state in ("launching", "up")
        ]

    def launchable(self) -> Iterator[Node]:
        """What may be launched now, in the order in which it is to be."""
        now = trio.current_time()
        for pool in self._file.pools:
            if pool.name not in self._opened or now < self._pauses.get(pool.name, now):
                continue
            room = pool.maximum - len(self.of(pool))
            for node in pool.nodes():
                if room <= 0:
                    break
                if node.name in self.lives:
                    if self._opened[pool.name].kind.ordered and self.lives[node.name].state in (
                        "leaving",
                        "retiring",
                    ):
                        break  # it has to be gone before anything behind it can come
                    continue
                room -= 1
                yield node

    def spare(self, pool: PoolConfig) -> list[Life]:
        """Those that may be retired, the last one first: beyond the minimum, and where a provisioner can end
        only the highest, this one alone.
        """
        there = sorted(self.of(pool), key=lambda life: -(pool.number(life.name) or 0))
        beyond = max(0, len(there) - pool.minimum)
        return there[: min(beyond, 1)] if self._opened[pool.name].kind.ordered else there if beyond else []

    def beyond(self, pool: PoolConfig) -> int:
        """How many there are above the minimum."""
        return len(self.of(pool)) - pool.minimum

    @property
    def pools(self) -> tuple[PoolConfig, ...]:
        return tuple(pool for pool in self._file.pools if pool.name in self._opened)

    # ---- what is done with them

    def launch(self, name: str) -> Life:
        """Have a node, which is one of `launchable`."""
        node = self._file.pooled(name)
        if name in self.lives or node is None:
            return self.lives[name]
        life = self.lives[name] = Life(node, "launching", self._clock())
        self._enter(life, "launching")
        self._show()
        if self._tasks is not None:
            self._tasks.start_soon(self._live, life)
        return life

    def retire(self, name: str) -> None:
        """Have a node no more, once what is on it has gone elsewhere."""
        life = self.lives.get(name)
        if life is not None and life.state in ("launching", "up"):
            self._enter(life, "leaving")

    def _enter(self, life: Life, state: State) -> None:
        life.state, life.since, life.idle = state, self._clock(), None
        if state != "launching":
            life.problem = ""
        self._journal.put(LIFE, life.name.encode(), _Stored(state, life.since))

    # ---- running

    async def run(self, members: Members, occupancy: Occupancy) -> None:
        """Look after all of them, and the pools' minimum, for ever."""
        self._members, self._occupancy = members, occupancy
        for life in self.lives.values():
            if life.state == "leaving":
                occupancy.close(life.name)
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            for name, opened in self._opened.items():
                nursery.start_soon(self._run_provisioner, name, opened)
            for life in list(self.lives.values()):
                nursery.start_soon(self._live, life)
            while True:
                self._keep_bounds()
                await trio.sleep(TICK)

    def _keep_bounds(self) -> None:
        for pool in self.pools:
            for life in self.of(pool):
                if (pool.number(life.name) or 0) > pool.maximum:
                    self.retire(life.name)
        lacking = {pool.name: pool.minimum - len(self.of(pool)) for pool in self.pools}
        for node in list(self.launchable()) if any(count > 0 for count in lacking.values()) else ():
            if lacking[node.pool] > 0:
                lacking[node.pool] -= 1
                self.launch(node.name)

    async def _run_provisioner(self, pool: str, opened: Opened) -> None:
        while True:
            fault = await self._guarded(opened, opened.provisioner.run, deadline=None)
            log.error("provisioner failed pool=%s reason=%s", pool, fault or "it has returned")
            self._events.emit("provisioner failed", pool=pool, reason=fault or "it has returned")
            await trio.sleep(LAST_PAUSE)

    async def _live(self, life: Life) -> None:
        steps: Mapping[State, Callable[[Life], Awaitable[None]]] = {
            "launching": self._bring_up,
            "up": self._watch,
            "leaving": self._leave,
            "retiring": self._end,
        }
        while self.lives.get(life.name) is life:
            await steps[life.state](life)

    # ---- the steps

    async def _bring_up(self, life: Life) -> None:
        opened, pool = self._opened[life.node.pool], self._file.pool(life.node.pool)
        patience = pool.launch if pool is not None else 0.0
        fault = await self._start(life, opened)
        if fault is None:
            with trio.move_on_after(patience):
                while life.state == "launching" and not self._connected(life):  # noqa: ASYNC110
                    await trio.sleep(TICK)
            if life.state == "launching" and self._connected(life):
                self._enter(life, "up")
                life.tries = 0
                self._events.emit("node launched", node=life.name, pool=life.node.pool)
                return
            fault = f"it has not connected within {patience:g} s of its launch"
        if life.state != "launching":
            return
        life.tries += 1
        pause = min(FIRST_PAUSE * 2 ** (life.tries - 1), LAST_PAUSE)
        life.problem = fault
        self._pauses[life.node.pool] = trio.current_time() + pause
        self._events.emit("launch failed", node=life.name, pool=life.node.pool, reason=fault, again_in=pause)
        await self._guarded(opened, lambda: opened.provisioner.retire(life.node))
        if not opened.kind.keeps:
            self._admissions.revoke(life.name)
        with trio.move_on_after(pause):
            while life.state == "launching":  # noqa: ASYNC110 - `retire` ends it
                await trio.sleep(TICK)

    async def _start(self, life: Life, opened: Opened) -> str | None:
        """Ask the provisioner for the node; what was in the way."""
        there = await self._list(opened)
        if isinstance(there, str):
            return there
        if life.name in there and not opened.kind.keeps:
            life.how = there[life.name]
            return None  # an earlier life of this GMN has launched it
        token = ""
        if not opened.kind.keeps:
            try:
                token = self._admissions.issue(life.node)
            except ProtegoError as error:
                return str(error)
        await self._journal.stored()
        return await self._guarded(opened, lambda: opened.provisioner.launch(life.node, token))

    async def _watch(self, life: Life) -> None:
        gone: float | None = None
        asked = -ASK
        while life.state == "up":
            now = trio.current_time()
            if self._connected(life):
                gone, life.problem = None, ""
            elif gone is None:
                gone = now
            elif now - gone >= VANISHED and now - asked >= ASK:
                asked = now
                opened = self._opened[life.node.pool]
                there = await self._list(opened)
                if isinstance(there, str):
                    life.problem = there
                elif self._connected(life) or life.state != "up":
                    continue
                elif life.name not in there:
                    self._events.emit("node vanished", node=life.name, pool=life.node.pool)
                    if not opened.kind.keeps:
                        self._admissions.revoke(life.name)
                    self._enter(life, "launching")
                    return
                else:
                    life.how, life.problem = there[life.name], "its link to the GMN is down"
            await trio.sleep(TICK)

    async def _leave(self, life: Life) -> None:
        occupancy = self._occupancy
        if occupancy is None:
            return
        occupancy.close(life.name)
        while occupancy.occupied(life.name):
            life.problem = occupancy.clear(life.name)
            await trio.sleep(TICK)
        self._enter(life, "retiring")
        occupancy.forget(life.name)
        self._show()
        if not self._opened[life.node.pool].kind.keeps:
            self._admissions.revoke(life.name)

    async def _end(self, life: Life) -> None:
        opened = self._opened[life.node.pool]
        await self._journal.stored()
        fault = await self._guarded(opened, lambda: opened.provisioner.retire(life.node))
        if fault is not None:
            life.tries += 1
            life.problem = fault
            self._events.emit("retiring failed", node=life.name, pool=life.node.pool, reason=fault)
            await trio.sleep(min(FIRST_PAUSE * 2 ** (life.tries - 1), LAST_PAUSE))
            return
        del self.lives[life.name]
        self._journal.put(LIFE, life.name.encode(), None)
        self._events.emit("node retired", node=life.name, pool=life.node.pool)

    # ---- asking

    def _connected(self, life: Life) -> bool:
        return self._members is not None and self._members.is_connected(life.name)

    async def _list(self, opened: Opened) -> Mapping[str, str] | str:
        """The nodes that there are, or why nobody knows."""
        found: list[Mapping[str, str]] = []

        async def ask() -> None:
            found.append(dict(await opened.provisioner.nodes()))

        fault = await self._guarded(opened, ask)
        return fault if fault is not None else found[0]

    async def _guarded(
        self, opened: Opened, call: Callable[[], Awaitable[None]], deadline: float | None = DEADLINE
    ) -> str | None:
        """Call a provisioner; what went wrong."""
        named = f"the provisioner {opened.kind.name!r} of plugin {opened.plugin!r}"
        try:
            with trio.move_on_after(deadline if deadline is not None else float("inf")):
                await call()
                return None
        except ProtegoError as fault:
            return str(fault)
        except Exception as error:  # a plugin's code: whatever it raises must not stop the gateway
            log.exception("provisioner failed provisioner=%s plugin=%s", opened.kind.name, opened.plugin)
            return f"{named} raised {type(error).__name__}: {error}"
        return f"{named} has not answered within {deadline:g} s"
