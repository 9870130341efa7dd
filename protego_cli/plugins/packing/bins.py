"""GPNs as bins while a plan is made: what each carries, who is where, who has been moved.

Indices are those of the view's columns. A GPN whose tunnels are not all in the view (one is coming up there)
is never taken for empty.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from protego_cli.control.packing.packing_view import NOWHERE, TOLERANCE, Move, PackingView

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Bools, Floats, Ints

NO_GROUP: Final = -1


class Bins:
    def __init__(self, view: PackingView, fill: float = 1.0) -> None:
        """A GPN is full at `fill` of its capacity."""
        self._view = view
        gpns, tunnels = view.gpn_columns, view.tunnel_columns
        self.capacity: Floats = gpns.capacity
        self.limit: Floats = fill * gpns.capacity + TOLERANCE
        self.accepting: Bools = gpns.accepting
        self.load: Floats = gpns.load.copy()
        self.size: Floats = tunnels.load
        self.movable: Bools = tunnels.movable
        self.group: Ints = tunnels.group
        self.at: Ints = tunnels.gpn.copy()
        self.tunnels: Ints = np.bincount(self.at[self.at != NOWHERE], minlength=len(self.load))
        self.hidden: Bools = gpns.tunnels > self.tunnels

    @property
    def room(self) -> Floats:
        return self.limit - self.load

    def used(self) -> Bools:
        return (self.tunnels > 0) | self.hidden

    def on(self, gpn: int) -> Ints:
        """The tunnels that are there."""
        return np.flatnonzero(self.at == gpn)

    def alone(self, tunnel: int) -> bool:
        """On its GPN, which can carry it."""
        gpn = self.at[tunnel]
        return bool(
            self.tunnels[gpn] == 1
            and not self.hidden[gpn]
            and self.load[gpn] <= self.capacity[gpn] + TOLERANCE
        )

    def lightest(self, most: int = 1) -> list[int]:
        """The used GPNs with the least load, of those whose tunnels can all be moved; none without others."""
        stays = self.hidden.copy()
        stays[self.at[~self.movable & (self.at != NOWHERE)]] = True
        used = self.accepting & self.used()
        if used.sum() < 2:
            return []
        able = (used & ~stays).nonzero()[0]
        found: list[int] = able[np.argsort(self.load[able], kind="stable")][:most].tolist()
        return found

    def groups_on(self, gpn: int) -> set[int]:
        """The groups of which a tunnel is there."""
        return {*self.group[self.on(gpn)].tolist()} - {NO_GROUP} if self.tunnels[gpn] else set()

    def barred(self, tunnel: int) -> Ints:
        """GPNs where another tunnel of its group is."""
        group = self.group[tunnel]
        if group == NO_GROUP:
            return np.empty(0, np.int64)
        others = self.group == group
        others[tunnel] = False
        there: Ints = self.at[others & (self.at != NOWHERE)]
        return there

    def open_to(self, tunnel: int) -> Bools:
        """GPNs that have room for it and may take it; where it is, is none of them. One that is not used may
        be filled beyond the limit by a single tunnel.
        """
        fits: Bools = self.accepting & (self._open() >= self.size[tunnel])
        fits[self.barred(tunnel)] = False
        if self.at[tunnel] != NOWHERE:
            fits[self.at[tunnel]] = False
        return fits

    def copy(self) -> Self:
        """Another one, in which things can be moved, or to which this one can be restored."""
        other = copy.copy(self)
        other.at, other.load, other.tunnels = self.at.copy(), self.load.copy(), self.tunnels.copy()
        return other

    def restore(self, before: Self) -> None:
        """Have all where it was in this copy, which is used up by it."""
        self.at, self.load, self.tunnels = before.at, before.load, before.tunnels

    def roomiest(self) -> float:
        """The largest tunnel that any GPN could take, whatever its group."""
        return float(self._open()[self.accepting].max(initial=-np.inf))

    def _open(self) -> Floats:
        room: Floats = np.where(self.used(), self.room, self.capacity - self.load + TOLERANCE)
        return room

    def move(self, tunnel: int, to: int) -> None:
        source, size = self.at[tunnel], self.size[tunnel]
        if source != NOWHERE:
            self.load[source] -= size
            self.tunnels[source] -= 1
        self.load[to] += size
        self.tunnels[to] += 1
        self.at[tunnel] = to

    def lift(self, tunnels: list[int]) -> None:
        """Take them away from where they are."""
        there = self.at[tunnels]
        self._sum(there[there != NOWHERE], self.size[tunnels][there != NOWHERE], -1)
        self.at[tunnels] = NOWHERE

    def settle(self, tunnels: list[int], gpns: list[int]) -> None:
        """Put those that are nowhere on these GPNs, one for each."""
        self.at[tunnels] = gpns
        self._sum(self.at[tunnels], self.size[tunnels], 1)

    def _sum(self, gpns: Ints, sizes: Floats, sign: int) -> None:
        self.load += sign * np.bincount(gpns, sizes, len(self.load))
        self.tunnels += sign * np.bincount(gpns, minlength=len(self.load))

    def crowd(self, tunnels: list[int]) -> None:
        """Put those that are nowhere and fit nowhere where the most room is: better than no place at all."""
        limit, self.limit = self.limit, self.capacity + TOLERANCE
        for tunnel in sorted(tunnels, key=lambda each: -self.size[each]):
            fits = self.open_to(tunnel)
            gpn = int(np.where(fits if fits.any() else self.accepting, self.room, -np.inf).argmax())
            self.move(tunnel, gpn)
            for other in self.on(gpn).tolist():  # what was about to come there goes elsewhere if it can
                if self.room[gpn] >= 0 or not self.moved(other):
                    continue
                fits = self.open_to(other)
                if not fits.any():  # but for its group
                    fits = self.accepting & (self.room >= self.size[other])
                if fits.any():
                    self.move(other, int(fits.argmax()))
        self.limit = limit

    def moved(self, tunnel: int) -> bool:
        return bool(self.at[tunnel] != self._view.tunnel_columns.gpn[tunnel])

    def moves(self) -> list[Move]:
        """From where the view has them to where they are now."""
        ids, names = self._view.tunnel_columns.ids, self._view.gpn_columns.names
        moved = np.flatnonzero(self.at != self._view.tunnel_columns.gpn)
        return [Move(ids[tunnel], names[self.at[tunnel]]) for tunnel in moved]
