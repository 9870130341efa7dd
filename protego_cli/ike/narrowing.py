"""Traffic selector narrowing (RFC 7296 2.9).

What we grant is the intersection of every offered selector with every one of ours. An initiator may put a
specific selector before its ranges, to name the packet that woke it up. What we allow of that is granted like
the rest; where it lies inside a granted range, the range alone is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain, islice
from typing import Final

from protego_cli.config.model import MAX_SELECTORS
from protego_cli.errors import TsUnacceptable
from protego_cli.wire.selectors import TrafficSelector

MAX_PREFIXES: Final = 512  # that the selectors of a side come to: a GEN has a route for each

_Placed = tuple[int, TrafficSelector]
"""A selector, and which of the offered ones it is of."""


def narrow(
    offered: Sequence[TrafficSelector], ours: Sequence[TrafficSelector]
) -> tuple[TrafficSelector, ...]:
    """What both sides allow, empty when nothing; none of the result lies inside another one."""
    found: list[_Placed] = []
    for mine in ours:  # each by itself: few of ours overlap, so few of the pieces need be compared
        common = [(at, theirs.intersect(mine)) for at, theirs in enumerate(offered)]
        found += _outermost([(at, piece) for at, piece in common if piece is not None])
        if len(found) > MAX_SELECTORS:
            found = _outermost(found)
    result = tuple(selector for _, selector in _outermost(sorted(found, key=lambda placed: placed[0])))
    if scattered(result):
        raise TsUnacceptable(f"narrowing leaves more than {MAX_PREFIXES} prefixes")
    return result


def _outermost(pieces: Iterable[_Placed]) -> list[_Placed]:
    """Those that lie inside no other."""
    kept: list[_Placed] = []
    for at, piece in pieces:
        if any(other.contains(piece) for _, other in kept):
            continue
        kept = [placed for placed in kept if not piece.contains(placed[1])]
        kept.append((at, piece))
        if len(kept) > MAX_SELECTORS:
            raise TsUnacceptable(f"narrowing leaves more than {MAX_SELECTORS} selectors")
    return kept


def scattered(selectors: Collection[TrafficSelector]) -> bool:
    """Whether these are more prefixes than a CHILD_SA may have: a peer may name any range of addresses."""
    if sum([16 * len(selector.start) - 2 for selector in selectors]) <= MAX_PREFIXES:
        return False  # no range takes more than two for each bit but the first
    prefixes = chain.from_iterable(selector.networks() for selector in selectors)
    return next(islice(prefixes, MAX_PREFIXES, None), None) is not None


def covered(answered: Iterable[TrafficSelector], proposed: Sequence[TrafficSelector]) -> bool:
    """Whether the peer granted nothing beyond what we proposed."""
    return all(any(wide.contains(selector) for wide in proposed) for selector in answered)


def describe(selectors: Sequence[TrafficSelector]) -> str:
    return " ".join(str(selector) for selector in selectors[:MAX_SELECTORS]) or "nothing"
