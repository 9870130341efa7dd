"""A trace from counters of bytes, read at even intervals. Pure: the counts come in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from protego_cli.control.packing.packing_view import Names
from protego_cli.sim.trace import MOST_VALUES, Trace, TraceError


class Recorder:
    """Mbit/s of each tunnel in each interval, as whole ones pass."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._counts: dict[str, int] | None = None
        self._columns: dict[str, int] = {}  # in the order in which tunnels were first seen
        self._rows: list[list[float]] = []  # each as long as there were tunnels then

    @property
    def steps(self) -> int:
        return len(self._rows)

    @property
    def tunnels(self) -> int:
        return len(self._columns)

    @property
    def full(self) -> bool:
        """Another step would be more than a trace may hold."""
        return (self.steps + 1) * self.tunnels > MOST_VALUES

    def feed(self, counts: Mapping[str, int], steps: int = 1) -> None:
        """Bytes of each tunnel since ever, so many intervals after the last ones (more than one where reading
        failed). A counter that went back has begun anew; a tunnel that is new has counted since the last.
        """
        before, self._counts = self._counts, dict(counts)
        if before is None:
            self._columns = {tunnel: column for column, tunnel in enumerate(counts)}
            return
        for tunnel in counts:
            self._columns.setdefault(tunnel, len(self._columns))
        passed = [0.0] * len(self._columns)
        for tunnel, count in counts.items():
            last = before.get(tunnel, 0)
            passed[self._columns[tunnel]] = count - last if count >= last else count
        row = [each * 8e-6 / (self._interval * steps) for each in passed]
        self._rows += [row] * steps

    def trace(self, name: str) -> Trace:
        """Raises TraceError where no interval has passed, or no tunnel was seen."""
        if not self._rows or not self._columns:
            what = "no tunnel was there" if self._rows else "no whole interval has passed"
            raise TraceError(f"{name}: not written: {what}")
        demand = np.zeros((len(self._rows), len(self._columns)))
        for step, row in enumerate(self._rows):
            demand[step, : len(row)] = row
        return Trace(name, Names(self._columns), np.round(demand, 6), self._interval)
