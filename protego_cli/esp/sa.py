"""The two halves of a CHILD_SA on the data path: opening and sealing (RFC 4303 3.3, 3.4).

Inbound: 1. the replay window admits the number; 2. the packet opens; 3. only then is the number committed.
Outbound: 1. numbers are taken from the sealing range, for good; 2. packets are sealed under them. A number
that was taken is never used again, whatever becomes of its packet, and none outside the range ever is: so no
two packets share a nonce.

How a packet is opened or sealed is the suite's business (`transforms.py`), a row at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import compress

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite, RandomSource
from protego_cli.esp.flows import FlowSelectors
from protego_cli.esp.limits import NOTHING, Bucket
from protego_cli.esp.replay import ReplayWindow
from protego_cli.esp.rows import SizedRow, padded, split
from protego_cli.esp.slices import Sliced
from protego_cli.esp.transforms import opening, sealing
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
        self.overhead = self._transform.overhead
        self.opens_into = self._transform.open_into is not None
        self.raise_floor(floor)

    @property
    def highest(self) -> int:
        """The highest number that opened, or the floor."""
        return self.window.top

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
        numbers = self.window.extend(sequence) if self._esn else sequence
        fresh = self.window.fresh(numbers)
        if not fresh and not self.window.ahead(numbers):
            places = self._admitted(numbers, counters)
            if not places:
                return []
            if len(places) < len(numbers):
                packets = split(data, size, len(numbers))
                data = b"".join([packets[place] for place in places])
                numbers = [numbers[place] for place in places]
        return self._accepted(numbers, *self._transform.open(data, size, numbers), counters, fresh)

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
        numbers = self.window.extend(sequence) if self._esn else sequence
        fresh = self.window.fresh(numbers)
        if not fresh and not self.window.ahead(numbers):
            places = self._admitted(numbers, counters)
            if not places:
                return []
            numbers, packets = [numbers[place] for place in places], [packets[place] for place in places]
        return self._accepted(numbers, *self._transform.open_each(packets, numbers), counters, fresh)

    def open_into(
        self,
        sequence: Sequence[int],
        data: Buffer,
        size: int,
        slots: Sequence[memoryview],
        counters: Counters,
        now: float,
    ) -> Sequence[int] | None:
        """As `open`, each plaintext into its slot: the places of those that opened, in order; the other slots
        hold anything. None, having done nothing, where the row had better go through `open`.
        """
        open_into = self._transform.open_into
        if open_into is None or not self._transform.fits(size):
            return None
        numbers = self.window.extend(sequence) if self._esn else sequence
        if not self.window.fresh(numbers):
            return None
        if not self._may_open(len(sequence), counters, now):
            return ()
        opened = open_into(data, size, numbers, slots)
        return None if opened is None else self._commit(numbers, opened, counters, fresh=True)

    def open_rows(
        self, rows: Sequence[SizedRow], counters: Counters, now: float
    ) -> list[Sequence[int]] | None:
        """As `open_into`, of packets that came mixed, rows of several sizes: the places in each of those that
        opened. None, having done nothing, where they had better be looked at in the order in which they came.
        """
        open_into = self._transform.open_into
        if open_into is None or not all(self._transform.fits(row.size) for row in rows):
            return None
        numbers: Sequence[int] = [number for row in rows for number in row.sequence]
        if self._esn:
            numbers = self.window.extend(numbers)
        ordered = sorted(numbers)
        # so none has come before, and none pushes another out of the window, whichever comes first
        if not self.window.fresh(ordered) or ordered[-1] - ordered[0] >= self.window.size:
            return None
        if not self._may_open(len(numbers), counters, now):
            return [() for _ in rows]
        places: list[Sequence[int]] = []
        right: list[int] = []
        start = 0
        for sequence, data, size, slots in rows:
            stop = start + len(sequence)
            each = numbers[start:stop] if self._esn else sequence
            opened = open_into(data, size, each, slots)
            if opened is None:
                texts, opened = self._transform.open(data, size, each)
                for place, text in zip(opened, texts, strict=True):
                    slots[place][:] = text
            places.append(opened)
            right += each if len(opened) == len(each) else [each[place] for place in opened]
            start = stop
        counters["gpn_drop_auth"] += len(numbers) - len(right)
        if right:
            self.window.commit_row(ordered if len(right) == len(numbers) else sorted(right))
        return places

    def _may_open(self, count: int, counters: Counters, now: float) -> bool:
        if self.opens and (self.expires is None or now < self.expires):
            return True
        counters["gpn_drop_expired" if self.opens else "gpn_drop_floor"] += count
        return False

    def _admitted(self, numbers: Sequence[int], counters: Counters) -> list[int]:
        """The places of those of a row that the window admits. What it refuses now it would later, too."""
        check = self.window.check
        admitted = [place for place, number in enumerate(numbers) if check(number)]
        if len(admitted) < len(numbers):
            refused = frozenset(range(len(numbers))).difference(admitted)
            self._refuse([numbers[place] for place in refused], counters)
        return admitted

    def _accepted(
        self,
        numbers: Sequence[int],
        plaintexts: list[bytes],
        opened: Sequence[int],
        counters: Counters,
        fresh: bool,
    ) -> list[bytes]:
        """Those that stand, of the plaintexts of a row."""
        places = self._commit(numbers, opened, counters, fresh)
        if len(places) == len(plaintexts):
            return plaintexts
        texts = dict(zip(opened, plaintexts, strict=True))
        return [texts[place] for place in places]

    def _commit(
        self, numbers: Sequence[int], opened: Sequence[int], counters: Counters, fresh: bool
    ) -> Sequence[int]:
        """Mark what opened of a row that the window admitted, number by number; the places of what stands.

        Every packet meets the fate it would alone: a number that has come before is old, forged or not; one
        that did not open leaves no trace.
        """
        window = self.window
        whole = len(opened) == len(numbers)
        if fresh or not opened:
            if not whole:
                counters["gpn_drop_auth"] += len(numbers) - len(opened)
            if opened:
                window.commit_row(numbers if whole else [numbers[place] for place in opened])
            return opened
        right = [numbers[place] for place in opened]
        authentic = frozenset(opened)
        forged = [place for place in range(len(numbers)) if place not in authentic]
        lies = [numbers[place] for place in forged]
        if window.fresh(right) and (not lies or min(lies) > right[-1]):
            counters["gpn_drop_auth"] += len(lies)
            window.commit_row(right)
            return opened
        highest = max(right)
        lowest = min([*right, *[number for number in lies if number < highest]])
        if max(highest, window.top) - lowest >= window.size:  # so one may push another out of the window
            return self._commit_each(numbers, authentic, counters)
        first: dict[int, int] = {}
        for place, number in zip(opened, right, strict=True):
            first.setdefault(number, place)
        late = sum([first.get(number, place) < place for place, number in zip(forged, lies, strict=True)])
        if late < len(lies):
            counters["gpn_drop_auth"] += len(lies) - late
        if again := late + len(right) - len(first):
            counters["gpn_drop_replay"] += again
        if lowest > window.top:
            window.commit_row(sorted(first))
        else:
            for number in first:
                window.commit(number)
        return list(first.values())

    def _commit_each(
        self, numbers: Sequence[int], authentic: Collection[int], counters: Counters
    ) -> Sequence[int]:
        """The same for numbers that are too far apart to be looked at together."""
        window = self.window
        places = []
        for place, number in enumerate(numbers):
            if not window.check(number):
                self._refuse((number,), counters)
            elif place not in authentic:
                counters["gpn_drop_auth"] += 1
            else:
                window.commit(number)
                places.append(place)
        return places

    def _refuse(self, numbers: Sequence[int], counters: Counters) -> None:
        floor, end = self.floor, self.window.end
        outside = sum([number <= floor or number >= end for number in numbers])
        for counter, count in (("gpn_drop_floor", outside), ("gpn_drop_replay", len(numbers) - outside)):
            if count:
                counters[counter] += count


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
        self.seals_within = self._transform.seal_within is not None
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

    def seal_within(
        self, rows: Sliced, size: int, count: int, start: int, length: int, trailer: bytes
    ) -> Buffer:
        """The same of plaintexts that are in rows of `size` bytes, `length` bytes at `start`, but for this
        trailer. The packets stay as they are while somebody holds what is returned.
        """
        numbers = self.take(count)
        return self.seal_numbered(numbers, rows, size, start, length, trailer) if numbers else b""

    def seal_numbered(
        self, numbers: Sequence[int], rows: Sliced, size: int, start: int, length: int, trailer: bytes
    ) -> Buffer:
        """The same under numbers, ascending, that were taken for these packets and no others."""
        seal_within = self._transform.seal_within
        if seal_within is not None:
            sealed = seal_within(numbers, rows, size, start, length, trailer)
            if sealed is not None:
                return sealed
        return self._transform.seal(numbers, padded(rows.view, size, len(numbers), start, length, trailer))

    def seal_each(self, plaintexts: Sequence[bytes]) -> list[bytes]:
        """The same of plaintexts of any lengths, as a packet each."""
        numbers = self.take(len(plaintexts))
        if not numbers:
            return []
        return self._transform.seal_each(numbers, plaintexts[: len(numbers)])
