"""From the peer to the tenant: ESP in, VXLAN out, a GRO batch at a time (RFC 4303 3.4, RFC 4301 5.2).

1. Nearly always all packets of the batch have one SPI, which is told in C; else they are sorted by SPI, their
   order within each kept.
2. The SA's row of packets is checked against the window, opened, committed (`sa.py`).
3. Where the outer ECN field says so, the inner one is changed, or the packet dropped (RFC 6040 4.2); nothing
   else of the outer header counts (RFC 4301 5.1.2.1).
4. What decides about an opened packet is version, length, addresses, trailer. Each distinct combination is
   judged once: trailer, inner header, selectors, and the VTEP that serves the destination.
5. Packets of one verdict, as far as the rate limits admit them, go behind its VXLAN and Ethernet headers in
   one C call, and leave with their own TOS; before, TCP SYNs are held to the tunnel's MSS where it has one.
   Where it has none, all of a batch go behind the headers once the first is judged; then columns of the
   frames are compared, or each flow is judged, and nearly always that was right. In the frames each packet
   loses a hop (`wire/hops.py`); one that has none left goes no further, and its sender is told.
6. A long batch like the one before is opened right behind its headers, which are guessed (`frames.py`); from
   a batch with forged packets on, only after a whole one.
7. Batches of one SPI that wait together are one row (`joining.py`).

A row of packets of any sizes, from several batches, is taken apart packet by packet, but opened, judged and
put into VXLAN in one go for each SA. A long one, of few sizes that have come before, is sorted by these and
goes the way of 6; its frames leave in the order in which the packets came (`sorting.py`).

Packets whose keys are on their way are parked. A packet that came in an ORIGIN tag and opened as the newest
of its SA moves the peer's address, if both are of ESP in UDP: what came without has no port, and a peer whose
SA is without has no NAT that could change (RFC 7296 2.23). Either form opens on any SA.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import groupby, islice, repeat
from typing import cast

from protego_cli.counters import Counters
from protego_cli.esp.events import Event, FirstPacket, PeerMoved
from protego_cli.esp.frames import Frames, Guess, framed, judged
from protego_cli.esp.frames import row as decisive_fields
from protego_cli.esp.joining import Batch
from protego_cli.esp.limits import admit, admit_row
from protego_cli.esp.outbox import Address, Outbox
from protego_cli.esp.packet import Dropped, unwrap
from protego_cli.esp.pairs import MAX_VERDICTS, Pair, Row, Usual, Verdict, leaving, only_delivery
from protego_cli.esp.parking import Parking
from protego_cli.esp.rows import SizedRow, layout
from protego_cli.esp.sa import InboundSa
from protego_cli.esp.slices import FEW
from protego_cli.esp.sorting import Sorted, sort
from protego_cli.esp.sorting import packets as packets_of
from protego_cli.esp.tenants import Delivery, Tenant
from protego_cli.wire import ecn, hops
from protego_cli.wire.columns import alike
from protego_cli.wire.heads import counting
from protego_cli.wire.mss import clamp, clamp_row
from protego_cli.wire.tags import MAX_RESERVED_SPI

_SPI = ((0, 4),)
MAX_JUDGED = 1 << 18  # verdicts remembered of all SAs together, each some 600 bytes
MIN_PACKET = 28  # the least of any suite: SPI, number and IV, four bytes of ciphertext, an ICV of eight

TagHandler = Callable[[memoryview, Address, float, int], None]
GiveBack = Callable[[memoryview | bytes, Address, int], None]
Tell = Callable[[Pair, bytes, float], None]


class Inbound:
    """The tables belong to the gateway; this only reads them."""

    def __init__(
        self,
        counters: Counters,
        pairs: dict[int, Pair],
        tenants: dict[int, Tenant],
        parking: Parking,
        outbox: Outbox,
        events: list[Event],
        tag: TagHandler,
        give_back: GiveBack,
        tell: Tell,
    ) -> None:
        self._counters = counters
        self._pairs = pairs
        self._tenants = tenants
        self._parking = parking
        self._outbox = outbox
        self._frames = Frames()
        self._judged = 0  # remembered since all was forgotten
        self._events = events
        self._tag = tag
        self._give_back = give_back
        self._tell = tell  # the sender of a packet that has no hop left

    def receive(
        self,
        view: memoryview,
        size: int,
        source: Address,
        now: float,
        origin: Address | None = None,
        tos: int = 0,
    ) -> None:
        """ESP packets, or tags, of one size, that came with this TOS. `now` is wall-clock time, `origin` what
        a tag told, or `source` itself where that is the peer."""
        count = len(view) // size
        if size < MIN_PACKET:
            self._counters["gpn_drop_short"] += count
            return
        counted = counting(view, size, count) if count >= FEW else None
        if counted is not None and counted[0] > MAX_RESERVED_SPI:
            self._one_spi(*counted, view, size, source, now, origin, tos)
            return
        if alike(view, size, count, _SPI):
            spi = int.from_bytes(view[:4])
            if 0 < spi <= MAX_RESERVED_SPI:
                for at in range(0, len(view), size):
                    self._tag(view[at : at + size], source, now, tos)
            else:
                numbers: Sequence[int] = layout(f"4xI{size - 8}x", count).unpack_from(view)
                self._one_spi(spi, numbers, view, size, source, now, origin, tos)
            return
        words = layout(f"II{size - 8}x", count).unpack_from(view)
        spis, numbers = words[0::2], words[1::2]
        if min(spis) <= MAX_RESERVED_SPI:  # a tag speaks of what came before it
            for at in range(0, len(view), size):
                self.receive(view[at : at + size], size, source, now, origin, tos)
        else:
            places: dict[int, list[int]] = {}
            for place, spi in enumerate(spis):
                places.setdefault(spi, []).append(place)
            parts = {
                spi: b"".join([view[place * size : (place + 1) * size] for place in found])
                for spi, found in places.items()
            }  # all of them, for to open one may be to write where the next would lie
            for spi, part in parts.items():
                row = [numbers[place] for place in places[spi]]
                self._one_spi(spi, row, part, size, source, now, origin, tos)

    def kind(self, view: memoryview, size: int) -> int | None:
        """What batches have in common that may be one row (`joining.py`): the SPI."""
        spi = int.from_bytes(view[:4])
        return spi if spi in self._pairs and size >= MIN_PACKET else None

    def receive_row(
        self, batches: Sequence[Batch], source: Address, now: float, origin: Address | None, tos: int
    ) -> bool:
        """Short batches of ESP packets of any sizes; False, having done nothing, where they are to be looked
        at one by one.

        Their ECN field means nothing for what is within.
        """
        pair = self._pairs.get(int.from_bytes(batches[0][0][:4]))
        sortable = pair is not None and pair.mss is None and pair.inbound.opens_into
        ordered = sort(batches) if sortable else None
        if pair is not None and ordered is not None and self._sorted(pair, ordered, source, now, origin):
            return True
        packets = packets_of(batches)
        if min(map(len, packets)) < MIN_PACKET:
            return False
        words = layout("II", len(packets)).unpack(b"".join([packet[:8] for packet in packets]))
        spis, numbers = words[0::2], words[1::2]
        if min(spis) <= MAX_RESERVED_SPI:  # a tag speaks of what came before it
            return False
        if spis.count(spis[0]) == len(spis):
            expect = ordered is not None
            self._row_of_one(spis[0], numbers, packets, source, now, origin, tos, expect=expect)
            return True
        rows: dict[int, list[int]] = {}
        for place, spi in enumerate(spis):
            rows.setdefault(spi, []).append(place)
        for spi, places in rows.items():
            row = [packets[place] for place in places]
            self._row_of_one(spi, [numbers[place] for place in places], row, source, now, origin, tos)
        return True

    def _row_of_one(
        self,
        spi: int,
        numbers: Sequence[int],
        packets: Sequence[bytes],
        source: Address,
        now: float,
        origin: Address | None,
        tos: int,
        *,
        expect: bool = False,
    ) -> None:
        """`expect` what comes of them of other packets of their sizes."""
        pair = self._pairs.get(spi)
        if pair is None:
            for number, packet in zip(numbers, packets, strict=True):
                self._one_spi(spi, (number,), packet, len(packet), source, now, origin, tos)
            return
        before = pair.inbound.highest
        plaintexts = pair.inbound.open_each(numbers, packets, self._counters, now)
        if plaintexts:
            self._opened(pair, before, source, origin)
            self._deliver_each(pair, plaintexts, now, expect=expect)

    def _sorted(
        self, pair: Pair, ordered: Sorted, source: Address, now: float, origin: Address | None
    ) -> bool:
        """Packets that are perhaps of one SA, of sizes that have come before; False, having done nothing,
        where they are not.
        """
        sa, spi = pair.inbound, pair.entry.spi_in.to_bytes(4)
        if ordered.packets > sa.window.size:
            return False
        guesses: dict[int, Guess] = {}
        rows: list[SizedRow] = []
        for size, data in ordered.rows.items():
            count = len(data) // size
            usual = pair.usual.get(size - sa.overhead)
            if usual is None or data[:4] != spi or not alike(data, size, count, _SPI):
                return False
            guess = self._frames.guess(usual, count, [other.buffer for other in guesses.values()])
            if guess is None:
                return False
            guesses[size] = guess
            rows.append(SizedRow(layout(f"4xI{size - 8}x", count).unpack_from(data), data, size, guess.slots))
        before = sa.highest
        opened = sa.open_rows(rows, self._counters, now)
        if opened is None:
            return False
        if any(opened):
            self._opened(pair, before, source, origin)
            whole = sum(map(len, opened)) == ordered.packets
            if not (whole and self._send_sorted(pair, ordered, guesses, now)):
                places = dict(zip(guesses, map(frozenset, opened), strict=True))
                texts = {
                    size: [bytes(slot) if at in places[size] else None for at, slot in enumerate(guess.slots)]
                    for size, guess in guesses.items()
                }
                row = [text for text in ordered.restored(texts) if text is not None]
                self._deliver_each(pair, row, now)
        return True

    def _send_sorted(self, pair: Pair, ordered: Sorted, guesses: dict[int, Guess], now: float) -> bool:
        """Opened packets behind guessed headers; False, having sent nothing, where these were wrong, or not
        all packets go on.
        """
        sa = pair.inbound
        deliveries: set[Delivery] = set()
        lengths: dict[int, int] = {}
        for size, guess in guesses.items():
            verdict = guess.verdict(pair)
            if verdict is None:
                pair.usual.pop(size - sa.overhead, None)
                return False
            delivery, lengths[size] = verdict
            deliveries.add(delivery)
        if len(deliveries) > 1:
            return False
        way, header = deliveries.pop()
        start = len(header)
        frames = {size: (guess.buffer.data, start + lengths[size]) for size, guess in guesses.items()}
        counts = {size: len(guess.slots) for size, guess in guesses.items()}
        if any(hops.any_spent(*frames[size], counts[size], start) for size in frames):
            return False
        total = sum([lengths[size] * counts[size] for size in frames])
        if sa.limits and not admit(sa.limits, total, 1, now):
            return False
        for size, guess in guesses.items():
            guess.mend()
            hops.forward(*frames[size], counts[size], start)
        self._outbox.add_runs(way, ordered.runs(frames))
        sa.packets += ordered.packets
        sa.bytes += total
        return True

    def _deliver_each(self, pair: Pair, plaintexts: list[bytes], now: float, *, expect: bool = False) -> None:
        """Opened packets of one SA, of any sizes, in order; `expect` the same of others of their sizes."""
        sa = pair.inbound
        if not sa.selectors.by_address or min(map(len, plaintexts)) < 2 or {t[-1] for t in plaintexts} != {4}:
            for plaintext in plaintexts:
                self._judge_one(pair, plaintext, now)
            return
        rows = [(t[:4], t[12:20], t[-2 - t[-2] :]) for t in plaintexts]
        found = list(map(pair.verdicts.get, zip(map(len, plaintexts), rows, strict=True)))
        verdicts = (
            cast("list[Verdict]", found)
            if None not in found
            else [
                verdict or self._verdict(pair, row, text)
                for verdict, row, text in zip(found, rows, plaintexts, strict=True)
            ]
        )
        delivery = only_delivery(verdicts)
        if delivery is not None:
            self._deliver_row(pair, delivery, verdicts, plaintexts, now, expect=expect)
            return
        following = iter(plaintexts)
        for way_out, same in groupby(verdicts, leaving):
            stretch = list(same)
            texts = list(islice(following, len(stretch)))
            if isinstance(way_out, str):
                self._counters[way_out] += len(texts)
            elif len(texts) > 1:
                self._deliver_row(pair, way_out, stretch, texts, now)
            else:
                self._deliver(pair, stretch[0], texts, now)

    def _deliver_row(
        self,
        pair: Pair,
        delivery: Delivery,
        verdicts: Sequence[Verdict],
        plaintexts: list[bytes],
        now: float,
        *,
        expect: bool = False,
    ) -> None:
        """Packets of any sizes, of IPv4, whose verdicts have all this delivery."""
        sa, (way, header) = pair.inbound, delivery
        lengths = [length for _, length in cast("Sequence[tuple[Delivery, int]]", verdicts)]
        if sa.limits:
            plaintexts, lengths = self._admitted(sa, plaintexts, lengths, now)
            if not lengths:
                return
        if pair.mss is not None:
            plaintexts = [clamp(plaintext, pair.mss) for plaintext in plaintexts]
        words = hops.words(plaintexts)
        if words is None:
            left = [
                (text, length)
                for text, length in zip(plaintexts, lengths, strict=True)
                if not self._is_spent(pair, text[:length], now)
            ]
            plaintexts, lengths = [text for text, _ in left], [length for _, length in left]
            words = hops.words(plaintexts) or ()
        frames = [
            b"".join((header, text[: hops.START], word, text[hops.STOP : length]))
            for text, word, length in zip(plaintexts, words, lengths, strict=True)
        ]
        self._outbox.add_row(way, frames)
        if expect:
            sizes = {len(text): (text, length) for text, length in zip(plaintexts, lengths, strict=True)}
            for text, length in sizes.values():
                tail = text[-2] + 2
                if length + tail == len(text):  # no padding of another kind (RFC 4303 2.7)
                    pair.expect(Usual(header, length, tail, version=4))
        sa.packets += len(frames)
        sa.bytes += sum(lengths)

    def _admitted(
        self, sa: InboundSa, texts: list[bytes], lengths: list[int], now: float
    ) -> tuple[list[bytes], list[int]]:
        """What the limits leave of a row of packets of any sizes."""
        places = admit_row(sa.limits, lengths, now)
        if len(places) == len(lengths):
            return texts, lengths
        left = [lengths[place] for place in places]
        self._limited(sa, len(lengths) - len(places), sum(lengths) - sum(left))
        return [texts[place] for place in places], left

    def _one_spi(
        self,
        spi: int,
        numbers: Sequence[int],
        data: memoryview | bytes,
        size: int,
        source: Address,
        now: float,
        origin: Address | None,
        tos: int,
    ) -> None:
        count = len(numbers)
        pair = self._pairs.get(spi)
        if pair is None:
            if spi in self._parking:
                packets = [bytes(data[at : at + size]) for at in range(0, count * size, size)]
                self._parking.park(spi, packets, origin, now, tos)
            elif spi and origin == source:
                for at in range(0, count * size, size):
                    self._give_back(data[at : at + size], source, tos)
            else:
                self._counters["gpn_drop_unknown_spi"] += count
            return
        sa, before = pair.inbound, pair.inbound.highest
        usual = pair.usual.get(size - sa.overhead) if count >= FEW else None
        if usual is not None and pair.mss is None and not ecn.telling(tos):
            guess = self._frames.guess(usual, count)
            opened = guess and sa.open_into(numbers, data, size, guess.slots, self._counters, now)
            if guess is not None and (opened is None or len(opened) < count):
                del pair.usual[size - sa.overhead]
            if guess is not None and opened is not None:
                if opened:
                    self._opened(pair, before, source, origin)
                    self._guessed(pair, guess, opened, now)
                return
        plaintexts = sa.open(numbers, data, size, self._counters, now)
        if plaintexts:
            self._opened(pair, before, source, origin)
            whole = len(plaintexts) == count
            if ecn.telling(tos):
                plaintexts = self._leave(plaintexts, tos)
            if plaintexts:
                self._pass_on(pair, plaintexts, now, whole)

    def _guessed(self, pair: Pair, guess: Guess, opened: Sequence[int], now: float) -> None:
        """Opened packets of one SA, at these places of the row, behind headers that were guessed."""
        whole = len(opened) == len(guess.slots)
        verdict = guess.verdict(pair) if whole else None
        if verdict is not None:
            guess.mend()
            self._send(pair, verdict, guess, len(opened), now)
        else:
            self._pass_on(pair, guess.texts(opened), now, whole)

    def _opened(self, pair: Pair, before: int, source: Address, origin: Address | None) -> None:
        """Of a row that came in at once something was authentic; `before`, this was the highest number."""
        sa = pair.inbound
        if not sa.authentic:
            sa.authentic = True
            self._events.append(FirstPacket(sa.spi))
        if origin is not None and origin != pair.peer and origin[1] and pair.peer[1] and sa.highest > before:
            pair.move_peer(origin)
            self._events.append(PeerMoved(sa.spi, *origin))
        if pair.doors is not None and source != pair.came_by:
            pair.come_by(source)

    def _leave(self, opened: list[bytes], tos: int) -> list[bytes]:
        """Those that may go on under what the outer ECN field says, with that in them."""
        left = [each for plaintext in opened if (each := _leave(plaintext, tos)) is not None]
        self._counters["gpn_drop_ecn_in"] += len(opened) - len(left)
        return left

    def _pass_on(self, pair: Pair, plaintexts: list[bytes], now: float, whole: bool) -> None:
        """Opened packets of one SA and one size, in order; `whole` tells that they are all that came."""
        first, count = plaintexts[0], len(plaintexts)
        tail = first[-2] + 2 if len(first) >= 2 else 0
        version = 6 if first[-1:] == b"\x29" else 4
        decisive = decisive_fields(len(first), tail, version)
        if decisive is None or not pair.inbound.selectors.by_address:
            for plaintext in plaintexts:
                self._judge_one(pair, plaintext, now)
            return
        row: Row = decisive.unpack(first)
        verdict = self._verdict(pair, row, first)
        if (
            pair.mss is None
            and not isinstance(verdict, str)
            and all(map(bytes.endswith, plaintexts, repeat(row[2])))
        ):
            frames, header = framed(verdict, plaintexts), len(verdict[0].header)
            same = alike(frames, header + verdict[1], count, judged(header, version))
            if same or self._all_are(verdict, pair, plaintexts, decisive):
                if whole and count >= FEW and pair.inbound.opens_into and verdict[1] + tail == len(first):
                    pair.expect(Usual(verdict[0].header, verdict[1], tail, version))
                self._send(pair, verdict, frames, count, now)
                return
        rows: list[Row] = [decisive.unpack(plaintext) for plaintext in plaintexts]
        if rows.count(row) == count:
            self._deliver(pair, verdict, plaintexts, now)
        else:
            self._mixed(pair, rows, plaintexts, now)

    def _all_are(
        self, verdict: Verdict, pair: Pair, plaintexts: Sequence[bytes], decisive: struct.Struct
    ) -> bool:
        """Whether opened packets of one size are of this verdict, whatever flows they are of."""
        examples = dict(zip(map(decisive.unpack, plaintexts), plaintexts, strict=True))
        return all(self._verdict(pair, row, text) == verdict for row, text in examples.items())

    def _mixed(self, pair: Pair, rows: list[Row], plaintexts: list[bytes], now: float) -> None:
        """Opened packets of several flows. Where their lengths differ, as padding allows, or their TOS, they
        may be of one flow, whose order is kept.
        """
        if len({row[2] for row in rows}) == 1:
            examples = dict(zip(rows, plaintexts, strict=True))  # a packet of each combination
            judged = {row: self._verdict(pair, row, plaintext) for row, plaintext in examples.items()}
            verdicts = [judged[row] for row in rows]
            kinds = {(v[1], v[0].way.tos) for v in judged.values() if not isinstance(v, str)}
            if len(kinds) <= 1:
                groups: dict[Verdict, list[bytes]] = {}
                for verdict, plaintext in zip(verdicts, plaintexts, strict=True):
                    groups.setdefault(verdict, []).append(plaintext)
                for verdict, group in groups.items():
                    self._deliver(pair, verdict, group, now)
            else:
                following = iter(plaintexts)
                for verdict, stretch in groupby(verdicts):
                    self._deliver(pair, verdict, [next(following) for _ in stretch], now)
            return
        for plaintext in plaintexts:
            self._judge_one(pair, plaintext, now)

    def _deliver(self, pair: Pair, verdict: Verdict, plaintexts: Sequence[bytes], now: float) -> None:
        """Packets of one verdict: a delivery with the length of the inner packet, or the reason of a drop."""
        count = len(plaintexts)
        if isinstance(verdict, str):
            self._counters[verdict] += count
            return
        if pair.mss is not None:
            plaintexts = clamp_row(plaintexts, pair.mss)
        self._send(pair, verdict, framed(verdict, plaintexts), count, now)

    def _send(
        self, pair: Pair, verdict: tuple[Delivery, int], frames: bytearray | Guess, count: int, now: float
    ) -> None:
        """Frames of one verdict. Here the limits hold: what gets so far is authentic, new, and one of the
        tunnel's.
        """
        (way, header), length = verdict
        sa, start = pair.inbound, len(header)
        size = start + length
        if sa.limits and (admitted := admit(sa.limits, length, count, now)) < count:
            self._limited(sa, count - admitted, (count - admitted) * length)
            count = admitted
            if not count:
                return
        data = frames if isinstance(frames, bytearray) else frames.buffer.data
        if not hops.forward(data, size, count, start):
            data = frames = self._unspent(pair, data, size, count, start, now)
            count = len(data) // size
            if not count:
                return
            hops.forward(data, size, count, start)
        if isinstance(frames, bytearray):
            del frames[count * size :]
            self._outbox.add(way, size, frames, count)
        else:
            self._outbox.add(way, size, frames.frames(count), count)
        sa.packets += count
        sa.bytes += length * count

    def _unspent(
        self, pair: Pair, data: bytearray, size: int, count: int, start: int, now: float
    ) -> bytearray:
        """Those of so many frames whose packets have a hop left."""
        frames = [data[at : at + size] for at in range(0, count * size, size)]
        return bytearray().join(
            [frame for frame in frames if not self._is_spent(pair, bytes(frame[start:]), now)]
        )

    def _is_spent(self, pair: Pair, packet: bytes, now: float) -> bool:
        """Whether a packet has no hop left; then its sender is told."""
        if not hops.spent(packet):
            return False
        self._counters["gpn_drop_ttl_in"] += 1
        self._tell(pair, packet, now)
        return True

    def _limited(self, sa: InboundSa, packets: int, size: int) -> None:
        self._counters["gpn_drop_limit_in"] += packets
        sa.limited = sa.limited.plus(packets, size)

    def _judge_one(self, pair: Pair, plaintext: bytes, now: float) -> None:
        self._deliver(pair, self._judge(pair, plaintext), [plaintext], now)

    def _verdict(self, pair: Pair, row: Row, plaintext: bytes) -> Verdict:
        """What was judged before of a packet of this row, or is now."""
        key = len(plaintext), row
        verdict = pair.verdicts.get(key)
        if verdict is None:
            verdict = self._judge(pair, plaintext)
            if len(pair.verdicts) >= MAX_VERDICTS:
                pair.verdicts.clear()
            if self._judged >= MAX_JUDGED:
                self._judged = 0
                for other in self._pairs.values():
                    other.verdicts.clear()
            pair.verdicts[key] = verdict
            self._judged += 1
        return verdict

    def _judge(self, pair: Pair, plaintext: bytes) -> Verdict:
        try:
            inner, packet = unwrap(plaintext)
        except Dropped as drop:
            return drop.counter
        if not pair.inbound.selectors.admit(inner, packet):
            return "gpn_drop_selector_in"
        tenant = self._tenants.get(pair.entry.vni)
        destination = inner.addresses[len(inner.addresses) // 2 :]
        delivery = tenant.deliver(destination) if tenant else None
        if delivery is None:
            return "gpn_drop_no_vtep"
        way, header = delivery
        return Delivery(way._replace(tos=ecn.tos(packet)), header), inner.length


def _leave(plaintext: bytes, tos: int) -> bytes | None:
    left = ecn.leave(plaintext, tos)
    if left is None:
        try:
            unwrap(plaintext)
        except Dropped:  # for another reason, which is found below
            return plaintext
    return left
