"""Packing of the heaviest tunnels first: what `protego`, `first-fit-decreasing` and `best-fit` do.

A plan

1. relieves: takes away from GPNs beyond their limit, and from those that accept none, what fits elsewhere,
   the heaviest first; and gives tunnels without a GPN one;
2. consolidates: packs all tunnels anew, and where that takes fewer GPNs, these are the moves instead.

Mitigation is the first half. Among tunnels of one load those go first that are on the first GPNs, so that
they stay. Nothing moves that has no reason to.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, Protocol

import numpy as np

from protego_cli.control.packing.packing_view import NOWHERE, TOLERANCE, Move, PackingView
from protego_cli.plugins.packing.bins import Bins

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Bools, Ints


class Rule(Protocol):
    """Into which of the GPNs with room a tunnel goes."""

    def choose(self, bins: Bins, fits: Bools) -> int:
        """One of those that fit."""
        ...

    def pack(self, sizes: list[float], groups: list[int], bins: list[Room]) -> list[int] | None:
        """A bin for each of these sizes, which decrease; None where they do not all find one."""
        ...


class Room:
    """A bin while all is packed anew."""

    __slots__ = ("groups", "index", "left", "used")

    def __init__(self, index: int, left: float, used: bool, groups: set[int]) -> None:
        self.index = index
        self.left = left
        self.used = used
        self.groups = groups  # that are there, of which no other tunnel may come

    def take(self, size: float, group: int) -> None:
        self.left -= size
        self.used = True
        if group >= 0:
            self.groups.add(group)


class FirstFit:
    """The first one with room."""

    def choose(self, bins: Bins, fits: Bools) -> int:
        return int(fits.argmax())

    def pack(self, sizes: list[float], groups: list[int], bins: list[Room]) -> list[int] | None:
        """Bin after bin takes the largest that still fits: the same as one tunnel after the other, faster."""
        waiting = list(range(len(sizes)))[::-1]
        ascending = sizes[::-1]
        found = [NOWHERE] * len(sizes)
        for room in bins:
            at = len(ascending)
            while (at := bisect_right(ascending, room.left, 0, at) - 1) >= 0:
                item = waiting[at]
                if groups[item] not in room.groups:
                    room.take(ascending[at], groups[item])
                    found[item] = room.index
                    del waiting[at], ascending[at]
            if not waiting:
                return found
        return None if waiting else found


class BestFit:
    """The fullest one with room; one that is not used yet where no other has any."""

    def choose(self, bins: Bins, fits: Bools) -> int:
        used = fits & bins.used()
        return int(np.where(used, bins.room, np.inf).argmin()) if used.any() else int(fits.argmax())

    def pack(self, sizes: list[float], groups: list[int], bins: list[Room]) -> list[int] | None:
        rooms = sorted((room.left, place) for place, room in enumerate(bins) if room.used)
        unused = [place for place, room in enumerate(bins) if not room.used]
        found = []
        for size, group in zip(sizes, groups, strict=True):
            at = bisect_left(rooms, (size, -1))
            while at < len(rooms) and group in bins[rooms[at][1]].groups:
                at += 1
            if at < len(rooms):
                _, place = rooms.pop(at)
            else:
                fresh = next((place for place in unused if bins[place].left >= size), None)
                if fresh is None:
                    return None
                unused.remove(place := fresh)
            bins[place].take(size, group)
            insort(rooms, (bins[place].left, place))
            found.append(bins[place].index)
        return found


def mitigate(view: PackingView, fill: float, rule: Rule) -> list[Move]:
    bins = Bins(view, fill)
    _relieve(bins, rule)
    return bins.moves()


def plan(view: PackingView, fill: float, rule: Rule) -> list[Move]:
    bins = Bins(view, fill)
    _relieve(bins, rule)
    used = int(bins.used().sum())
    if used > _fewest(bins):
        anew = bins.copy()  # relieved: what found a place is at home there
        if _consolidate(anew, rule) and int(anew.used().sum()) < used:
            return anew.moves()
    return bins.moves()


def _decreasing(bins: Bins, tunnels: Ints) -> list[int]:
    home = np.where(bins.at == NOWHERE, len(bins.load), bins.at)[tunnels]
    order: list[int] = tunnels[np.lexsort((tunnels, home, -bins.size[tunnels]))].tolist()
    return order


def _relieve(bins: Bins, rule: Rule) -> None:
    _leave(bins, rule, ~bins.accepting | (bins.load > bins.limit))
    if _crowd(bins):
        _leave(bins, rule, ~bins.accepting | (bins.load > bins.limit))


def shelter(bins: Bins, rule: Rule) -> None:
    """A place for tunnels that are nowhere or where none should be, and nothing else."""
    _leave(bins, rule, ~bins.accepting)
    _crowd(bins)


def _crowd(bins: Bins) -> bool:
    """Put what is still nowhere somewhere."""
    homeless = np.flatnonzero((bins.at == NOWHERE) & bins.movable)
    if not len(homeless) or not bins.accepting.any():
        return False
    bins.crowd(homeless.tolist())
    return True


def _leave(bins: Bins, rule: Rule, uneasy: Bools) -> None:
    """Move away from these GPNs, and from nowhere, to where there is room."""
    homeless = bins.at == NOWHERE
    if not uneasy[bins.at[~homeless]].any() and not homeless.any():
        return
    away = homeless.copy()
    away[~homeless] = uneasy[bins.at[~homeless]]
    waiting = _decreasing(bins, np.flatnonzero(away & bins.movable))
    moved, most = True, bins.roomiest()
    while moved:  # what has left a GPN may have made room there
        moved = False
        for tunnel in list(waiting):
            if bins.size[tunnel] > most:
                continue
            source = bins.at[tunnel]
            closed = source == NOWHERE or not bins.accepting[source]
            calm = not closed and bins.load[source] <= bins.limit[source]
            if calm or (not closed and (bins.size[tunnel] <= 0 or bins.alone(tunnel))):
                continue  # relieved by now, or no relief
            fits = bins.open_to(tunnel)
            if fits.any():
                bins.move(tunnel, rule.choose(bins, fits))
                waiting.remove(tunnel)
                moved, most = True, bins.roomiest()


def _fewest(bins: Bins) -> int:
    """No packing uses fewer GPNs: that many of the largest hold the sum of all loads."""
    room = np.sort(np.maximum(bins.limit, bins.load))[::-1]
    return int(np.searchsorted(np.cumsum(room), bins.load.sum() - TOLERANCE)) + 1


def _consolidate(bins: Bins, rule: Rule) -> bool:
    """Pack all that can be moved anew; False where they do not all find a GPN.

    A tunnel that is beyond the limit of every GPN gets one to itself.
    """
    order = _decreasing(bins, np.flatnonzero(bins.movable))
    home = bins.at.copy()
    bins.lift(order)
    used, left = bins.used().tolist(), bins.room.tolist()
    rooms = [
        Room(
            gpn,
            left[gpn],
            used[gpn],
            bins.groups_on(gpn),
        )
        for gpn in np.flatnonzero(bins.accepting).tolist()
    ]
    beyond = max((float(bins.limit[room.index]) for room in rooms), default=0.0)
    alone = int(np.searchsorted(-bins.size[order], -beyond))
    for tunnel in order[:alone]:
        free = [room for room in rooms if not room.used]
        if not free:
            return False
        found = max(free, key=lambda room: (room.left, room.index == home[tunnel], -room.index))
        bins.move(tunnel, found.index)
        rooms.remove(found)
    rest = order[alone:]
    packed = rule.pack(bins.size[rest].tolist(), bins.group[rest].tolist(), rooms)
    if packed is None:
        return False
    bins.settle(rest, packed)
    return True
