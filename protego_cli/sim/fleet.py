"""The GPNs of a simulation, and which tunnel is on which.

GPNs that run come first, in the order of their launch; then those that may be launched, more than any packing
of the load could take, but never more than there are tunnels. A GPN exists while a tunnel is on it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from protego_cli.control.packing.packing_view import (
    NOWHERE,
    GpnColumns,
    Names,
    PackingView,
    Terms,
    TunnelColumns,
)
from protego_cli.control.packing.placement import Move
from protego_cli.sim.trace import Trace

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Bools, Floats, Ints

LATELY: Final = 3600.0  # seconds of which moves are counted, and which the history goes back
CAPACITY: Final = 1.0
ROOM: Final = 4  # GPNs that may be launched for each one that the load would fill: no policy wastes more
FEWEST: Final = 8  # that may be


class Fleet:
    def __init__(self, trace: Trace, loads: Floats, terms: Terms) -> None:
        """`loads` are the trace's demands in GPNs."""
        count = len(trace.tunnels)
        self.where: Ints = np.full(count, NOWHERE)
        self.running = 0
        self._ids = trace.tunnels
        self._loads = loads
        self._terms = terms
        self._launched = 0
        self._groups = np.full(count, -1)
        self._lately: Ints = np.zeros(count, np.int64)  # moves of each tunnel in the last hour
        self._recent: deque[tuple[int, Ints]] = deque()  # (step, who moved then), no older than that
        self._hour = max(1, round(LATELY / terms.step))  # steps
        self._unserved: deque[float] = deque(maxlen=self._hour)
        self._offer(Names(), 0)

    def view(self, step: int) -> PackingView:
        """What a policy sees when the loads of this step have been measured; nothing that comes later."""
        now, loads = step * self._terms.step, self._loads[step]
        self._forget(step)
        needed = ROOM * math.ceil(loads.sum() / CAPACITY)
        if len(self._names) - self.running < min(needed, len(self._ids)):
            self._offer(Names(self._names[: self.running]), needed)
        placed = self.where != NOWHERE
        here, of = (self.where, loads) if placed.all() else (self.where[placed], loads[placed])
        size = len(self._names)
        gpns = GpnColumns(
            names=self._names,
            capacity=self._capacity,
            load=np.bincount(here, of, size).astype(np.float64, copy=False),
            accepting=self._accepting,
            tunnels=np.bincount(here, minlength=size),
            running=self._runs,
        )
        movable = self._lately < self._terms.moves_per_hour
        tunnels = TunnelColumns(self._ids, loads, self.where, self._lately, movable, self._groups)
        history = partial(self._history, step)
        return PackingView(now, gpns, tunnels, history, self._terms, tuple(self._unserved))

    def lose(self, share: float) -> None:
        """Of the demand of the step that ends, so much was not served."""
        self._unserved.append(share)

    def move(self, moves: Sequence[Move], step: int) -> None:
        """Make these moves, launch what they need, and retire what they leave empty."""
        rows, columns = self._ids.position, self._names.position
        who = np.array([rows[move.tunnel] for move in moves], np.int64)
        there = self.where.copy()  # views that were handed out keep what they showed
        there[who] = [columns[move.to] for move in moves]
        if step > 0:  # the first placement is no move
            self._lately = self._lately.copy()
            self._lately[who] += 1
            self._recent.append((step, who))
        self.where = there
        self._settle()

    def house(self) -> None:
        """Give each tunnel that is nowhere a GPN of its own."""
        homeless = np.flatnonzero(self.where == NOWHERE)
        if len(homeless):
            self._offer(Names(self._names[: self.running]), len(homeless))
            self.where = self.where.copy()
            self.where[homeless] = self.running + np.arange(len(homeless))
            self._settle()

    def _settle(self) -> None:
        """Retire what is empty, and list what runs before what could."""
        used = np.bincount(self.where[self.where != NOWHERE], minlength=len(self._names)) > 0
        numbers = np.flatnonzero(used)
        if len(numbers) == self.running and used[: self.running].all():
            return
        self._launched += max(0, int(numbers[-1]) - self.running + 1)
        self.where = np.append(np.cumsum(used) - 1, NOWHERE)[self.where]  # NOWHERE, -1, finds itself
        self.running = len(numbers)
        self._offer(Names(self._names[number] for number in numbers.tolist()), 0)

    def _offer(self, running: Names, needed: int) -> None:
        """List the GPNs that run, and at least so many that could."""
        spares = min(len(self._ids), max(needed, len(running), FEWEST))
        first = self._launched + 1
        self._names = Names((*running, *(f"gpn-{number}" for number in range(first, first + spares))))
        size = len(self._names)
        self._capacity = np.full(size, CAPACITY)
        self._accepting: Bools = np.ones(size, np.bool_)
        self._runs = np.arange(size) < len(running)

    def _forget(self, step: int) -> None:
        """Moves of more than an hour ago count no more."""
        while self._recent and self._recent[0][0] <= step - self._hour:
            self._lately = self._lately.copy()
            self._lately[self._recent.popleft()[1]] -= 1

    def _history(self, step: int, _: Names) -> Floats:
        return self._loads[max(0, step - self._hour) : step]
