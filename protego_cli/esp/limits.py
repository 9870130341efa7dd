"""Rate limits of the data path: token buckets that work on rows of packets.

1. A bucket gains tokens, bytes, with time, up to its burst, and is full at first.
2. A row of packets of one size takes them at once: one look at the time and one subtraction, however many
   they are. The tokens go to the first packets of the row, as if each had come alone; the caller drops the
   rest.
3. Where several buckets hold for a row (its tunnel's and its tenant's), a packet needs room in each of them
   and takes from all; one that is dropped takes from none.
4. A coarse ceiling that has cut a row short lets nothing pass until half its burst is there again. So what it
   passes of a flood is whole rows, as cheap to what comes behind as good traffic, and not a bit of each row.

Over any stretch of `t` seconds a bucket admits at most `rate * t + burst`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from protego_cli.config.model import Rate

CLOCK_STEP: Final = 1.0  # seconds: by so much no two batches disagree, so the clock was set back


class Limited(NamedTuple):
    """What limits have dropped: packets, and their inner bytes."""

    packets: int = 0
    bytes: int = 0

    def plus(self, packets: int, size: int) -> Limited:
        return Limited(self.packets + packets, self.bytes + size)


NOTHING: Final = Limited()


class Bucket:
    __slots__ = ("_at", "_burst", "_rate", "shut", "tokens")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate.bits / 8
        self._burst = float(rate.burst)
        self._at = -math.inf
        self.shut = -math.inf  # until when nothing passes, of a ceiling
        self.tokens = self._burst

    def set(self, rate: Rate, now: float) -> None:
        """Another rate from now on; what was saved up stays, as far as the burst allows."""
        self.refill(now)
        self._rate = rate.bits / 8
        self._burst = float(rate.burst)
        self.tokens = min(self.tokens, self._burst)
        self.shut = -math.inf

    def pause(self, now: float) -> None:
        """Let half the burst come together."""
        self.shut = now + self._burst / 2 / self._rate

    def refill(self, now: float) -> None:
        """Gain what is due. Packets that were held up may be of a time that has been counted already: they
        gain nothing twice.
        """
        elapsed = now - self._at
        if elapsed > 0:
            self._at = now
            tokens = self.tokens + elapsed * self._rate
            self.tokens = tokens if tokens < self._burst else self._burst
        elif elapsed < -CLOCK_STEP:
            self._at = now


def admit(buckets: Sequence[Bucket], size: int, count: int, now: float) -> int:
    """How many packets of a row, `count` of `size` bytes each, may pass now; they have taken their tokens."""
    for bucket in buckets:
        bucket.refill(now)
        if bucket.tokens < size * count:
            count = int(bucket.tokens // size)
    for bucket in buckets:
        bucket.tokens -= size * count
    return count


def admit_row(buckets: Sequence[Bucket], sizes: Sequence[int], now: float) -> Sequence[int]:
    """The places of those of a row of packets of any sizes that may pass, each as if it had come alone."""
    if admit(buckets, sum(sizes), 1, now):
        return range(len(sizes))
    return [place for place, size in enumerate(sizes) if admit(buckets, size, 1, now)]


def admit_below(ceilings: Sequence[Bucket], size: int, count: int, now: float) -> int:
    """`admit` for coarse ceilings."""
    for ceiling in ceilings:
        if now < ceiling.shut:
            return 0
    admitted = admit(ceilings, size, count, now)
    if admitted < count:
        for ceiling in ceilings:
            if ceiling.tokens < size:
                ceiling.pause(now)
    return admitted


class Limits:
    """The buckets of one direction, by whom they limit: a tunnel's id, or a VNI for the tenant's tunnels."""

    def __init__(self) -> None:
        self._buckets: dict[str | int, Bucket] = {}

    def put(self, of: str | int, rate: Rate | None, now: float) -> bool:
        """Limit it by this rate, or not at all; whether `find` has another answer from now on."""
        bucket = self._buckets.get(of)
        if rate is None:
            self._buckets.pop(of, None)
            return bucket is not None
        if bucket is None:
            self._buckets[of] = Bucket(rate)
            return True
        bucket.set(rate, now)
        return False

    def find(self, tunnel: str, vni: int) -> tuple[Bucket, ...]:
        """The buckets that hold for a tunnel of this VNI, its own first."""
        return tuple(bucket for of in (tunnel, vni) if (bucket := self._buckets.get(of)) is not None)
