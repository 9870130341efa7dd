"""A packing policy on a trace, step by step: deterministic, and never ahead of the measured load.

1. In each step the load of the step is measured, and the policy is asked through the same `Packer` as in the
   live cluster: to plan in the first step of each interval, to mitigate in the others.
2. In the first step it places all tunnels. What it leaves nowhere gets a GPN of its own.
3. For the share ρ of the step traffic still runs by the old placement, for the rest by the new one.
4. A GPN that a plan needs is there at once, one that is left empty is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from protego_cli.control.packing.packing_view import TOLERANCE, Terms
from protego_cli.control.packing.placement import Packer
from protego_cli.errors import UsageError
from protego_cli.sim.fleet import Fleet
from protego_cli.sim.measures import Measures, measure
from protego_cli.sim.trace import Trace

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats, Ints

MBITS: Final = 1000.0  # that a GPN carries, where nothing else is said


@dataclass(frozen=True)
class Setting:
    """What a policy is simulated with."""

    interval: float  # seconds between consolidations
    capacity: float = MBITS  # Mbit/s of a GPN
    reaction: float | None = None  # seconds from a measurement to its effect; a whole step unless given
    moves_per_hour: float = Terms().moves_per_hour

    def every(self, trace: Trace) -> int:
        """Steps between consolidations. Raises UsageError."""
        steps = self.interval / trace.step
        if steps < 1 or abs(steps - round(steps)) > 1e-6:
            raise UsageError(
                f"an interval of {self.interval:g} s is no multiple of the step of {trace.name}, "
                f"{trace.step:g} s"
            )
        return round(steps)

    def share(self, trace: Trace) -> float:
        """ρ, of each step. Raises UsageError."""
        reaction = trace.step if self.reaction is None else self.reaction
        if not 0 <= reaction <= trace.step:
            raise UsageError(
                f"a reaction of {reaction:g} s is longer than the step of {trace.name}, {trace.step:g} s"
            )
        return reaction / trace.step


@dataclass(frozen=True, eq=False)
class Run:
    gpns: Ints  # in each step
    measures: Measures


def simulate(
    trace: Trace, packer: Packer, setting: Setting, progress: Callable[[int], None] = lambda _: None
) -> Run:
    """Raises UsageError where the setting does not fit the trace, PolicyFault for what the policy does
    wrong. `progress` hears of each step that is done.
    """
    every, share = setting.every(trace), setting.share(trace)
    loads = trace.demand / setting.capacity
    loads.setflags(write=False)
    terms = Terms(trace.step, share * trace.step, setting.moves_per_hour)
    fleet = Fleet(trace, loads, terms)
    gpns = np.zeros(trace.steps, np.int64)
    lost = np.zeros(len(trace.tunnels))
    moved = 0
    for step in range(trace.steps):
        view = fleet.view(step)
        before = float(lost.sum())
        moves = (packer.mitigate if step % every else packer.plan)(view)
        if step:
            moved += len(moves)
            _lose(lost, share if moves else 1.0, loads[step], fleet)
        if moves:
            fleet.move(moves, step)
        if not step:
            fleet.house()
        if moves or not step:
            _lose(lost, 1 - share if step else 1.0, loads[step], fleet)
        fleet.lose((float(lost.sum()) - before) / max(float(loads[step].sum()), TOLERANCE))
        gpns[step] = fleet.running
        progress(step + 1)
    return Run(gpns, measure(loads, lost, gpns, moved, trace.step))


def _lose(lost: Floats, share: float, loads: Floats, fleet: Fleet) -> None:
    """Add what tunnels lose in this share of a step where they are."""
    sums = np.bincount(fleet.where, loads)
    if sums.max() > 1:
        lost += share * loads * (1 - 1 / np.maximum(1, sums))[fleet.where]
