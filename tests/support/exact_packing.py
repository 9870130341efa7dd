"""The fewest bins that hold some sizes, by trying: for a dozen of them, to hold policies against."""

from __future__ import annotations

import math
from collections.abc import Sequence

ROUNDING = 1e-9


def fewest_bins(sizes: Sequence[float], capacity: float = 1.0) -> int:
    """Branch and bound: the largest first, into one bin of each fullness, or a new one."""
    order = sorted((size for size in sizes if size > 0), reverse=True)
    if not order:
        return 1 if sizes else 0
    best = len(order)

    def search(index: int, bins: list[float]) -> None:
        nonlocal best
        left = sum(order[index:]) - sum(capacity - load for load in bins)
        if len(bins) + max(0, math.ceil(left / capacity - ROUNDING)) >= best:
            return
        if index == len(order):
            best = len(bins)
            return
        size = order[index]
        for place in {load: place for place, load in enumerate(bins)}.values():
            if bins[place] + size <= capacity + ROUNDING:
                bins[place] += size
                search(index + 1, bins)
                bins[place] -= size
        search(index + 1, [*bins, size])

    search(0, [])
    return best
