"""The policy `sticky`: tunnels stay where they are unless it takes too much to leave them there.

1. Shelter: what is nowhere, or on a GPN that accepts none, finds a place.
2. Relief: from a GPN beyond its capacity goes the lightest tunnel that is relief enough, or else the heaviest
   that fits elsewhere, until it is within.
3. At each interval, consolidation: the lightest GPN is emptied if its tunnels fit elsewhere; then the next.

Tunnels go to the fullest GPN with room, where the share `fill` of the capacity is full: what is between that
and the whole is for loads that grow, so that a tunnel that has moved stays for a while.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from protego_cli.control.packing.packing_view import TOLERANCE, Move, PackingView
from protego_cli.plugins.packing.bins import Bins
from protego_cli.plugins.packing.decreasing import BestFit, shelter

_RULE: Final = BestFit()


def mitigate(view: PackingView, fill: float) -> list[Move]:
    bins = Bins(view, fill)
    _settle(bins)
    return bins.moves()


def plan(view: PackingView, fill: float) -> list[Move]:
    bins = Bins(view, fill)
    _settle(bins)
    while any(_empty(bins, gpn) for gpn in bins.lightest()):
        _settle(bins)
    return bins.moves()


def _settle(bins: Bins) -> None:
    """Shelter and relief, until nothing is left to do: what has left a GPN may have made room there."""
    moved = True
    while moved:
        before = bins.at.copy()
        shelter(bins, _RULE)
        for gpn in np.flatnonzero(bins.accepting & (bins.load > bins.capacity + TOLERANCE)).tolist():
            _relieve(bins, gpn)
        moved = not np.array_equal(before, bins.at)


def _relieve(bins: Bins, gpn: int) -> None:
    while (excess := float(bins.load[gpn] - bins.capacity[gpn])) > TOLERANCE:
        tunnels = [each for each in bins.on(gpn).tolist() if bins.movable[each] and bins.size[each] > 0]
        tunnels.sort(key=lambda each: (bins.size[each] < excess, abs(bins.size[each] - excess)))
        for tunnel in tunnels:
            fits = bins.open_to(tunnel)
            if fits.any():
                bins.move(tunnel, _RULE.choose(bins, fits))
                break
        else:
            return


def _empty(bins: Bins, gpn: int) -> bool:
    """False where that is not possible, and all is as before."""
    others = bins.used()
    others[gpn] = False
    if float(np.maximum(bins.room, 0.0)[others & bins.accepting].sum()) < bins.load[gpn] - TOLERANCE:
        return False
    before = bins.copy()
    here = bins.on(gpn)
    for tunnel in here[np.argsort(-bins.size[here], kind="stable")].tolist():
        fits = bins.open_to(tunnel) & others
        if not fits.any():
            bins.restore(before)
            return False
        bins.move(tunnel, _RULE.choose(bins, fits))
    return True
