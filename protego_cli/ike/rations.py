"""How much of the gateway others may have: what a stranger makes it say, and what the peer of a tunnel asks.

A peer that has proven itself may still be broken, or mean no good. Each of its requests costs a commit and
perhaps a key exchange and an SA on several nodes, so the peers of a tunnel have an `Allowance`, over all its
IKE_SAs. A request beyond it is dropped as if it were lost: it comes again, and is answered then. What a peer
asks for in earnest stays far below it, even where one tunnel is tested hard for some seconds; and the most
that the peers of one tunnel can take for long is a tenth of the control node's time.
"""

from __future__ import annotations

from typing import Final

BURST: Final = 4096.0  # requests: sixteen CHILD_SAs rekeyed and deleted at once are 32
RATE: Final = 128.0  # a second, from then on


class Ration:
    """So much in a second, and no more."""

    def __init__(self, per_second: int) -> None:
        self._limit = per_second
        self._second = 0
        self._count = 0

    def allow(self, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        return self._count <= self._limit


class Allowance:
    """So much at once, and so much a second in the long run."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst = self._left = burst
        self._rate = rate
        self._at = now

    def allow(self, now: float) -> bool:
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
