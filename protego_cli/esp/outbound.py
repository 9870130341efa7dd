"""From the tenant to the peer: VXLAN in, ESP out, a GRO batch at a time (RFC 4303 3.3, RFC 4301 5.1).

1. What decides about a frame is the headers up to the inner length, protocol, addresses. Nearly always all
   frames of a batch agree in it, which columns compared in C tell. Each distinct combination is judged once
   and remembered as a flow, until a table of its VNI changes.
2. The source must be a GEN or a VTEP of that VNI; the VNI and the selectors find the tunnel ruled to seal
   here. What a VTEP sent straight here and no tunnel here takes, ARP too, goes on to a GEN that is there,
   unchanged; also what a tunnel takes that is leaving and `divert`ed.
3. A virtual link may have left inner checksums and segmentation to a card (`wire/offload.py`); one strided
   look at the checksum fields tells.
4. Where the VXLAN packet's ECN field says so, the inner one is changed, or the packet dropped (RFC 6040).
5. A packet that has no hop left goes no further, and its sender is told; what goes on has one less. What
   would not fit the tunnel's path is cut, or its sender told (`oversize.py`). Of one flow and frame size all
   are so or none is, so that it is found once.
6. Inner packets, as far as the rate limits admit them, get their trailers, numbers are taken from the sealing
   range, and the row is sealed; it leaves with the TOS that the inner packets and the tunnel give it. A long
   row is sealed from the frames as they came, where the suite can.

A row of frames of any sizes, from several batches, goes the same way in one go for each SA and TOS. A long
one, of few sizes each of one known flow, is sorted by these, and each is sealed like a long row, under the
numbers that its packets have in the order in which they came, and leave (`sorting.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby, repeat
from operator import add
from typing import NamedTuple, cast

from protego_cli.counters import Counters
from protego_cli.errors import Malformed
from protego_cli.esp.doors import Doors
from protego_cli.esp.events import Event, RangeLow
from protego_cli.esp.joining import Batch
from protego_cli.esp.limits import admit, admit_row
from protego_cli.esp.outbox import Address, Buffer, Outbox, Port, Way
from protego_cli.esp.oversize import Oversize
from protego_cli.esp.packet import trailer
from protego_cli.esp.pairs import Pair
from protego_cli.esp.remembered import Remembered
from protego_cli.esp.sa import OutboundSa
from protego_cli.esp.slices import FEW, MAX_BYTES, MAX_ROWS, received
from protego_cli.esp.sorting import Joined, Sorted, packets, sort
from protego_cli.esp.telling import Telling
from protego_cli.esp.tenants import Tenant
from protego_cli.wire import ecn, hops, mss, offload, vxlan
from protego_cli.wire.columns import Spans, alike
from protego_cli.wire.icmp_errors import TIME_EXCEEDED
from protego_cli.wire.inner import Inner, parse
from protego_cli.wire.returning import HEADER_LENGTH, add_header
from protego_cli.wire.vxlan import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAME_LENGTH

MAX_FLOWS = 1 << 16
# Where in a frame that lies which decides: the row but for MAC addresses.
_V4_SPANS: Spans = ((0, 8), (20, 26), (28, 32), (34, 42))
_V6_SPANS: Spans = ((0, 8), (20, 62))
_V4_ROW = struct.Struct("26s2x4s2x8s")  # the fields of a row
_UP_TO_HOPS, _BEHIND = slice(FRAME_LENGTH, FRAME_LENGTH + hops.START), FRAME_LENGTH + hops.STOP  # of IPv4
_LEAST = FRAME_LENGTH + 20  # of a frame with an IPv4 header
RETURN = "gpn_returned"  # what becomes of frames that a GEN should have

Row = tuple[bytes, ...]
"""VXLAN and Ethernet headers and the inner header up to the length (IPv6: next header); fragment, TTL and
protocol (IPv6: hop limit); addresses."""


class Flow(NamedTuple):
    """What becomes of frames that agree in all that decides."""

    pair: Pair
    length: int  # of the inner packet
    trailer: bytes
    unfinished: offload.Mark | None  # tells packets that were left to a card
    tos: int  # of the inner packet
    apart: bool  # out of hops, or too long for the tunnel's path: each is looked at
    flags: int  # offset of the TCP flags in a frame, where SYNs are looked for


class Outbound:
    """The tables of pairs and tenants belong to the gateway; this only reads them."""

    def __init__(
        self,
        counters: Counters,
        pairs: dict[int, Pair],
        tenants: dict[int, Tenant],
        outbox: Outbox,
        events: list[Event],
    ) -> None:
        self._counters = counters
        self._pairs = pairs
        self._tenants = tenants
        self._outbox = outbox
        self._events = events
        self._telling = Telling(tenants, outbox)
        self._oversize = Oversize(counters, self._telling)
        self._gens: tuple[Address, ...] = ()
        self._back = Doors()  # the GENs that are there
        self._ruled: dict[int, dict[str, Pair]] = {}  # by VNI, then tunnel
        self._diverted: set[str] = set()  # tunnels that take packets from GENs alone
        self._by_packet: set[bytes] = set()  # VNIs, as on the wire, whose selectors look at ports
        # by origin, frame size, and what decides
        self._flows: Remembered[tuple[str, int, Row], Flow | str] = Remembered(MAX_FLOWS)

    def set_gens(self, gens: Iterable[Address]) -> None:
        """Where GENs send from, and take back what is not sealed here."""
        self._gens = tuple(gens)
        self._back.keep(frozenset(address for address, _ in self._gens))
        self._flows.clear()

    def hear(self, gen: Address, now: float) -> None:
        """A GEN is there: it has sent an authentic tag."""
        if gen in self._gens:
            self._back.hear(gen, now)

    def expire(self, now: float) -> None:
        """Pass nothing on to a GEN that is silent, where another one is there."""
        self._back.expire(now)

    def forget(self, vni: int) -> None:
        """A table changed: what was remembered of this VNI holds no more."""
        self._flows.forget(vni)

    def rule(self, vni: int, tunnel: str, pair: Pair | None) -> None:
        """Seal the tunnel's packets on this pair, or not at all."""
        ruled = self._ruled.setdefault(vni, {})
        ruled.pop(tunnel, None)
        if pair is not None:
            ruled[tunnel] = pair
        if not ruled:
            del self._ruled[vni]
        if all(other.outbound.selectors.by_address for other in ruled.values()):
            self._by_packet.discard(vni.to_bytes(3))
        else:
            self._by_packet.add(vni.to_bytes(3))
        self._flows.forget(vni)

    def divert(self, tunnel: str, diverted: bool) -> None:
        """Let what VTEPs send straight here for this tunnel go on to a GEN, or no longer. `rule` follows."""
        (self._diverted.add if diverted else self._diverted.discard)(tunnel)

    def receive(self, view: memoryview, size: int, source: Address, now: float, tos: int = 0) -> None:
        """VXLAN frames of one size, that came with this TOS. `now` is wall-clock time."""
        origin = "" if source in self._gens else source[0]
        count = len(view) // size
        ethertype = bytes(view[20:22])
        layout = _row(size, ethertype)
        if layout is None:
            self._one_by_one(origin, view, size, now, tos)
            return
        row: Row = layout.unpack_from(view)
        if alike(view, size, count, _V6_SPANS if ethertype == ETHERTYPE_IPV6 else _V4_SPANS):
            if count > 1 and row[0][4:7] in self._by_packet:
                self._one_by_one(origin, view, size, now, tos)
            else:
                self._pass_on(self._find(origin, row, view[:size]), view, size, count, now, tos)
            return
        rows: list[Row] = [layout.unpack_from(view, at) for at in range(0, len(view), size)]
        if any(other[0][20:22] != row[0][20:22] for other in rows):  # IPv4 beside IPv6
            self._one_by_one(origin, view, size, now, tos)
        else:
            self._mixed(origin, rows, view, size, now, tos)

    def kind(self, view: memoryview, size: int) -> Row | None:
        """What batches have in common that may be one row (`joining.py`): all that decides."""
        layout = _row(size, bytes(view[20:22]))
        return layout.unpack_from(view) if layout and len(view) >= size else None

    def receive_row(self, batches: Sequence[Batch], source: Address, now: float, tos: int) -> bool:
        """Short batches of VXLAN frames of any sizes; False, having done nothing, where they are to be looked
        at singly.

        Their ECN field means nothing for what is within.
        """
        origin = "" if source in self._gens else source[0]
        ordered = sort(batches)
        if ordered is not None and self._seal_sorted(origin, ordered, now):
            return True
        frames = packets(batches)
        sizes = list(map(len, frames))
        if min(sizes) < _LEAST:
            return False
        rows: list[Row] = list(map(_V4_ROW.unpack_from, frames))
        found = list(map(self._flows.get, zip(repeat(origin), sizes, rows, strict=False)))
        known = None not in found
        if not known and ({row[0][20:22] for row in rows} != {ETHERTYPE_IPV4} or self._asks_for_ports(rows)):
            return False
        flows = (
            cast("list[Flow | str]", found)
            if known
            else [
                flow or self._find(origin, row, memoryview(frame))
                for flow, row, frame in zip(found, rows, frames, strict=True)
            ]
        )
        pair = _only_pair(flows, frames)
        if pair is not None:
            plain = cast("list[Flow]", flows)
            self._seal_each(pair, _texts(plain, frames), [flow.length for flow in plain], now)
            return True
        for sealer, row in groupby(zip(flows, frames, strict=True), key=_sealer):
            if sealer is None:
                for flow, frame in row:
                    self._pass_on(flow, memoryview(frame), len(frame), 1, now, tos)
            else:
                framed = [(flow, frame) for flow, frame in row if not isinstance(flow, str)]
                plain = [flow for flow, _ in framed]
                texts = _texts(plain, [frame for _, frame in framed])
                self._seal_each(sealer[0], texts, [flow.length for flow in plain], now)
        return True

    def _asks_for_ports(self, rows: Sequence[Row]) -> bool:
        """Whether more decides about any of these than what is in its row."""
        return bool(self._by_packet) and not self._by_packet.isdisjoint([row[0][4:7] for row in rows])

    def _seal_each(self, pair: Pair, texts: Sequence[bytes], lengths: Sequence[int], now: float) -> None:
        """Padded inner packets of one TOS, and their lengths without the trailers."""
        sa, count = pair.outbound, len(texts)
        if sa.expires is not None and now >= sa.expires:
            self._counters["gpn_drop_expired"] += count
            return
        way = pair.way_around(texts[0])
        if way is None:
            self._counters["gpn_drop_no_gin"] += count
            return
        if sa.limits and len(places := admit_row(sa.limits, lengths, now)) < count:
            left = [lengths[place] for place in places]
            self._limited(sa, count - len(places), sum(lengths) - sum(left))
            texts, lengths, count = [texts[place] for place in places], left, len(places)
            if not count:
                return
        packets = sa.seal_each(texts)
        header = pair.header
        self._outbox.add_row(way, [header + packet for packet in packets] if header else packets)
        sa.packets += len(packets)
        sa.bytes += sum(lengths[: len(packets)])
        self._told(pair, count - len(packets))

    def _mixed(self, origin: str, rows: list[Row], view: memoryview, size: int, now: float, tos: int) -> None:
        """Frames of several flows. Those for one SA stay in order, whatever flows they belong to."""
        frames = [view[at : at + size] for at in range(0, len(view), size)]
        flows = [self._find(origin, row, frame) for row, frame in zip(rows, frames, strict=True)]
        groups: dict[int | str, list[int]] = {}
        for place, flow in enumerate(flows):
            groups.setdefault(flow if isinstance(flow, str) else flow.pair.entry.spi_in, []).append(place)
        for places in groups.values():
            for flow, stretch in groupby(places, key=flows.__getitem__):
                data = b"".join([frames[place] for place in stretch])
                self._pass_on(flow, memoryview(data), size, len(data) // size, now, tos)

    def _one_by_one(self, origin: str, view: memoryview, size: int, now: float, tos: int) -> None:
        for at in range(0, len(view), size):
            frame = view[at : at + size]
            layout = _row(size, bytes(frame[20:22]))
            flow = self._find(origin, layout.unpack(frame), frame) if layout else self._decide(origin, frame)
            self._pass_on(flow, frame, size, 1, now, tos)

    def _find(self, origin: str, row: Row, frame: memoryview) -> Flow | str:
        if row[0][4:7] in self._by_packet:
            return self._decide(origin, frame)
        key = origin, len(frame), row
        flow = self._flows.get(key)
        if flow is None:
            flow = self._decide(origin, frame)
            self._flows.put(row[0][4:7], key, flow)
        return flow

    def _decide(self, origin: str, frame: memoryview) -> Flow | str:
        """What becomes of a frame, or the counter of the reason why nothing. `origin` is empty for a GEN."""
        try:
            vni = vxlan.parse(frame)
        except Malformed:
            return "gpn_drop_vxlan_malformed"
        tenant = self._tenants.get(vni)
        if origin and (tenant is None or not tenant.takes_from(origin, self._gens)):
            return "gpn_drop_vxlan_source"
        if origin and self._gens and frame[20:22] == ETHERTYPE_ARP:  # a VTEP that has learned where we are
            return RETURN
        packet = frame[FRAME_LENGTH:]
        try:
            inner = parse(packet)
        except Malformed:
            return "gpn_drop_inner"
        if frame[20:22] != (ETHERTYPE_IPV4 if inner.version == 4 else ETHERTYPE_IPV6):
            return "gpn_drop_inner"
        tunnel, pair = self._tunnel(vni, inner, packet)
        if origin and self._gens and (pair == "gpn_drop_no_rule" or tunnel in self._diverted):
            return RETURN
        if isinstance(pair, str):
            return pair
        tail = trailer(inner.length, inner.version, pair.outbound.block)
        apart = hops.spent(packet) or inner.length > pair.limit(inner.version)
        flags = mss.flags_at(packet) if pair.mss else 0
        flags += FRAME_LENGTH if flags else 0
        return Flow(pair, inner.length, tail, offload.mark(frame), ecn.tos(packet), apart, flags)

    def _tunnel(self, vni: int, inner: Inner, packet: memoryview) -> tuple[str, Pair | str]:
        """Who seals: of the tunnels that take the packet, the one most exact about its destination."""
        destination = inner.addresses[len(inner.addresses) // 2 :]
        verdict, narrowest = "gpn_drop_no_rule", (1 << 128) + 1
        best: tuple[str, Pair] | None = None
        for tunnel, pair in sorted(self._ruled.get(vni, {}).items()):  # of equals, the lower tunnel id has it
            selectors = pair.outbound.selectors
            breadth = selectors.breadth(destination)
            if breadth is None:
                continue
            verdict = "gpn_drop_selector_out"
            if breadth < narrowest and selectors.admit(inner, packet):
                best, narrowest = (tunnel, pair), breadth
        return best or ("", verdict)

    def _pass_on(
        self, flow: Flow | str, view: memoryview, size: int, count: int, now: float, tos: int
    ) -> None:
        """Frames of one flow."""
        if isinstance(flow, str):
            if flow is RETURN:
                gen = self._back.choose(self._gens[0]) or self._gens[0]
                self._outbox.add(Way(Port.VXLAN, gen, None, RETURN, tos), size, view, count)
            else:
                self._counters[flow] += count
            return
        if ecn.telling(tos) and ecn.combined(flow.tos, tos) != flow.tos & 3:
            view = self._leave(view, size, tos)
            count = len(view) // size
            if not count:
                return
        mark = flow.unfinished
        if flow.apart or (flow.flags and mss.any_syn(bytes(view[flow.flags :: size]))):
            self._each(flow, view, size, now)
        elif mark and _any_unfinished(mark, view, size):
            self._finish(flow, mark, view, size, now)
        elif FEW <= count <= MAX_ROWS and count * size <= MAX_BYTES:
            self._seal_frames(flow, view, size, count, now)
        else:
            inners = _inners(size, flow.length, count).unpack_from(_forwarded(view, size, count))
            self._seal(flow.pair, inners, flow.length, flow.trailer, now)

    def _leave(self, view: memoryview, size: int, tos: int) -> memoryview:
        """Those frames that may go on under what the VXLAN packets' ECN field says, with that in them."""
        frames = [
            ecn.leave(bytes(view[at : at + size]), tos, FRAME_LENGTH) for at in range(0, len(view), size)
        ]
        left = [frame for frame in frames if frame is not None]
        self._counters["gpn_drop_ecn_out"] += len(frames) - len(left)
        return memoryview(b"".join(left))

    def _finish(self, flow: Flow, mark: offload.Mark, view: memoryview, size: int, now: float) -> None:
        """Frames of which some were left to a card: checksums, and segments, are made here."""
        start, end, at, value, whole = mark
        if not whole:
            self._each(flow, view, size, now)
            return
        view = memoryview(_forwarded(view, size, len(view) // size))
        inners: list[bytes] = []
        for first in range(0, len(view), size):
            frame = view[first : first + size]
            if frame[at : at + 2] != value:
                inners.append(bytes(frame[FRAME_LENGTH:end]))
            else:
                checksum = offload.checksum(frame, start, end)
                inners.append(b"".join((frame[FRAME_LENGTH:at], checksum, frame[at + 2 : end])))
        self._seal(flow.pair, inners, flow.length, flow.trailer, now)

    def _each(self, flow: Flow, view: memoryview, size: int, now: float) -> None:
        """Frames of which any may come to be several packets, or none."""
        pair, mark = flow.pair, flow.unfinished
        for at in range(0, len(view), size):
            frame = view[at : at + size]
            if hops.spent(frame[FRAME_LENGTH:]):
                self._counters["gpn_drop_ttl_out"] += 1
                packet = bytes(frame[FRAME_LENGTH : FRAME_LENGTH + flow.length])
                self._telling.tenant(pair, packet, TIME_EXCEEDED, "gpn_told_ttl", now)
                continue
            pieces: Sequence[bytes | memoryview] = (frame,)
            if mark and frame[mark.at : mark.at + 2] == mark.value:
                limit = pair.limit(frame[FRAME_LENGTH] >> 4)
                pieces = offload.finish(frame, mtu=min(offload.INNER_MTU, limit))
            for piece in pieces:
                inner = parse(piece[FRAME_LENGTH:])
                packet = bytes(piece[FRAME_LENGTH : FRAME_LENGTH + inner.length])
                packet = mss.clamp(packet, pair.mss) if pair.mss else packet
                for part in self._oversize.fit(pair, inner, packet, now):
                    self._seal_one(pair, hops.forwarded(part), inner.version, now)

    def tell(self, pair: Pair, packet: bytes, now: float) -> None:
        """A packet that opened on this pair has no hop left: its sender is told through the tunnel."""
        error = self._telling.peer(pair, packet, TIME_EXCEEDED, now)
        if error is not None and pair.outbound.next < pair.outbound.hi:
            self._seal_one(pair, error, error[0] >> 4, now)

    def _seal_one(self, pair: Pair, packet: bytes, version: int, now: float) -> None:
        length = len(packet)
        self._seal(pair, (packet,), length, trailer(length, version, pair.outbound.block), now)

    def _seal(self, pair: Pair, inners: Sequence[bytes], length: int, tail: bytes, now: float) -> None:
        """Inner packets of one length, in order."""
        way, count = self._admitted(pair, inners[0], length, len(inners), now)
        if way is not None:
            texts = list(map(add, inners[:count], repeat(tail)))
            self._sealed(pair, way, pair.outbound.seal(texts), count, length, tail)

    def _seal_frames(self, flow: Flow, view: memoryview, size: int, count: int, now: float) -> None:
        """Frames of one flow, as they came."""
        pair, length, tail = flow.pair, flow.length, flow.trailer
        first = view[FRAME_LENGTH : FRAME_LENGTH + 2]
        way, count = self._admitted(pair, first, length, count, now)
        if way is not None:
            received.put(view, count * size)
            hops.forward(received.data, size, count, FRAME_LENGTH)
            data = pair.outbound.seal_within(received, size, count, FRAME_LENGTH, length, tail)
            self._sealed(pair, way, data, count, length, tail)

    def _seal_sorted(self, origin: str, ordered: Sorted, now: float) -> bool:
        """Frames of which all of a size are of one flow that is known, and all flows of one SA; False, having
        done nothing, where they are not, or cannot all be sealed as they are.
        """
        flows: dict[int, Flow] = {}
        counts = {size: len(data) // size for size, data in ordered.rows.items()}
        for size, data in ordered.rows.items():
            if size < _LEAST or counts[size] > MAX_ROWS or len(data) > MAX_BYTES:
                return False
            if not alike(data, size, counts[size], _V4_SPANS):
                return False
            flow = self._flows.get((origin, size, _V4_ROW.unpack_from(data)))
            if flow is None or isinstance(flow, str) or flow.apart or flow.flags:
                return False
            if flow.unfinished is not None and _any_unfinished(flow.unfinished, memoryview(data), size):
                return False
            flows[size] = flow
        first = next(iter(flows.values()))
        pair, sa = first.pair, first.pair.outbound
        if any(flow.pair is not pair or flow.tos != first.tos for flow in flows.values()):
            return False
        total = sum([flow.length * counts[size] for size, flow in flows.items()])
        way = pair.way_around(next(iter(ordered.rows.values()))[FRAME_LENGTH : FRAME_LENGTH + 2])
        expired = sa.expires is not None and now >= sa.expires
        if way is None or pair.header or not sa.seals_within or expired or sa.hi - sa.next < ordered.packets:
            return False
        if sa.limits and not admit(sa.limits, total, 1, now):
            return False
        numbers = ordered.allotted(sa.take(ordered.packets))
        held: list[Buffer] = []  # or the next row would be sealed where this one lies
        sealed: dict[int, tuple[Joined, int]] = {}
        for size, (_, length, tail, *_) in flows.items():
            received.put(ordered.rows[size], counts[size] * size)
            hops.forward(received.data, size, counts[size], FRAME_LENGTH)
            held.append(sa.seal_numbered(numbers[size], received, size, FRAME_LENGTH, length, tail))
            lies = held[-1].obj if isinstance(held[-1], memoryview) else held[-1]
            sealed[size] = cast("Joined", lies), sa.overhead + length + len(tail)
        self._outbox.add_runs(way, ordered.runs(sealed))
        sa.packets += ordered.packets
        sa.bytes += total
        self._told(pair, 0)
        return True

    def _admitted(
        self, pair: Pair, first: bytes | memoryview, length: int, count: int, now: float
    ) -> tuple[Way | None, int]:
        """The way of packets as long as the first, and how many of them may go; no way where none may."""
        sa = pair.outbound
        if sa.expires is not None and now >= sa.expires:
            self._counters["gpn_drop_expired"] += count
            return None, 0
        way = pair.way_around(first)
        if way is None:
            self._counters["gpn_drop_no_gin"] += count
        elif sa.limits and (admitted := admit(sa.limits, length, count, now)) < count:
            self._limited(sa, count - admitted, (count - admitted) * length)
            return way if admitted else None, admitted
        return way, count

    def _sealed(self, pair: Pair, way: Way, data: Buffer, count: int, length: int, tail: bytes) -> None:
        """What has become of `count` inner packets of this length and trailer."""
        sa = pair.outbound
        size = sa.overhead + length + len(tail)
        sealed = len(data) // size
        if sealed:
            if pair.header:
                data = add_header(pair.header, data, size, sealed)
                size += HEADER_LENGTH
            self._outbox.add(way, size, data, sealed)
            sa.packets += sealed
            sa.bytes += sealed * length
        self._told(pair, count - sealed)

    def _limited(self, sa: OutboundSa, packets: int, size: int) -> None:
        self._counters["gpn_drop_limit_out"] += packets
        sa.limited = sa.limited.plus(packets, size)

    def _told(self, pair: Pair, left: int) -> None:
        """After sealing: count those that the range had no numbers for, tell when it comes to its end."""
        sa = pair.outbound
        if left:
            self._counters["gpn_drop_range"] += left
        if sa.next >= sa.low_at and not pair.low_told:
            pair.low_told = True
            self._events.append(RangeLow(pair.entry.spi_in))


def _only_pair(flows: Sequence[Flow | str], frames: Sequence[bytes]) -> Pair | None:
    """Who seals all these frames, if that is one, with one TOS, and all may be sealed as they are."""
    distinct = {id(flow): flow for flow in flows}.values()  # a few, for many frames
    first, marks = flows[0], set()
    for flow in distinct:
        if isinstance(flow, str) or isinstance(first, str) or flow.apart or flow.flags:
            return None
        if flow.pair is not first.pair or flow.tos != first.tos:
            return None
        if flow.unfinished is not None:
            marks.add(flow.unfinished)
    for at in {mark.at for mark in marks}:
        if not {mark.value for mark in marks}.isdisjoint([frame[at : at + 2] for frame in frames]):
            return None
    return None if isinstance(first, str) else first.pair


def _sealer(framed: tuple[Flow | str, bytes]) -> tuple[Pair, int] | None:
    """Who seals a frame, and its inner TOS, if it may be sealed as it is."""
    flow, frame = framed
    if isinstance(flow, str) or flow.apart:
        return None
    mark, flags = flow.unfinished, flow.flags
    if (mark and frame[mark.at : mark.at + 2] == mark.value) or (flags and frame[flags] & mss.SYN):
        return None
    return flow.pair, flow.tos


def _forwarded(view: memoryview, size: int, count: int) -> bytearray:
    """Frames of one flow, whose packets have a hop left, with one less."""
    data = bytearray(view)
    hops.forward(data, size, count, FRAME_LENGTH)
    return data


def _texts(flows: Sequence[Flow], frames: Sequence[bytes]) -> list[bytes]:
    """The padded inner packets of frames that may be sealed as they are, but for a hop."""
    words = hops.words(frames, FRAME_LENGTH) or ()  # their flows tell that they have a hop left
    return [
        b"".join((frame[_UP_TO_HOPS], word, frame[_BEHIND : FRAME_LENGTH + flow.length], flow.trailer))
        for flow, word, frame in zip(flows, words, frames, strict=True)
    ]


def _any_unfinished(mark: offload.Mark, view: memoryview, size: int) -> bool:
    """Whether any frame of a flow was left to a card, or looks like it."""
    at, value = mark.at, mark.value
    return value[0] in bytes(view[at::size]) and value in _pieces(view, at, size)


def _pieces(view: memoryview, at: int, size: int) -> list[bytes]:
    """Two bytes at the same offset of every frame."""
    return [bytes(view[start : start + 2]) for start in range(at, len(view), size)]


@lru_cache(maxsize=256)
def _inners(size: int, length: int, count: int) -> struct.Struct:
    """The inner packet of each frame, without what Ethernet put behind it."""
    return struct.Struct(f"{FRAME_LENGTH}x{length}s{size - FRAME_LENGTH - length}x" * count)


@lru_cache(maxsize=4096)
def _row(size: int, ethertype: bytes) -> struct.Struct | None:
    """What decides about a frame of this size and EtherType; None when it is too short."""
    fields = "29s1s32s" if ethertype == ETHERTYPE_IPV6 else "26s2x4s2x8s"
    rest = size - struct.calcsize(fields)
    return struct.Struct(f"{fields}{rest}x") if rest >= 0 else None
