"""Built-in packing policies.

`spread` gives each tunnel to the GPN that has the fewest, the first among equals; its plan evens the numbers
out. It looks at loads only to overfill nothing: where a GPN is beyond its capacity and no other has room, it
asks for one more. It never gives one up.

The others use as few GPNs as they can. How they calculate is in `packing/`, which is loaded when first asked.

- `protego` is the paper's: first-fit-decreasing at every interval, GPNs filled to their capacity, and hot
  spots relieved as soon as they are seen.
- `first-fit-decreasing` is the same with a fifth of each GPN kept free for what grows before the next plan.
- `best-fit` is `protego` with best-fit-decreasing.
- `sticky` relieves GPNs that are overfull, empties the lightest, and moves little.
- `predictive` does so by a forecast: it keeps as much room as it takes to serve nearly all demand.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from protego_cli.control.placement import (
    TOLERANCE,
    GpnView,
    Move,
    PackingPolicy,
    PackingView,
    TunnelView,
)
from protego_cli.hookspecs import hookimpl

if TYPE_CHECKING:  # numpy comes with it
    from protego_cli.plugins.packing.decreasing import Rule

_NOWHERE: Final = ""  # no GPN has this name
WATERMARK: Final = 0.8  # of a GPN's capacity; the rest is for what grows before the next plan


class Spread:
    name = "spread"

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        return min(apart(tunnel, view), key=lambda gpn: gpn.tunnels).name

    def plan(self, view: PackingView) -> Sequence[Move]:
        gpns = {gpn.name: gpn for gpn in view.gpns}
        there: dict[str, list[TunnelView]] = {name: [] for name in gpns}
        homeless = [tunnel for tunnel in view.tunnels if tunnel.movable and tunnel.gpn not in gpns]
        if homeless:  # as though they were on a GPN that accepts none
            gpns[_NOWHERE] = GpnView(_NOWHERE, 0.0, 0.0, accepting=False, tunnels=len(homeless))
            there[_NOWHERE] = homeless
        groups = {(tunnel.gpn, tunnel.group) for tunnel in view.tunnels if tunnel.group is not None}
        for tunnel in view.tunnels:
            if tunnel.movable and tunnel.gpn in gpns:
                there[tunnel.gpn].append(tunnel)
        for tunnels in there.values():
            tunnels.sort(key=_lightest)
        to: dict[str, str] = {}
        while step := _evening(gpns, there, groups):
            source, target = step
            tunnel = there[source.name].pop(_next(source, there[source.name]))
            if (
                tunnel.group is not None
            ):  # where it was is not open to its group again: that ends every exchange
                groups.add((target.name, tunnel.group))
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
    gpns: dict[str, GpnView], there: Mapping[str, list[TunnelView]], groups: Container[tuple[str | None, str]]
) -> tuple[GpnView, GpnView] | None:
    """From where to where the next tunnel goes: from GPNs that accept none, from those beyond their capacity,
    then from the one with the most.
    """
    sources = [gpn for gpn in gpns.values() if there[gpn.name]]
    for source in sorted(sources, key=lambda gpn: (gpn.accepting, gpn.has_room(0), -gpn.tunnels)):
        tunnel = there[source.name][_next(source, there[source.name])]
        load = tunnel.load
        must = not source.accepting or (not source.has_room(0) and load > 0)
        open_to = [
            gpn
            for gpn in gpns.values()
            if gpn.accepting and gpn.has_room(load)
            if tunnel.group is None or (gpn.name, tunnel.group) not in groups
        ]
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
    """The heaviest tunnels first, each on the first GPN with room (`packing/decreasing.py`)."""

    def __init__(self, name: str = "first-fit-decreasing", fill: float = WATERMARK) -> None:
        self.name = name
        self.fill = fill  # of a GPN's capacity: there it is full

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        candidates = apart(tunnel, view)
        calm = [gpn for gpn in candidates if gpn.load + tunnel.load <= self.fill * gpn.capacity + TOLERANCE]
        return (self._choose(calm) if calm else min(candidates, key=lambda gpn: gpn.load / gpn.capacity)).name

    def plan(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import decreasing

        return decreasing.plan(view, self.fill, self._rule())

    def mitigate(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import decreasing

        return decreasing.mitigate(view, self.fill, self._rule())

    def _choose(self, calm: Sequence[GpnView]) -> GpnView:
        return calm[0]

    def _rule(self) -> Rule:
        from protego_cli.plugins.packing.decreasing import FirstFit

        return FirstFit()


class BestFit(FirstFitDecreasing):
    """Each on the fullest GPN with room."""

    def _choose(self, calm: Sequence[GpnView]) -> GpnView:
        return min(calm, key=lambda gpn: (gpn.tunnels == 0, gpn.capacity - gpn.load))

    def _rule(self) -> Rule:
        from protego_cli.plugins.packing.decreasing import BestFit

        return BestFit()


class Sticky(BestFit):
    """Few moves: `packing/sticky.py`."""

    def plan(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import sticky

        return sticky.plan(view)

    def mitigate(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import sticky

        return sticky.mitigate(view)


class Predictive(BestFit):
    """As few GPNs as serve nearly all demand, by a forecast (`packing/predictive.py`)."""

    def plan(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import predictive

        return predictive.plan(view)

    def mitigate(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import predictive

        return predictive.mitigate(view)


def apart(tunnel: TunnelView, view: PackingView) -> Sequence[GpnView]:
    """The candidates where no other tunnel of its group is; all of them where there is no such."""
    candidates = view.candidates(tunnel.load)
    if tunnel.group is None:
        return candidates
    taken = {other.gpn for other in view.tunnels if other.group == tunnel.group and other.id != tunnel.id}
    return [gpn for gpn in candidates if gpn.name not in taken] or candidates


@hookimpl
def protego_packing_policies() -> Sequence[PackingPolicy]:
    return [
        Spread(),
        FirstFitDecreasing("protego", 1.0),
        FirstFitDecreasing(),
        BestFit("best-fit", 1.0),
        Sticky("sticky", 0.95),
        Predictive("predictive", 0.95),
    ]
