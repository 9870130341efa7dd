"""Applying a packing policy to the whole placement, because the operator asks for it.

The plan is made at once and shown before anything moves; with `dry_run` nothing does. The moves are made by
the job, in the plan's order; what has changed meanwhile makes single moves void or fail, no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from protego_cli.control.channel.pool_messages import Plan, PlannedMove, Rebalance
from protego_cli.control.packing.drains import Drains
from protego_cli.control.packing.jobs import Job, Jobs
from protego_cli.control.packing.mover import Mover, planned
from protego_cli.control.packing.placement import Move, Packer
from protego_cli.control.sas.sad import Sad
from protego_cli.errors import Refused, UsageError

REBALANCE: Final = "rebalance"


class Rebalances:
    def __init__(
        self, sad: Sad, mover: Mover, jobs: Jobs, drains: Drains, packers: Mapping[str, Packer]
    ) -> None:
        self._sad = sad
        self._mover = mover
        self._jobs = jobs
        self._drains = drains
        self._packers = packers
        self._latest: Plan | None = None

    def rebalance(self, request: Rebalance) -> Plan:
        """Plan, and begin to move; of a rebalance that is under way, its plan. Raises PolicyFault, Refused or
        UsageError.
        """
        packer = self._packer(request.policy)
        running = self._jobs.running(REBALANCE)
        if running is not None and not request.dry_run and self._latest is not None:
            if self._latest.policy != packer.policy.name:
                raise Refused(
                    f"a rebalance by the policy {self._latest.policy} is under way; "
                    f"try again when it is done (`protego rebalance --policy {self._latest.policy}` shows it)"
                )
            return self._latest
        moves = self._plan(packer)
        if request.dry_run or not moves:
            return Plan(packer.policy.name, moves, None)
        job = self._jobs.start(REBALANCE, packer.policy.name, partial(self._carry_out, moves))
        job.total = len(moves)
        self._latest = Plan(packer.policy.name, moves, job.id)
        return self._latest

    def _packer(self, name: str | None) -> Packer:
        if name is None:
            return self._sad.seats.packer
        try:
            return replace(self._packers[name], live=True)
        except KeyError:
            known = ", ".join(sorted(self._packers))
            raise UsageError(f"no plugin provides the packing policy {name!r}; known: {known}") from None

    def _plan(self, packer: Packer) -> tuple[PlannedMove, ...]:
        seats = self._sad.seats
        seats.stale()
        busy = self._drains.busy()
        pinned = {tunnel.id for tunnel in self._sad.tunnels.values() if tunnel.seat in busy}
        view = seats.view(pinned)
        return planned(packer.plan(view), view)

    async def _carry_out(self, moves: tuple[PlannedMove, ...], job: Job) -> None:
        await self._mover.run(job, ((Move(move.tunnel, move.to), move.source) for move in moves))
