"""A trace from what was read of a file, whatever its format, if the values make one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from protego_cli.control.packing.packing_view import Names
from protego_cli.sim.clock import step_of
from protego_cli.sim.trace import MOST_MBITS, STEP, Trace, TraceError

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats

Clock = tuple["Floats", float | None]  # times, and the seconds that one of them stands for, if that is known
Fault = Callable[[int, int | None, str], TraceError]  # of (row, column, what is wrong there), from 0


def finished(
    name: str, names: Sequence[str], demand: Floats, clock: Clock | None, step: float | None, fault: Fault
) -> Trace:
    """A trace of what was read, if the values make one."""
    if not demand.shape[1]:
        raise TraceError(f"{name}: has a column of times, and none of a tunnel")
    with np.errstate(invalid="ignore"):
        bad = ~((demand >= 0) & (demand <= MOST_MBITS))
    if bad.any():
        row, column = divmod(int(bad.argmax()), demand.shape[1])
        raise fault(row, column, _why(float(demand[row, column])))
    for index, each in enumerate(names):
        if not each:
            raise TraceError(f"{name}: column {index + 1} of the tunnels has no name")
    for each, count in Counter(names).items():
        if count > 1:
            raise TraceError(f"{name}: {count} columns have the name {each!r}")
    if clock is not None:
        told = step_of(*clock, lambda row, what: fault(row, None, what))
        step = told if step is None else step
    return Trace(name, Names(names), demand, STEP if step is None else step)


def _why(value: float) -> str:
    if value < 0:
        return f"{value:g} is negative"
    return f"{value:g} is beyond {MOST_MBITS:g} Mbit/s" if value == value else "NaN is no number: a gap"
