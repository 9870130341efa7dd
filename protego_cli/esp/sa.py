"""The two halves of a CHILD_SA on the data path: opening and sealing (RFC 4303 3.3, 3.4).

Inbound: 1. the replay window admits the number; 2. the packet opens; 3. only then is the number committed.
Outbound: 1. numbers are taken from the sealing range, for good; 2. packets are sealed under them. A number
that was taken is never used again, whatever becomes of its packet, and none outside the range ever is: so no
two packets share a nonce.

How a packet is opened or sealed is the suite's business (`transforms.py`), a row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite, RandomSource
from protego_cli.esp.flows import FlowSelectors
from protego_cli.esp.limits import NOTHING, Bucket
from protego_cli.esp.replay import ReplayWindow
from protego_cli.esp.transforms import opening, sealing, split
from protego_cli.wire.inner import Buffer
from protego_cli.wire.selectors import TrafficSelector


class InboundSa:
    """Opens what a peer sealed; counts drops by their reasons."""

    def __init__(
        self,
        spi: int,
        suite: EspSuite,
        key: bytes,
        *,
        local_ts: Sequence[TrafficSelector],
        remote_ts: Sequence[TrafficSelector],
        window: int = 1024,
        floor: int = 0,
        opens: bool = True,
        expires: float | None = None,
    ) -> None:
        self.spi = spi
        self.selectors = FlowSelectors(sources=remote_ts, destinations=local_ts)
        self.window = ReplayWindow(window)
        self.floor = 0
        self.opens = opens
        self.expires = expires
        self.authentic = False  # whether its holder has seen a packet open
        self.packets = 0  # delivered, and their inner bytes
        self.bytes = 0
        self.limits: tuple[Bucket, ...] = ()
        self.limited = NOTHING  # dropped by these
        self._esn = suite.esn
        self._transform = opening(suite, key, spi)
        self.raise_floor(floor)

    @property
    def highest(self) -> int:
        """The highest number that opened, or the floor."""
        return self.window.top

    def newest(self, sequence: int) -> bool:
        """Whether this is what the highest number that opened bears as sequence number."""
        return sequence == self.window.top & 0xFFFFFFFF

    def raise_floor(self, floor: int) -> None:
        """Never open a number at or below `floor` from now on.

        With extended sequence numbers none of another high half either: a floor comes from the GINs, who see
        low halves only, so all that they can vouch for is that no number above its low half has come by.
        """
        if floor > self.floor:
            self.floor = floor
            self.window.raise_floor(floor)
            if self._esn:
                self.window.end = ((floor >> 32) + 1) << 32

    def open(
        self, sequence: Sequence[int], data: Buffer, size: int, counters: Counters, now: float
    ) -> list[bytes]:
        """The plaintexts, trailer included, of those of a row of packets that may be opened, in order.

        `data` is packets of `size` bytes, `sequence` what they bear as sequence numbers.
        """
        if not self._may_open(len(sequence), counters, now):
            return []
        if not self._transform.fits(size):
            counters["gpn_drop_short"] += len(sequence)
            return []
        window = self.window
        numbers = window.extend(sequence) if self._esn else sequence
        if not window.fresh(numbers):
            packets = split(data, size, len(numbers))
            return self._open_checked(numbers, packets, counters)
        return self._commit(numbers, *self._transform.open(data, size, numbers), counters)

    def open_each(
        self, sequence: Sequence[int], packets: Sequence[bytes], counters: Counters, now: float
    ) -> list[bytes]:
        """The same of packets of any sizes."""
        if not self._may_open(len(sequence), counters, now):
            return []
        if not all(map(self._transform.fits, set(map(len, packets)))):
            fit = [self._transform.fits(len(packet)) for packet in packets]
            counters["gpn_drop_short"] += fit.count(False)
            sequence, packets = list(compress(sequence, fit)), list(compress(packets, fit))
            if not packets:
                return []
        window = self.window
        numbers = window.extend(sequence) if self._esn else sequence
        if not window.fresh(numbers):
            return self._open_checked(numbers, packets, counters)
        return self._commit(numbers, *self._transform.open_each(packets, numbers), counters)

    def _may_open(self, count: int, counters: Counters, now: float) -> bool:
        if self.opens and (self.expires is None or now < self.expires):
            return True
        counters["gpn_drop_expired" if self.opens else "gpn_drop_floor"] += count
        return False

    def _commit(
        self, numbers: Sequence[int], plaintexts: list[bytes], forged: Sequence[int], counters: Counters
    ) -> list[bytes]:
        """Mark what opened of a row that was `fresh`."""
        if forged:
            counters["gpn_drop_auth"] += len(forged)
            if not plaintexts:
                return plaintexts
            wrong = frozenset(forged)
            numbers = [number for place, number in enumerate(numbers) if place not in wrong]
        self.window.commit_row(numbers)
        return plaintexts

    def _open_checked(
        self, numbers: Sequence[int], packets: Sequence[bytes], counters: Counters
    ) -> list[bytes]:
        """A row in which numbers may be old, or come twice; every packet meets the fate it would alone."""
        window = self.window
        admitted = [place for place, number in enumerate(numbers) if window.check(number)]
        if not admitted:
            for number in numbers:
                self._refuse(number, counters)
            return []
        opened, forged = self._transform.open_each(
            [packets[place] for place in admitted], [numbers[place] for place in admitted]
        )
        wrong = frozenset(forged)
        right = [numbers[place] for index, place in enumerate(admitted) if index not in wrong]
        ahead = not forged or not right or min(numbers[admitted[index]] for index in forged) > right[-1]
        if ahead and (not right or window.fresh(right)):
            counters["gpn_drop_auth"] += len(forged)
            for number in numbers if len(admitted) < len(numbers) else ():
                if not window.check(number):
                    self._refuse(number, counters)
            if right:
                window.commit_row(right)
            return opened
        good = (place for index, place in enumerate(admitted) if index not in wrong)
        texts = dict(zip(good, opened, strict=True))
        plaintexts = []
        for place, number in enumerate(numbers):
            if not window.check(number):  # so it was before, or one of this row was the same or far ahead
                self._refuse(number, counters)
            elif place in texts:
                window.commit(number)
                plaintexts.append(texts[place])
            else:
                counters["gpn_drop_auth"] += 1
        return plaintexts

    def _refuse(self, number: int, counters: Counters) -> None:
        outside = number <= self.floor or number >= self.window.end
        counters["gpn_drop_floor" if outside else "gpn_drop_replay"] += 1


class OutboundSa:
    """Seals for a peer, with numbers from [lo, hi) and no other."""

    def __init__(
        self,
        spi: int,
        suite: EspSuite,
        key: bytes,
        random: RandomSource,
        *,
        local_ts: Sequence[TrafficSelector],
        remote_ts: Sequence[TrafficSelector],
        lo: int,
        hi: int,
        expires: float | None = None,
    ) -> None:
        self.spi = spi
        self.selectors = FlowSelectors(sources=local_ts, destinations=remote_ts)
        self.expires = expires
        self.packets = 0  # sealed, and their inner bytes
        self.bytes = 0
        self.limits: tuple[Bucket, ...] = ()
        self.limited = NOTHING  # dropped by these
        self._transform = sealing(suite, key, spi, random)
        self.block = self._transform.block
        self.overhead = self._transform.overhead
        self._end = 1 << (64 if suite.esn else 32)
        self.lo = self.hi = self.next = 1
        self.low_at = 1  # where three quarters of the range are used
        self.grant(lo, hi)

    def grant(self, lo: int, hi: int) -> bool:
        """Go on in another range. False, changing nothing, for one that could repeat a number.

        Raises ValueError for what is no range of sequence numbers as long as the SA's.
        """
        if not 1 <= lo <= hi <= self._end:
            raise ValueError(f"[{lo}, {hi}) is no range of sequence numbers")
        if lo < self.lo or hi < self.next:
            return False
        self.lo, self.hi, self.next = lo, hi, max(lo, self.next)
        self.low_at = lo + (hi - lo) * 3 // 4
        return True

    def take(self, count: int) -> range:
        """The next numbers, `count` or as many as are left; they are used up with this call."""
        first = self.next
        self.next = min(first + count, self.hi)
        return range(first, self.next)

    def seal(self, plaintexts: Sequence[bytes]) -> bytes:
        """A row of padded plaintexts of one length, sealed side by side.

        Fewer come out than went in when the range is used up.
        """
        numbers = self.take(len(plaintexts))
        if not numbers:
            return b""
        return self._transform.seal(numbers, plaintexts[: len(numbers)])

    def seal_each(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        """The same of plaintexts of any lengths, as a packet each."""
        numbers = self.take(len(plaintexts))
        if not numbers:
            return []
        return self._transform.seal_each(numbers, plaintexts[: len(numbers)])
