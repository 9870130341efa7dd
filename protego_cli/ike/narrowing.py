"""Traffic selector narrowing (RFC 7296 2.9).

What we grant is the intersection of every offered selector with every one of ours. It contains whatever we
allow of the specific first selector that an initiator puts before its ranges to name the packet that woke
it up, and, where that is inside a range granted as well, the range speaks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protego_cli.errors import TsUnacceptable
from protego_cli.wire.selectors import TrafficSelector

MAX_SELECTORS = 64  # per side and CHILD_SA, so that work and messages stay bounded


def narrow(
    offered: Sequence[TrafficSelector], ours: Sequence[TrafficSelector]
) -> tuple[TrafficSelector, ...]:
    """What both sides allow, empty when nothing; none of the result lies inside another one."""
    result: list[TrafficSelector] = []
    for theirs in offered:
        for mine in ours:
            common = theirs.intersect(mine)
            if common is None or any(kept.contains(common) for kept in result):
                continue
            result = [kept for kept in result if not common.contains(kept)]
            result.append(common)
            if len(result) > MAX_SELECTORS:
                raise TsUnacceptable(f"narrowing leaves more than {MAX_SELECTORS} selectors")
    return tuple(result)


def covered(answered: Iterable[TrafficSelector], proposed: Sequence[TrafficSelector]) -> bool:
    """Whether the peer granted nothing beyond what we proposed."""
    return all(any(wide.contains(selector) for wide in proposed) for selector in answered)


def describe(selectors: Sequence[TrafficSelector]) -> str:
    return " ".join(str(selector) for selector in selectors[:MAX_SELECTORS]) or "nothing"
