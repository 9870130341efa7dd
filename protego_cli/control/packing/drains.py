"""Emptying a GPN under traffic, and taking that back.

1. From now on the GPN is `draining` (`seats.py`): no new tunnel and no new SA goes there.
2. The policy finds a place for every tunnel that is there or on its way there; the mover moves them.
3. What failed is tried once more. A tunnel whose peer does not let itself be rekeyed is left, and reported;
   it goes when it rekeys.
4. When all have gone, late packets are opened until the old SAs have lingered: then the GPN is empty.

A tunnel may still come up there, when its handshake began before the drain: that begins another round.
The GPN stays draining, whatever becomes of the job or of this GMN, until `undrain`.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Final

import trio

from protego_cli.control.packing.jobs import Job, Jobs
from protego_cli.control.packing.mover import Mover
from protego_cli.control.packing.placement import evacuate
from protego_cli.control.sas.naming import find_gpn
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Tunnel
from protego_cli.control.waiting import holding, passed
from protego_cli.errors import Refused

DRAIN: Final = "drain"
DRAINING: Final = "draining"  # kind of record: the name of a GPN that is
TRIES: Final = 2


class Drains:
    def __init__(self, sad: Sad, mover: Mover, jobs: Jobs) -> None:
        self._sad = sad
        self._seats = sad.seats
        self._mover = mover
        self._jobs = jobs
        known = {node.name for node in sad.fabric.nodes()}
        self._seats.draining |= known & {name.decode() for name, _ in sad.journal.found(DRAINING)}
        if self._seats.draining:
            self._seats.stray.set()  # whatever is there still

    def drain(self, node: str) -> Job:
        """Begin to empty a GPN; the job that is at it, if there is one. Raises NotFound or Refused."""
        gpn = find_gpn(self._sad.fabric, node)
        running = self._jobs.running(DRAIN, node)
        if running is not None:
            return running
        begun = node in self._seats.draining
        somewhere = any(other.accepting and other.name != gpn.name for other in self._seats.gpns())
        if not somewhere and not (begun and not self._sad.gathered.is_set()):  # then they are yet to connect
            raise Refused(
                f"{node} cannot be drained: no other GPN is up and takes tunnels, so they could go nowhere"
            )
        if not begun:
            self._set(node, draining=True)
        return self._begin(node)

    def undrain(self, node: str) -> bool:
        """Let a GPN take tunnels again; whether it was draining. Raises NotFound or Refused."""
        find_gpn(self._sad.fabric, node)
        if node not in self._seats.draining:
            return False
        self._set(node, draining=False)
        running = self._jobs.running(DRAIN, node)
        if running is not None:
            running.stop()
        return True

    def _set(self, node: str, *, draining: bool) -> None:
        """The one place where the set changes, but for GPNs that leave the cluster (`Reloads`)."""
        self._sad.journal.put(DRAINING, node.encode(), True if draining else None)
        if draining:
            self._seats.draining.add(node)
            self._sad.events.emit("draining", node=node)
        else:
            self._seats.draining.discard(node)
            self._sad.events.emit("undrained", node=node)

    def forget(self, node: str) -> None:
        """It is no GPN any more."""
        if node in self._seats.draining:
            self._seats.draining.discard(node)
            self._sad.journal.put(DRAINING, node.encode(), None)
            if (running := self._jobs.running(DRAIN, node)) is not None:
                running.stop()

    def busy(self) -> set[str]:
        """The GPNs that a job is emptying now."""
        return {node for node in self._seats.draining if self._jobs.running(DRAIN, node)}

    async def run(self) -> None:
        """Empty draining GPNs again that a tunnel has come to after all, for ever; after a restart, go on."""
        await passed(self._sad.gathered)
        while True:
            await self._seats.stray.wait()
            self._seats.stray = trio.Event()
            for node in self._seats.draining - self.busy():
                self._begin(node)

    # ---- the job

    def _begin(self, node: str) -> Job:
        return self._jobs.start(DRAIN, node, partial(self._empty, node))

    async def _empty(self, node: str, job: Job) -> None:
        await passed(self._sad.gathered)
        await self._move_away(node, job)
        if not job.stopping.is_set():
            job.note = "late packets on the old SAs are awaited"
            job.changed()
            await job.unless_stopped(partial(self._lingered, node))
        job.note = ""
        if not job.stopping.is_set():
            self._sad.events.emit(
                "drained", node=node, moved=job.done, left=len(job.failed), seconds=job.status().seconds
            )

    async def _move_away(self, node: str, job: Job) -> None:
        tried: Counter[str] = Counter()
        while not job.stopping.is_set():
            here = [tunnel for tunnel in self._here(node) if tried[tunnel.id] < TRIES]
            if here:
                tried.update(tunnel.id for tunnel in here)
                await self._round(node, here, job)
                continue
            leaving = next((tunnel for tunnel in self._sad.tunnels.values() if _leaving(tunnel, node)), None)
            if leaving is None:
                return
            async with holding(leaving.moving):
                pass  # somebody else moves it; if that fails it is ours

    def _here(self, node: str) -> list[Tunnel]:
        return [tunnel for tunnel in self._sad.tunnels.values() if tunnel.seat == node]

    async def _round(self, node: str, here: list[Tunnel], job: Job) -> None:
        job.total = job.done + len(here) + sum(1 for name in job.failed if not _among(name, here))
        job.changed()
        now = trio.current_time()
        self._seats.stale()
        packer = self._seats.packer
        moves, left = evacuate(packer, (self._seats.seen(tunnel, now) for tunnel in here), self._seats.view())
        for tunnel in left:
            job.fail(tunnel.id, f"the packing policy {packer.policy.name} has no other GPN for it")
        await self._mover.run(job, ((move, node) for move in moves))
        still_here = {tunnel.id for tunnel in self._here(node)}
        for name in job.failed.keys() - still_here:  # it went down, or its peer has moved it after all
            job.failed.pop(name)
            job.total -= 1

    async def _lingered(self, node: str) -> None:
        """Return when nothing is on the GPN but what seals there."""
        for tunnel, placed in self._sad.on(node):
            if placed.retiring:
                await tunnel.until(lambda t=tunnel, p=placed: p.spi not in t.sas)  # type: ignore[misc]
        await self._sad.nodes.cleared(node)


def _leaving(tunnel: Tunnel, node: str) -> bool:
    sealing = tunnel.sealing
    return sealing is not None and sealing.gpn == node and tunnel.seat != node


def _among(name: str, tunnels: list[Tunnel]) -> bool:
    return any(tunnel.id == name for tunnel in tunnels)
