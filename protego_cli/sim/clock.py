"""The time column of a trace: which column is one, and how long its steps are."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from protego_cli.sim.trace import STEP

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats

TIMES: Final = frozenset({"time", "times", "t", "timestamp", "date", "datetime", "index", "step", "row"})
UNITS: Final = {
    **dict.fromkeys(("second", "seconds", "sec", "secs", "epoch"), 1.0),
    **dict.fromkeys(("minute", "minutes", "min", "mins"), 60.0),
    **dict.fromkeys(("hour", "hours"), 3600.0),
}
_SHORT: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}  # after a name of a time only
# of an index that a table was written with
_NAMELESS: Final = frozenset({"", "unnamed: 0", "__index_level_0__"})
_EVEN: Final = 0.01  # of a step that times may be off


def names_a_time(name: str) -> bool:
    """`time`, `minute`, `Time (s)`, and an index without a name."""
    words, known = _words(name), {*TIMES, *UNITS, *_SHORT}
    if name.strip().lower() in _NAMELESS:
        return True
    return bool(words) and (words[0] in TIMES or words[0] in UNITS) and known.issuperset(words)


def unit(name: str) -> float | None:
    """The seconds that a number in the column stands for, where its name says so."""
    for word in _words(name):
        seconds = UNITS.get(word, _SHORT.get(word))
        if seconds is not None:
            return seconds
    return None


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def moment(cell: str) -> datetime | None:
    """An ISO 8601 time; in UTC unless it says another zone, so that no clock is put back."""
    if "-" not in cell[1:]:
        return None  # of digits alone: rather a number
    try:
        at = datetime.fromisoformat(cell.strip())
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def step_of(times: Floats, seconds: float | None, fault: Callable[[int, str], Exception]) -> float:
    """The length of a step: of times in units of so many seconds. Numbers whose unit nobody knows count rows
    where they are one apart, else seconds. `fault` makes an exception of a row and what is wrong there.
    """
    if len(times) < 2:
        return STEP
    with np.errstate(over="ignore"):
        steps = np.diff(times)
    step = float(steps[0])
    if not step > 0:
        raise fault(1, f"has the time {times[1]:.12g} after {times[0]:.12g}")
    with np.errstate(invalid="ignore"):
        uneven = ~(np.abs(steps - step) <= _EVEN * step)
    if uneven.any():
        row = int(uneven.argmax()) + 1
        what = "a gap" if steps[row - 1] > step else "no even step"
        raise fault(
            row,
            f"has the time {times[row]:.12g} after {times[row - 1]:.12g}, in steps of {step:.12g}: {what}",
        )
    if seconds is None:
        return STEP if step == 1 else step
    return float(times[-1] - times[0]) / (len(times) - 1) * seconds


def is_ramp(column: Floats) -> bool:
    """Whether these numbers rise so evenly that they are times, and no tunnel's load."""
    if len(column) < 3:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.diff(column)
        return bool(steps[0] > 0 and (np.abs(steps - steps[0]) <= 1e-9 * steps[0]).all())
