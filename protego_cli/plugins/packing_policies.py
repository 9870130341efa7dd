"""Built-in packing policies.

`spread` gives each tunnel to the GPN that has the fewest, the first among equals; its plan evens the numbers
out. It looks at loads only to overfill nothing: where a GPN is beyond its capacity and no other has room, it
asks for one more. It never gives one up.

`first-fit-decreasing` uses as few GPNs as it can, each filled to `WATERMARK` of its capacity by the tunnels'
measured loads. Its plan

1. takes away from GPNs beyond the watermark, and from those that accept none, what fits elsewhere, the
   heaviest first; and nothing moves that has no reason to;
2. packs all tunnels anew, the heaviest first, each into the first GPN with room; where that takes fewer GPNs,
   these are the moves instead. Among tunnels of one load those go first that are on the first GPNs, so that
   they stay.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from protego_cli.control.placement import (
    TOLERANCE,
    GpnView,
    Move,
    PackingPolicy,
    PackingView,
    TunnelView,
)
from protego_cli.hookspecs import hookimpl

_NOWHERE: Final = ""  # no GPN has this name
WATERMARK: Final = 0.8  # of a GPN's capacity; the rest is for what grows before the next plan


class Spread:
    name = "spread"

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        return min(view.candidates(tunnel.load), key=lambda gpn: gpn.tunnels).name

    def plan(self, view: PackingView) -> Sequence[Move]:
        gpns = {gpn.name: gpn for gpn in view.gpns}
        there: dict[str, list[TunnelView]] = {name: [] for name in gpns}
        homeless = [tunnel for tunnel in view.tunnels if tunnel.movable and tunnel.gpn not in gpns]
        if homeless:  # as though they were on a GPN that accepts none
            gpns[_NOWHERE] = GpnView(_NOWHERE, 0.0, 0.0, accepting=False, tunnels=len(homeless))
            there[_NOWHERE] = homeless
        for tunnel in view.tunnels:
            if tunnel.movable and tunnel.gpn in gpns:
                there[tunnel.gpn].append(tunnel)
        for tunnels in there.values():
            tunnels.sort(key=_lightest)
        to: dict[str, str] = {}
        while step := _evening(gpns, there):
            source, target = step
            tunnel = there[source.name].pop(_next(source, there[source.name]))
            insort(there[target.name], tunnel, key=_lightest)
            to[tunnel.id] = target.name
            for gpn, sign in ((source, -1), (target, 1)):
                gpns[gpn.name] = gpn._replace(load=gpn.load + sign * tunnel.load, tunnels=gpn.tunnels + sign)
        return [
            Move(tunnel.id, to[tunnel.id])
            for tunnel in view.tunnels
            if to.get(tunnel.id, tunnel.gpn) != tunnel.gpn
        ]


def _lightest(tunnel: TunnelView) -> tuple[float, str]:
    return tunnel.load, tunnel.id


def _evening(
    gpns: dict[str, GpnView], there: Mapping[str, list[TunnelView]]
) -> tuple[GpnView, GpnView] | None:
    """From where to where the next tunnel goes: from GPNs that accept none, from those beyond their capacity,
    then from the one with the most.
    """
    sources = [gpn for gpn in gpns.values() if there[gpn.name]]
    for source in sorted(sources, key=lambda gpn: (gpn.accepting, gpn.has_room(0), -gpn.tunnels)):
        load = there[source.name][_next(source, there[source.name])].load
        must = not source.accepting or (not source.has_room(0) and load > 0)
        open_to = [gpn for gpn in gpns.values() if gpn.accepting and gpn.has_room(load)]
        running = (gpn for gpn in open_to if gpn.running)
        target = min(running, key=lambda gpn: gpn.tunnels, default=None)
        if target is None and must:
            target = next(iter(open_to), None)
        if target is not None and (must or source.tunnels - target.tunnels >= 2):
            if not target.running:
                gpns[target.name] = target = target._replace(running=True)
            return source, target
    return None


def _next(source: GpnView, tunnels: Sequence[TunnelView]) -> int:
    """Which tunnel leaves: the lightest; of a GPN beyond its capacity, the lightest that is any relief."""
    if source.has_room(0):
        return 0
    return next((index for index, tunnel in enumerate(tunnels) if tunnel.load > 0), 0)


class FirstFitDecreasing:
    name = "first-fit-decreasing"

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        candidates = view.candidates(tunnel.load)
        calm = (gpn for gpn in candidates if gpn.load + tunnel.load <= _limit(gpn))
        first = next(calm, None) or min(candidates, key=lambda gpn: gpn.load / gpn.capacity)
        return first.name

    def plan(self, view: PackingView) -> Sequence[Move]:
        bins = [gpn for gpn in view.gpns if gpn.accepting]
        if not bins:
            return []
        relieved = _relieve(bins, view)
        packed = _pack(bins, view.tunnels)
        here = {tunnel.id: tunnel.gpn for tunnel in view.tunnels}
        if packed is not None and len(set(packed.values())) < len({*(here | dict(relieved)).values()}):
            return [Move(tunnel, to) for tunnel, to in packed.items() if to != here[tunnel]]
        return relieved


def _limit(gpn: GpnView) -> float:
    return WATERMARK * gpn.capacity + TOLERANCE


def _decreasing(tunnels: Iterable[TunnelView], order: dict[str, int]) -> list[TunnelView]:
    last = len(order)
    return sorted(tunnels, key=lambda tunnel: (-tunnel.load, order.get(tunnel.gpn or "", last), tunnel.id))


def _pack(bins: Sequence[GpnView], tunnels: Sequence[TunnelView]) -> dict[str, str] | None:
    """First fit, decreasing: a GPN for every tunnel; None where they do not all fit below the watermark.

    What a GPN carries that cannot be moved stays there. A tunnel that alone is beyond the watermark gets a
    GPN to itself.
    """
    order = {gpn.name: index for index, gpn in enumerate(bins)}
    used = [gpn.load for gpn in bins]
    for tunnel in tunnels:
        if tunnel.movable and tunnel.gpn in order:
            used[order[tunnel.gpn]] -= tunnel.load
    fixed = {tunnel.gpn for tunnel in tunnels if not tunnel.movable}
    free = _FirstFit([_limit(gpn) - load for gpn, load in zip(bins, used, strict=True)])
    empty = [gpn.name not in fixed for gpn in bins]
    packed: dict[str, str] = {
        tunnel.id: tunnel.gpn for tunnel in tunnels if not tunnel.movable and tunnel.gpn
    }
    for tunnel in _decreasing((tunnel for tunnel in tunnels if tunnel.movable), order):
        index = free.first(tunnel.load)
        if index is None:
            alone = (
                i for i, gpn in enumerate(bins)
                if empty[i] and used[i] + tunnel.load <= gpn.capacity + TOLERANCE
            )  # fmt: skip
            index = next(alone, None)
            if index is None:
                return None
        empty[index] = False
        used[index] += tunnel.load
        free.take(index, tunnel.load)
        packed[tunnel.id] = bins[index].name
    return packed


def _relieve(bins: Sequence[GpnView], view: PackingView) -> list[Move]:
    """Moves away from where a tunnel should not stay, to where it may; as many as there is room for."""
    order = {gpn.name: index for index, gpn in enumerate(bins)}
    free = _FirstFit([_limit(gpn) - gpn.load for gpn in bins])
    calm = {gpn.name for gpn in bins if gpn.load <= _limit(gpn) + TOLERANCE}
    waiting = [tunnel for tunnel in view.tunnels if tunnel.movable and tunnel.gpn not in calm]
    moves: list[Move] = []
    moved = True
    while moved:  # what has left a GPN may have made room there
        moved = False
        for tunnel in _decreasing(waiting, order):
            source = order.get(tunnel.gpn or "")
            if source is not None and (free.left(source) >= -TOLERANCE or tunnel.load <= 0):
                continue  # relieved by now, or no relief
            index = free.first(tunnel.load)
            if index is None:
                continue
            free.take(index, tunnel.load)
            if source is not None:
                free.take(source, -tunnel.load)
            moves.append(Move(tunnel.id, bins[index].name))
            moved = True
        gone = {move.tunnel for move in moves}
        waiting = [tunnel for tunnel in waiting if tunnel.id not in gone]
    return moves


class _FirstFit:
    """The first of many bins with room, in logarithmic time: a tree of the most that is free in each half."""

    def __init__(self, free: Sequence[float]) -> None:
        self._leaves = 1
        while self._leaves < len(free):
            self._leaves *= 2
        padding = [-1.0] * (self._leaves - len(free))
        self._most = [0.0] * self._leaves + list(free) + padding
        for node in range(self._leaves - 1, 0, -1):
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])

    def first(self, size: float) -> int | None:
        if self._most[1] < size:
            return None
        node = 1
        while node < self._leaves:
            node = 2 * node if self._most[2 * node] >= size else 2 * node + 1
        return node - self._leaves

    def left(self, index: int) -> float:
        return self._most[self._leaves + index]

    def take(self, index: int, size: float) -> None:
        node = self._leaves + index
        self._most[node] -= size
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])


@hookimpl
def protego_packing_policies() -> Sequence[PackingPolicy]:
    return [Spread(), FirstFitDecreasing()]
