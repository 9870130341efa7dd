"""The pools by themselves: tunnels packed, hot GPNs relieved, GPNs launched when needed and retired when
empty.

1. Every second the loads are looked at. At the consolidation interval the packing policy is asked for a plan,
   with GPNs that may be filled to the `low` watermark; otherwise, where one is beyond the `high` one, what
   cannot wait.
2. Moves to GPNs that run are made by a job, some side by side (`mover.py`). A GPN that does not run, and that
   moves go to, is launched; they wait until it is up, and are forgotten when its launch fails.
3. While moves are being made nothing new is decided. A tunnel that has moved as often in an hour as it may,
   one that waits, and one whose GPN is away or being drained, stays.
4. A GPN of a pool that carries nothing for `hold` seconds is retired. One GPN always stays.
5. While a GIN or GEN is away nothing is moved: it could not be told.

Nothing of this is kept: what has begun is in the records of tunnels and nodes, and another life of the GMN
decides anew."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

import trio

from protego_cli.config.model import Cluster, ElasticConfig
from protego_cli.control.channel.pool_messages import ElasticPlan, PlannedMove
from protego_cli.control.packing.drains import Drains
from protego_cli.control.packing.jobs import Job, Jobs
from protego_cli.control.packing.mover import Mover, planned
from protego_cli.control.packing.packing_view import GpnView
from protego_cli.control.packing.placement import Move, PolicyFault
from protego_cli.control.pools.occupancy import Occupied
from protego_cli.control.pools.roster import Life, Roster
from protego_cli.control.sas.sad import Sad

log = logging.getLogger(__name__)

ELASTIC: Final = "elastic"  # kind of job
LOOK: Final = 1.0  # seconds between two looks: as often as GPNs report
PATIENCE: Final = 5.0  # seconds for nodes that are away to come back by themselves
NEAR: Final = 0.9  # of the high watermark: from here on the sums of all tunnels' loads are looked at
SETTLED: Final = 5.0  # seconds after a failed question before the policy is asked again


class Decision(NamedTuple):
    why: str  # "consolidation" or "hot spot"
    moves: tuple[PlannedMove, ...]

    def launches(self, running: set[str]) -> tuple[str, ...]:
        """The GPNs that it needs and that do not run."""
        return tuple(dict.fromkeys(move.to for move in self.moves if move.to not in running))


class Elastic:
    def __init__(
        self, cluster: Cluster, sad: Sad, roster: Roster, mover: Mover, jobs: Jobs, drains: Drains
    ) -> None:
        self._cluster = cluster
        self._sad = sad
        self._roster = roster
        self._mover = mover
        self._jobs = jobs
        self._drains = drains
        self._occupied = Occupied(sad, drains)
        self._waiting: dict[str, dict[str, PlannedMove]] = {}  # by the GPN that is being launched
        self._bound: set[str] = set()  # the GPNs that moves being made go to
        self._consolidated = -math.inf
        self._obstacle = ""
        self._told = ""
        self._since = math.inf  # when the obstacle came
        self._alone = math.inf  # since when there is no GPN that takes tunnels
        self._rests = -math.inf  # until when nobody is asked

    @property
    def config(self) -> ElasticConfig:
        return self._cluster.elastic

    def reload(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def run(self) -> None:
        """For ever."""
        await self._sad.gathered.wait()
        self._consolidated = trio.current_time()  # loads have to be measured first
        while True:
            if self.config.mode != "off":
                self._sad.seats.look()
            if self.config.mode == "on":
                self._act()
            elif self.config.mode == "dry-run":
                self._rehearse()
            else:
                self._waiting.clear()
            await trio.sleep(LOOK)

    # ---- deciding

    def obstacle(self) -> str:
        """Why nothing may move now; empty when it may."""
        away = sorted(
            node.name
            for node in self._sad.fabric.nodes()
            if node.role in ("gin", "gen") and not node.connected
        )
        return f"{', '.join(away)} cannot be told: not connected" if away else ""

    def decide(self, *, consolidate: bool) -> Decision | None:
        """What the policy would do. Raises PolicyFault."""
        seats, config = self._sad.seats, self.config
        if not consolidate and not seats.hot(NEAR * config.high):
            return None
        seats.stale()
        view = seats.view(
            self._pinned(),
            self._spare(),
            config.low if consolidate else config.high,
            config.moves_per_hour,
        )
        if not consolidate and all(
            gpn.load <= gpn.capacity for gpn in view.gpns if gpn.running and gpn.accepting
        ):
            return None
        moves = seats.packer.plan(view) if consolidate else seats.packer.mitigate(view)
        if not moves:
            return None
        return Decision("consolidation" if consolidate else "hot spot", planned(moves, view))

    def _pinned(self) -> set[str]:
        """Tunnels that are not ours to move now."""
        connected = set(self._sad.fabric.connected("gpn"))
        busy = self._drains.busy()
        waiting = {name for moves in self._waiting.values() for name in moves}
        return waiting | {
            tunnel.id
            for tunnel in self._sad.tunnels.values()
            if tunnel.seat is not None and (tunnel.seat not in connected or tunnel.seat in busy)
        }

    def _spare(self) -> Iterator[GpnView]:
        """GPNs that do not run: first those that are being launched, with what waits for them."""
        connected = set(self._sad.fabric.connected("gpn"))
        for life in self._roster.lives.values():
            if life.state == "launching" and life.name not in connected and not life.tries:
                waiting = self._waiting.get(life.name, {})
                load = sum(move.load for move in waiting.values())
                yield GpnView(life.name, life.node.capacity, load, tunnels=len(waiting), running=False)
        for node in self._roster.launchable():
            yield GpnView(node.name, node.capacity, 0.0, running=False)

    # ---- acting

    def _act(self) -> None:
        self._heed(self.obstacle())
        self._arrive()
        if not self._obstacle and not self._moving and trio.current_time() >= self._rests:
            self._begin(self._next())
        self._retire()

    @property
    def _moving(self) -> bool:
        return self._jobs.running(ELASTIC) is not None

    def _next(self) -> Decision | None:
        now = trio.current_time()
        due = now >= self._consolidated + self.config.interval
        if due:
            self._consolidated = now
        try:
            return self.decide(consolidate=due)
        except PolicyFault:  # it has been told
            self._rests = now + SETTLED
            return None

    def _begin(self, decision: Decision | None) -> None:
        if decision is None:
            return
        running = set(self._sad.fabric.connected("gpn"))
        launches = decision.launches(running)
        self._tell(decision, launches)
        for name in launches:
            self._roster.launch(name)
            waiting = self._waiting.setdefault(name, {})
            waiting.update((move.tunnel, move) for move in decision.moves if move.to == name)
        self._move(decision.why, [move for move in decision.moves if move.to in running])

    def _move(self, why: str, moves: list[PlannedMove]) -> None:
        if moves:
            self._bound |= {move.to for move in moves}
            job = self._jobs.start(ELASTIC, why, partial(self._carry_out, moves))
            job.total = len(moves)

    async def _carry_out(self, moves: list[PlannedMove], job: Job) -> None:
        pairs = ((Move(move.tunnel, move.to), move.source) for move in moves)
        try:
            await self._mover.run(job, pairs, self.config.at_once)
        finally:
            self._bound -= {move.to for move in moves}
        self._sad.seats.stale()

    def _arrive(self) -> None:
        """What waited for a GPN that is up now is moved; what waits for one that failed, waits no more."""
        connected = set(self._sad.fabric.connected("gpn"))
        for name in list(self._waiting):
            life = self._roster.lives.get(name)
            if life is None or life.tries or life.state not in ("launching", "up"):
                del self._waiting[name]
            elif life.state == "up" and name in connected and not self._obstacle:
                self._move("launched", list(self._waiting.pop(name).values()))

    def _retire(self) -> None:
        """GPNs of pools that have carried nothing for a while; never the last one that takes tunnels."""
        now = trio.current_time()
        open_to = set(self._sad.fabric.connected("gpn")) - self._sad.seats.draining
        coming = any(life.state == "launching" for life in self._roster.lives.values())
        self._alone = math.inf if open_to or coming else min(self._alone, now)
        if now >= self._alone + PATIENCE and (first := next(self._roster.launchable(), None)) is not None:
            self._roster.launch(first.name)
        for pool in self._roster.pools:
            for life in self._roster.of(pool):
                awaited = life.name in self._waiting or life.name in self._bound
                empty = not awaited and self._sad.seats.empty(life.name)
                life.idle = (now if life.idle is None else life.idle) if empty else None
            for life in self._roster.spare(pool):
                if self._roster.beyond(pool) <= 0:
                    break
                idle = life.idle is not None and now - life.idle >= self.config.hold
                if idle and open_to - {life.name} and not self._occupied.occupied(life.name):
                    self._roster.retire(life.name)
                    open_to.discard(life.name)

    def _rehearse(self) -> None:
        """Say what would be done, at the consolidation interval."""
        now = trio.current_time()
        if now < self._consolidated + self.config.interval or self.obstacle():
            return
        decision = self._next()
        if decision is not None:
            self._tell(decision, decision.launches(set(self._sad.fabric.connected("gpn"))))

    # ---- telling

    def _tell(self, decision: Decision, launches: tuple[str, ...]) -> None:
        self._sad.events.emit(
            "packing",
            reason=decision.why,
            moves=len(decision.moves),
            launch=", ".join(launches) or "none",
            mode=self.config.mode,
        )

    def _heed(self, obstacle: str) -> None:
        """It is told once it has lasted for a while: nodes come back by themselves as a rule."""
        now = trio.current_time()
        self._since = min(self._since, now) if obstacle else math.inf
        if obstacle != self._told and (not obstacle or now >= self._since + PATIENCE):
            self._told = obstacle
            if obstacle:
                self._sad.events.emit("packing hindered", reason=obstacle)
        self._obstacle = obstacle

    def plan(self) -> ElasticPlan:
        """What a consolidation would do now. Raises PolicyFault."""
        obstacle = self.obstacle()
        decision = self.decide(consolidate=True)
        moves = decision.moves if decision else ()
        gpns = self._sad.seats.gpns()
        running = {gpn.name for gpn in gpns}
        leaving = {move.tunnel for move in moves}
        targets = {move.to for move in moves}
        held = {
            tunnel.seat for tunnel in self._sad.tunnels.values() if tunnel.seat and tunnel.id not in leaving
        }
        return ElasticPlan(
            mode=self.config.mode,
            policy=self._sad.seats.packer.policy.name,
            obstacle=obstacle,
            moves=moves,
            launch=decision.launches(running) if decision else (),
            retire=tuple(life.name for life in self._spared(held | targets)),
            waiting=tuple(move for moves in self._waiting.values() for move in moves.values()),
        )

    def _spared(self, used: set[str]) -> Iterator[Life]:
        """Nodes of pools that would be retired after `hold`, if only these GPNs were used."""
        for pool in self._roster.pools:
            beyond = self._roster.beyond(pool)
            for life in self._roster.spare(pool):
                if beyond > 0 and life.name not in used and life.name not in self._waiting:
                    beyond -= 1
                    yield life
