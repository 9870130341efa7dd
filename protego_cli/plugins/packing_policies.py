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

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from protego_cli.control.packing.placement import (
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

WATERMARK: Final = 0.8  # of a GPN's capacity; the rest is for what grows before the next plan


class Spread:
    name = "spread"

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        return min(apart(tunnel, view), key=lambda gpn: gpn.tunnels).name

    def plan(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import evening

        return evening.plan(view)


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

        return sticky.plan(view, self.fill)

    def mitigate(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import sticky

        return sticky.mitigate(view, self.fill)


class Predictive(BestFit):
    """As few GPNs as serve nearly all demand, by a forecast (`packing/predictive.py`)."""

    def plan(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import predictive

        return predictive.plan(view, self.fill)

    def mitigate(self, view: PackingView) -> Sequence[Move]:
        from protego_cli.plugins.packing import predictive

        return predictive.mitigate(view, self.fill)


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
