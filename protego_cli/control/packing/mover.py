"""Many migrations: some side by side, begun at a bounded pace, for whoever has decided on them.

All share one bound, so that a drain and a rebalance together ask no more of the GMN, its nodes and the peers
than one of them. A migration that has begun is completed: nothing here cancels one. While a GIN or GEN is cut
off none would succeed, so none begins: as a rule it is back in a moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from protego_cli.control.channel.pool_messages import PlannedMove
from protego_cli.control.packing.jobs import Job
from protego_cli.control.packing.placement import Move, PackingView
from protego_cli.control.procedures.migration import Migrations, cut_off
from protego_cli.control.sas.sad import Sad
from protego_cli.errors import ProtegoError

AT_ONCE: Final = 32  # docs/benchmarks.md: more are no faster
PACE: Final = 0.005  # seconds between the beginnings of two: bursts are for nobody's good
PATIENCE: Final = 30.0  # seconds to wait for a GIN or GEN that is cut off, once until it is back


def planned(moves: Iterable[Move], view: PackingView) -> tuple[PlannedMove, ...]:
    """Moves of a policy that has seen this, as operators are told of them: where from, and how much load."""
    seen = {tunnel.id: tunnel for tunnel in view.tunnels}
    return tuple(PlannedMove(name, seen[name].gpn or "", to, round(seen[name].load, 6)) for name, to in moves)


class Mover:
    def __init__(self, sad: Sad, migrations: Migrations) -> None:
        self._sad = sad
        self._migrations = migrations
        self._slots = trio.Semaphore(AT_ONCE)
        self._next = -math.inf
        self._missed: set[str] = set()  # GINs and GENs that have been waited for in vain

    async def run(self, job: Job, moves: Iterable[tuple[Move, str]], at_once: int = AT_ONCE) -> None:
        """Make the moves, each from the GPN it is paired with, until the job is stopped; count them in it."""
        own = trio.Semaphore(at_once)
        async with trio.open_nursery() as nursery:
            for move, source in moves:
                await own.acquire()
                await self._turn()
                await self._whole(job)
                if job.stopping.is_set():
                    self._slots.release()
                    return
                nursery.start_soon(self._make, job, move, source, own)

    async def _turn(self) -> None:
        """Take a slot, when it is time for the next migration to begin."""
        await self._slots.acquire()
        self._next = max(self._next + PACE, trio.current_time())
        try:
            await trio.sleep_until(self._next)
        except trio.Cancelled:
            self._slots.release()
            raise

    async def _whole(self, job: Job) -> None:
        """Return when no GIN or GEN is cut off, none is waited for any longer, or the job is to end."""
        away = cut_off(self._sad.fabric)
        self._missed &= away
        if away <= self._missed:
            return
        note, job.note = job.note, f"{', '.join(sorted(away))} cut off from the GMN: waiting"
        job.changed()
        with trio.move_on_after(PATIENCE):
            await job.unless_stopped(partial(self._sad.until_connected, away))
        self._missed |= cut_off(self._sad.fabric) & away
        job.note = note
        job.changed()

    async def _make(self, job: Job, move: Move, source: str, own: trio.Semaphore) -> None:
        tunnel = self._sad.tunnels.get(move.tunnel)
        try:
            moved = await self._migrations.relocate(tunnel, source, move.to) if tunnel else None
        except ProtegoError as error:
            job.fail(move.tunnel, str(error))
        else:
            if moved is None:  # it is not there any more: nothing to do
                job.failed.pop(move.tunnel, None)
                job.total -= 1
                job.changed()
            else:
                job.finish(move.tunnel)
        finally:
            own.release()
            self._slots.release()
