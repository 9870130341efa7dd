"""What each GPN may be asked for next: the loads, how they should go on, and how far off that was lately.

The forecast of a load is its mean of the last hour plus φ times its distance from it, where φ is how much of
such a distance was left one step later, over all tunnels. Its error is known for each step of the history.
What counts for a GPN is the error of the sum, step by step: tunnels that rise together are seen to. Where
the history is short, a tunnel is taken to be off by `GUESS` of its load besides.

From the forecast follows what a GPN is expected to leave unserved: what its load is beyond its capacity now,
and what it may be in the next step for as long as no reaction takes effect, a share ρ of the step. With room
for z standard deviations σ of a normal error above the forecast the latter is ρ σ (φ(z) - z (1 - Φ(z))).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from protego_cli.control.packing.packing_view import NOWHERE, TOLERANCE, PackingView
from protego_cli.plugins.packing.bins import NO_GROUP, Bins

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Bools, Floats, Ints

GUESS: Final = 0.1
GUESSED: Final = 5  # steps of history that the guess weighs as much as
SHORT: Final = 10  # steps of history from which on φ is looked for; before, loads are expected to stay

_FINE: Final = 512  # entries of the table for each unit of z
_PIECE: Final = 1 << 18  # multiplications that BLAS makes in one thread
_FAR: Final = 6  # z beyond which nothing is expected


def _excess() -> Floats:
    z = np.arange(_FAR * _FINE + 1) / _FINE
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    above = np.array([math.erfc(each / math.sqrt(2)) / 2 for each in z])
    table: Floats = np.append(density - z * above, 0.0)
    return table


_EXCESS: Final = _excess()  # E max(0, X - z) of a standard normal X, for z >= 0


class Outlook(Bins):
    def __init__(self, view: PackingView, fill: float) -> None:
        super().__init__(view, fill)
        terms = view.terms
        self.reaction = min(1.0, terms.reaction / terms.step)  # ρ
        forecast, self._errors = _forecast(view.history, self.size)
        steps = self._errors.shape[1]
        weight = steps + GUESSED
        self._errors /= math.sqrt(weight)  # so that a sum of squares is a variance
        self._change: Floats = forecast - self.size
        self._own: Floats = np.einsum("ij,ij->i", self._errors, self._errors)
        self._guess: Floats = GUESSED / weight * (GUESS * self.size) ** 2
        gpns = len(self.load)
        seated = np.flatnonzero(self.at != NOWHERE)
        there = self.at[seated]
        self._drift: Floats = np.zeros((gpns, steps))  # the errors of each GPN
        if len(seated):
            order = seated[np.argsort(there, kind="stable")]
            used = np.flatnonzero(self.tunnels)
            starts = np.cumsum(self.tunnels)[used] - self.tunnels[used]
            self._drift[used] = np.add.reduceat(self._errors[order], starts, axis=0)
        self._expected: Floats = self.load + _sums(there, self._change[seated], gpns)
        self._guesses: Floats = _sums(there, self._guess[seated], gpns)
        self._variance: Floats = np.einsum("ij,ij->i", self._drift, self._drift) + self._guesses
        self._grouped = bool((self.group != NO_GROUP).any())
        self._left: Floats | None = None  # unserved, as long as nothing has moved

    def move(self, tunnel: int, to: int) -> None:
        source = self.at[tunnel]
        super().move(tunnel, to)
        self._left = None
        for gpn, sign in ((source, -1.0), (to, 1.0)):
            if gpn == NOWHERE:
                continue
            drift = self._drift[gpn]
            drift += sign * self._errors[tunnel]
            self._expected[gpn] += sign * (self.size[tunnel] + self._change[tunnel])
            self._guesses[gpn] += sign * self._guess[tunnel]
            self._variance[gpn] = drift @ drift + self._guesses[gpn]

    def copy(self) -> Self:
        other = super().copy()
        other._expected, other._drift = self._expected.copy(), self._drift.copy()
        other._guesses, other._variance = self._guesses.copy(), self._variance.copy()
        return other

    def restore(self, before: Self) -> None:
        super().restore(before)
        self._expected, self._drift = before._expected, before._drift
        self._guesses, self._variance = before._guesses, before._variance
        self._left = before._left

    def roomiest_used(self, most: int) -> Ints:
        """The used GPNs that accept; of more than so many, those with the most room."""
        gpns = (self.accepting & self.used()).nonzero()[0]
        if len(gpns) <= most:
            return gpns
        room = (self.capacity - np.maximum(self.load, self._expected))[gpns]
        chosen: Ints = gpns[np.sort(np.argpartition(-room, most)[:most])]
        return chosen

    def unserved(self) -> Floats:
        """What each GPN is expected to leave unserved in a step."""
        if self._left is None:
            room, later = self.capacity - self.load, self.capacity - self._expected
            self._left = self._unserved(room, later, self._variance)
        return self._left

    def at_least(self, gpn: int, others: Ints) -> float:
        """What the others leave unserved with the tunnels of this GPN besides, however these are spread: that
        is convex in the room, so it is least where all have the same room for their deviation.
        """
        single = self.tunnels[others] == 1  # what one asks for beyond its GPN is not for others to make up
        rooms, laters = ((self.capacity - each)[others] for each in (self.load, self._expected))
        room = np.where(single, np.maximum(rooms, 0.0), rooms).sum() - self.load[gpn]
        later = np.where(single, np.maximum(laters, 0.0), laters).sum() - self._expected[gpn]
        deviation = np.sqrt(np.maximum(self._variance[others], 0.0)).sum()
        return float(self._unserved(room, later, deviation * deviation))

    def without(self, tunnels: Ints) -> Floats:
        """The same of the GPN where it is, for each of these tunnels, if it leaves."""
        gpn = self.at[tunnels]
        together = np.einsum("ij,ij->i", self._drift[gpn], self._errors[tunnels])
        variance = self._variance[gpn] - 2 * together + self._own[tunnels] - self._guess[tunnels]
        room = self.capacity[gpn] - self.load[gpn] + self.size[tunnels]
        later = self.capacity[gpn] - self._expected[gpn] + self.size[tunnels] + self._change[tunnels]
        return self._unserved(room, later, variance)

    def joined(self, tunnels: Ints, gpns: Ints) -> tuple[Floats, Bools]:
        """The same of each of these GPNs if one of these tunnels joins it, a row for each tunnel; and whether
        it may: there is room, and no other tunnel of its group.
        """
        size, change = self.size[tunnels, None], self._change[tunnels, None]
        variance = _products(self._errors[tunnels], self._drift[gpns])
        variance *= 2
        variance += self._variance[gpns]
        variance += (self._own + self._guess)[tunnels, None]
        room = (self.capacity - self.load)[gpns] - size
        later = (self.capacity - self._expected)[gpns] - size - change
        may: Bools = (room >= -TOLERANCE) & self.accepting[gpns]
        may &= gpns != self.at[tunnels, None]
        if self._grouped:
            for row, tunnel in enumerate(tunnels.tolist()):
                may[row, np.isin(gpns, self.barred(tunnel))] = False
        return self._unserved(room, later, variance), may

    def _unserved(self, room: Floats, later: Floats, variance: Floats) -> Floats:
        """`room` is left now, `later` is expected to be left in the next step."""
        deviation = np.sqrt(np.maximum(variance, 1e-18))
        place = np.minimum(np.abs(later) * _FINE / deviation, len(_EXCESS) - 1)
        beyond: Floats = _EXCESS[place.astype(np.intp)]
        beyond *= deviation
        beyond -= np.minimum(later, 0.0)
        beyond *= self.reaction
        beyond -= (1 - self.reaction) * np.minimum(room, 0.0)
        return beyond


def _sums(gpns: Ints, values: Floats, size: int) -> Floats:
    return np.bincount(gpns, values, size).astype(np.float64, copy=False)  # of nothing it is integers


def _products(rows: Floats, columns: Floats) -> Floats:
    """Of each of these with each of those, in pieces so small that no thread is woken for them: on a busy
    machine that takes ten times as long.
    """
    piece = max(1, _PIECE // max(1, columns.size))
    found: Floats = np.empty((len(rows), len(columns)))
    for first in range(0, len(rows), piece):
        np.matmul(rows[first : first + piece], columns.T, out=found[first : first + piece])
    return found


def _forecast(history: Floats, now: Floats) -> tuple[Floats, Floats]:
    """The loads of the next step; and how far off the forecast of each was before, a row for each tunnel."""
    steps = len(history)
    loads = np.empty((len(now), steps + 1))
    loads[:, :steps] = history.T
    loads[:, steps] = now
    if steps < SHORT:
        return now, np.diff(loads)
    mean = loads.mean(axis=1)
    loads -= mean[:, None]
    kept = _kept(loads)
    forecast: Floats = mean + kept * loads[:, steps]
    return forecast, loads[:, 1:] - kept * loads[:, :-1]


def _kept(distances: Floats) -> float:
    """φ: by least squares over all tunnels, corrected for the means being those of short samples."""
    steps = distances.shape[1] - 1
    earlier = distances[:, :-1]
    squares = float(np.einsum("ij,ij->", earlier, earlier))
    if squares <= 0:
        return 1.0
    found = float(np.einsum("ij,ij->", earlier, distances[:, 1:])) / squares
    corrected = found + (1 + 3 * found) / steps
    return float(min(max(corrected, 0.0), 1.0))
