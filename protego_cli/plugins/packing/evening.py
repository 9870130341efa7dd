"""Evening out the numbers of tunnels: what `spread` does.

1. Tunnels that are nowhere, or on GPNs that accept none, go to the GPN with the fewest that has room.
2. GPNs beyond their capacity give away their lightest tunnels, as many as it takes.
3. While one GPN has two more than another with room for its lightest tunnel, that moves there.

A GPN that does not run yet is asked for only in 1 and 2, and only where no other has room. No step undoes
one of these: 3 overfills nothing and makes the sum of the squared numbers smaller, so that it ends.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

import numpy as np

from protego_cli.control.packing.packing_view import NOWHERE, Move, PackingView
from protego_cli.plugins.packing.bins import Bins

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Bools, Ints


def plan(view: PackingView) -> list[Move]:
    evening = _Evening(view)
    moved = True
    while moved:  # what has left a GPN may have made room there
        before = evening.bins.at.copy()
        evening.settle()
        evening.relieve()
        evening.even_out()
        moved = not np.array_equal(before, evening.bins.at)
    return evening.bins.moves()


class _Evening:
    def __init__(self, view: PackingView) -> None:
        self.bins = Bins(view)
        self._counts: Ints = view.gpn_columns.tunnels.copy()
        self._running: Bools = view.gpn_columns.running.copy()
        self._there: list[list[tuple[float, int]]] = [
            [] for _ in self._counts
        ]  # movable ones, lightest first
        self._homeless: list[int] = []
        bins = self.bins
        for tunnel in np.flatnonzero(bins.movable)[
            np.argsort(bins.size[bins.movable], kind="stable")
        ].tolist():
            if bins.at[tunnel] == NOWHERE:
                self._homeless.append(tunnel)
            else:
                self._there[bins.at[tunnel]].append((float(bins.size[tunnel]), tunnel))

    def settle(self) -> None:
        closed = np.flatnonzero(~self.bins.accepting).tolist()
        leaving = [tunnel for gpn in closed for _, tunnel in self._there[gpn]]
        homeless = [tunnel for tunnel in self._homeless if self.bins.at[tunnel] == NOWHERE]
        for tunnel in (*homeless, *leaving):
            self._move(tunnel, self._emptiest(tunnel, must=True))

    def relieve(self) -> None:
        for gpn in np.flatnonzero(self.bins.accepting & (self.bins.room < 0)).tolist():
            for size, tunnel in list(self._there[gpn]):
                if self.bins.room[gpn] >= 0:
                    break
                if size > 0:
                    self._move(tunnel, self._emptiest(tunnel, must=True))

    def even_out(self) -> None:
        while self._one():
            pass

    def _one(self) -> bool:
        """Make one of the moves that even out, from the GPN with the most that can."""
        targets = self.bins.accepting & self._running
        if not targets.any():
            return False
        fewest = self._counts[targets].min()
        sources = np.flatnonzero(self.bins.accepting & (self._counts >= fewest + 2))
        for gpn in sources[np.argsort(-self._counts[sources], kind="stable")].tolist():
            if self._there[gpn]:
                _, tunnel = self._there[gpn][0]
                to = self._emptiest(tunnel, must=False)
                if to is not None and self._counts[gpn] - self._counts[to] >= 2:
                    self._move(tunnel, to)
                    return True
        return False

    def _emptiest(self, tunnel: int, *, must: bool) -> int | None:
        fits = self.bins.open_to(tunnel)
        running = np.flatnonzero(fits & self._running)
        if len(running):
            return int(running[self._counts[running].argmin()])
        return int(fits.argmax()) if must and fits.any() else None

    def _move(self, tunnel: int, to: int | None) -> None:
        if to is None:
            return
        source, entry = int(self.bins.at[tunnel]), (float(self.bins.size[tunnel]), tunnel)
        if source != NOWHERE:
            self._there[source].remove(entry)
            self._counts[source] -= 1
        self.bins.move(tunnel, to)
        insort(self._there[to], entry)
        self._counts[to] += 1
        self._running[to] = True
