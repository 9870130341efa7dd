"""A trace: what each tunnel carries in each of many steps of equal length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from protego_cli.control.packing.packing_view import Names
from protego_cli.errors import UsageError

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats

STEP: Final = 60.0  # seconds, where a trace does not say
MOST_VALUES: Final = 50_000_000  # of a trace: 400 MB
MOST_MBITS: Final = 1e9  # of a tunnel


class TraceError(UsageError):
    """A trace that cannot be used; the text names file, row and column."""


@dataclass(frozen=True, eq=False)
class Trace:
    name: str  # of its file
    tunnels: Names
    demand: Floats  # Mbit/s: a row for each step, a column for each tunnel; finite and not negative
    step: float = STEP  # seconds

    def __post_init__(self) -> None:
        self.demand.setflags(write=False)

    @property
    def steps(self) -> int:
        return len(self.demand)


def numbered(tunnels: int) -> Names:
    """Names for tunnels that have none."""
    return Names(f"tunnel-{number}" for number in range(1, tunnels + 1))


def make(name: str, demand: Floats, step: float = STEP) -> Trace:
    return Trace(name, numbered(demand.shape[1]), np.ascontiguousarray(demand, np.float64), step)
