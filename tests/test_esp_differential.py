"""The gateway's batches against the reference's single packets, over whatever Hypothesis thinks of.

Every packet carries its place in the run, so that what comes out can be laid beside what the reference let
out: the same packets to the same places, in the same order for each SA, and the same reasons for the rest.
What senders are told comes in any order, and as often as it may.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple, TypeVar
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.crypto.algorithms import EspSuite
from protego_cli.esp import pairs, sorting
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, ETHERTYPE_IPV6, build_frame_header
from tests.support.esp_packets import ipv4, ipv6, summed, with_checksum
from tests.support.esp_reference import ReferenceSa, Sent, padded, seal, unseal
from tests.support.esp_slices import slices
from tests.support.esp_world import (
    ACME,
    BLUE,
    BLUE_VTEP,
    GATEWAY_MAC,
    GEN,
    REGISTRY,
    VTEP,
    VTEP2,
    VTEP_MAC,
    marked,
    sas,
    world,
)

Address = tuple[str, int]
S = TypeVar("S", "Sealed", "Framed")

LENGTHS = st.sampled_from([0, 1, 2, 3, 4, 40, 41])
CHOSEN = [
    REGISTRY.esp_suite("aes256gcm16", None, esn=False),
    REGISTRY.esp_suite("aes256gcm16", None, esn=True),
    REGISTRY.esp_suite("aes256", "sha256", esn=False),
    REGISTRY.esp_suite("aes128", "sha1", esn=True),
]
SHORT = st.sampled_from([0, sorting.SHORT])  # 0: batches that come together are joined, however short
MOST = st.sampled_from([0, 1, 2, 3, 64])  # packets of a batch where several are worked on at once; 0: alone
UNLIMITED = patch.object(pairs, "ERRORS", 1_000_000)
PLACES = 4  # bytes of the payload that say which packet it is
PEERS = {sa.peer for sa in sas()}
TOLD = {VTEP, VTEP2, BLUE_VTEP}
V4_HERE = ["10.1.0.5", "10.1.0.6", "10.1.0.200", "10.9.0.5"]
V4_THERE = ["10.2.0.9", "10.2.9.9", "10.3.0.9"]
V6_HERE, V6_THERE = ["fd00:1::5", "fd00:9::5"], ["fd00:2::9", "fd00:3::9"]


class Inner(NamedTuple):
    here: str
    there: str
    length: int
    tos: tuple[int, ...]  # in turn
    ttl: tuple[int, ...]  # in turn
    codes: tuple[int | None, ...]  # checksums of IPv4 headers, in turn
    inward: bool = True

    def build(self, place: int) -> bytes:
        payload = place.to_bytes(PLACES) + bytes(self.length)
        tos, ttl = self.tos[place % len(self.tos)], self.ttl[place % len(self.ttl)]
        source, destination = (self.there, self.here) if self.inward else (self.here, self.there)
        if ":" in source:
            return ipv6(source, destination, payload, tos=tos, ttl=ttl)
        packet = summed(ipv4(source, destination, payload, tos=tos, ttl=ttl))
        code = self.codes[place % len(self.codes)]
        return packet if code is None else with_checksum(packet, code)


def inners(*, inward: bool) -> st.SearchStrategy[Inner]:
    """Mostly of one flow, so that batches are uniform as well as mixed."""
    tos = st.sampled_from([(0,), (0,), (0xB8,), (1,), (2, 3), (2, 2, 0), (3, 0, 0xBA)])
    ttl = st.sampled_from([(64,), (64,), (2,), (255, 2), (64, 64, 1), (1,), (0,), (2, 0, 3, 1)])
    codes = st.sampled_from(
        [(None,), (None,), (0xFF00, 0xFF7F), (0xFFFE,), (0xFEFF, 0xFE00), (0, 0xFF, 0xFFFE)]
    )
    rest = LENGTHS, tos, ttl, codes, st.just(inward)
    usual = st.builds(Inner, st.just("10.1.0.5"), st.just("10.2.0.9"), *rest)
    v4 = st.builds(Inner, st.sampled_from(V4_HERE), st.sampled_from(V4_THERE), *rest)
    v6 = st.builds(Inner, st.sampled_from(V6_HERE), st.sampled_from(V6_THERE), *rest)
    return st.one_of(usual, usual, v4, v6)


OUTER = st.sampled_from([0, 0, 0, 1, 2, 3, 3, 0xB8, 0xBB])


class Sealed(NamedTuple):
    """A packet from a peer, and what is wrong with it."""

    sa: int
    step: int  # from the number before
    inner: Inner
    flaw: str
    repeat: int
    tos: int  # of the outer header

    def build(self, sa: ReferenceSa, number: int, place: int) -> bytes:
        inner = self.inner.build(place)
        version = 4 if inner[0] >> 4 == 4 else 41
        text = padded(inner, version, suite=sa.suite)
        text = {
            "padding": text[:-3] + bytes((9, 1, version)),
            "padding too long": text[:-2] + bytes((255, version)),
            "dummy": padded(inner, 59, suite=sa.suite),
            "other protocol": padded(inner, 17, suite=sa.suite),
            "other version": padded(inner, 45 - version, suite=sa.suite),
            "length": padded(inner[:-1], version, suite=sa.suite),
            "TFC": padded(inner, version, extra=24, suite=sa.suite),
            "more padding": inner + bytes(range(1, text[-2] + 17)) + bytes((text[-2] + 16, version)),
        }.get(self.flaw, text)
        packet = seal(sa.key_in, sa.spi_in, number, text, sa.suite)
        if self.flaw == "forged":
            packet = packet[:-1] + bytes([packet[-1] ^ 1])
        elif self.flaw == "spi":
            packet = bytes((0x77, 0, 0, 1)) + packet[4:]
        elif self.flaw == "reserved":
            packet = bytes((0, 0, 0, 9)) + packet[4:]
        elif self.flaw == "short":
            packet = packet[:20]
        elif self.flaw == "cut":
            packet = packet[:-4]
        return packet


FLAWS = ["padding", "padding too long", "dummy", "other protocol", "other version", "length", "TFC"]
FLAWS += ["more padding", "forged", "spi", "reserved", "short", "cut"]
SEALED = st.builds(
    Sealed,
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([1, 1, 1, 1, 0, 2, -1, -3, 70, -70]),
    inners(inward=True),
    st.one_of(st.just(""), st.just(""), st.just(""), st.sampled_from(FLAWS)),
    st.integers(1, 6),
    OUTER,
)


@given(st.sampled_from(CHOSEN), st.lists(SEALED, min_size=1, max_size=14), MOST, SHORT, st.booleans())
def test_what_peers_send(
    suite: EspSuite, specs: list[Sealed], most: int, short: int, everywhere: bool
) -> None:
    with slices(everywhere=everywhere), patch.object(sorting, "SHORT", short), UNLIMITED:
        _peers_send(suite, specs, most)


_PLAIN = st.just((0,)), st.just((64,)), st.just((None,)), st.just(True)
_FEW_LENGTHS = st.sampled_from([0, 16, 32])  # with more padding, one is as long as the next
_SAME = st.builds(Inner, st.just("10.1.0.5"), st.just("10.2.0.9"), _FEW_LENGTHS, *_PLAIN)
CLEAN = st.builds(Sealed, st.just(0), st.just(1), _SAME, st.just(""), st.integers(1, 4), st.just(0))
OTHER = st.one_of(
    _SAME,
    st.builds(Inner, st.sampled_from(V4_HERE), st.sampled_from(V4_THERE), _FEW_LENGTHS, *_PLAIN),
    st.builds(Inner, st.just(V6_HERE[0]), st.just(V6_THERE[0]), _FEW_LENGTHS, *_PLAIN),
    _SAME.map(lambda inner: inner._replace(ttl=(1,))),
    _SAME.map(lambda inner: inner._replace(tos=(0xB8,))),
)
DIRTY = st.builds(
    Sealed,
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([1, 1, 1, 0, 2, -1, -3, 70]),
    OTHER,
    st.sampled_from(["", "", *FLAWS]),
    st.just(1),
    st.just(0),
)


@given(
    st.sampled_from(CHOSEN[:2]),
    st.lists(CLEAN, min_size=3, max_size=8),
    st.lists(st.tuples(st.integers(0, 8), st.none() | DIRTY), min_size=2, max_size=6),
    st.integers(1, 3),
)
def test_what_peers_send_in_the_same_few_sizes(
    suite: EspSuite, clean: list[Sealed], trains: list[tuple[int, Sealed | None]], most: int
) -> None:
    """Again and again, with perhaps one packet of another kind among them: such rows are sorted."""
    with slices(everywhere=True), UNLIMITED:
        _peers_send(suite, _again_and_again(clean, trains), most)


def _again_and_again(clean: list[S], trains: list[tuple[int, S | None]]) -> list[S]:
    """The same in every train, in all but the first with this among them; trains differ in TOS by turns."""
    specs: list[S] = []
    for turn, (place, dirty) in enumerate([(0, None), *trains]):
        train = [*clean[:place], *filter(None, (dirty,)), *clean[place:]]
        specs += [spec._replace(tos=0xB8 * (turn % 2)) for spec in train]
    return specs


def _peers_send(suite: EspSuite, specs: list[Sealed], most: int) -> None:
    w = world(suite=suite)
    start = (1 << 32) - 40 if suite.esn else 0  # the low half wraps on the way
    for sa in w.reference.sas if start else ():
        first = seal(sa.key_in, sa.spi_in, start, padded(b"", 59, suite=sa.suite), sa.suite)
        w.receive_esp(first)
        w.reference.receive_esp(first)
    numbers = dict.fromkeys(range(3), start)
    packets: list[bytes] = []
    outer: list[int] = []
    for spec in specs:
        for _ in range(spec.repeat):
            numbers[spec.sa] = max(0, numbers[spec.sa] + spec.step)
            packets.append(spec.build(w.reference.sas[spec.sa], numbers[spec.sa], len(packets)))
            outer.append(spec.tos)
    sent: list[Sent] = []
    for tos, run in groupby(zip(packets, outer, strict=True), key=lambda each: each[1]):
        batch = [packet for packet, _ in run]
        for packet in batch:
            w.reference.receive_esp(packet, tos)
        if most:
            sent += marked(w.receive_esp_train(*batch, most=most, tos=tos))
        else:
            sent += marked(w.receive_esp(*batch, tos=tos))
    assert _reasons(w.counters.nonzero(), suite) == _reasons(w.reference.counts, suite)
    sas = {sa.spi_out: sa for sa in w.reference.sas}
    told = [(int.from_bytes(data[:4]), _inner(sas, data)) for dest, data, _ in sent if dest in PEERS]
    assert sorted(told) == sorted(w.reference.told_in)
    sent = [each for each in sent if each[0] not in PEERS]
    assert _streams(sent, packets) == _streams(w.reference.sent_in, packets)


def _reasons(counts: Mapping[str, int], suite: EspSuite) -> dict[str, int]:
    """Where high halves are not sent, what is left of the window is old to whoever reads numbers by the row,
    and of the next high half, so forged, to whoever moves the window before he reads the next one.
    """
    either = ("gpn_drop_auth", "gpn_drop_replay", "gpn_drop_floor") if suite.esn else ()
    refused = sum([counts.get(name, 0) for name in either])
    rest = {name: count for name, count in counts.items() if name not in either}
    return {**rest, "refused": refused} if refused else rest


def _inner(sas: dict[int, ReferenceSa], packet: bytes) -> bytes:
    """What a peer finds in a packet."""
    sa = sas[int.from_bytes(packet[:4])]
    text = unseal(sa.key_out, packet, sa.suite)
    return text[: -2 - text[-2]]


def _streams(sent: list[Sent], packets: list[bytes]) -> dict[tuple[bytes, Address], list[tuple[bytes, int]]]:
    """In order for each SA that it came by and each VTEP that it goes to."""
    streams: dict[tuple[bytes, Address], list[tuple[bytes, int]]] = {}
    for dest, frame, tos in sent:
        start = 22 + (20 if frame[22] >> 4 == 4 else 40)
        place = int.from_bytes(frame[start : start + PLACES])
        streams.setdefault((packets[place][:4], dest), []).append((frame, tos))
    return streams


class Framed(NamedTuple):
    """A VXLAN packet, and what is wrong with it."""

    inner: Inner
    vni: int
    source: Address
    flaw: str
    repeat: int
    tos: int  # of the outer header

    def build(self, place: int) -> bytes:
        inner = self.inner.build(place)
        ethertype = ETHERTYPE_IPV4 if inner[0] >> 4 == 4 else ETHERTYPE_IPV6
        if self.flaw == "ethertype":
            ethertype = {ETHERTYPE_IPV4: ETHERTYPE_IPV6, ETHERTYPE_IPV6: ETHERTYPE_IPV4}[ethertype]
        elif self.flaw == "arp":
            ethertype = b"\x08\x06"
        elif self.flaw == "length":
            inner = inner[:-1]
        elif self.flaw == "header":
            inner = b"\x4f" + inner[1:]
        frame = build_frame_header(self.vni, GATEWAY_MAC, VTEP_MAC, ethertype) + inner
        if self.flaw == "flags":
            frame = b"\x00" + frame[1:]
        elif self.flaw == "tag":
            frame = bytes((0, 0, 0, 3)) + frame[4:32]
        elif self.flaw == "short":
            frame = frame[:30]
        elif self.flaw == "padded":
            frame += bytes(18)
        return frame


FRAMED = st.builds(
    Framed,
    inners(inward=False),
    st.sampled_from([ACME, ACME, ACME, BLUE, 5]),
    st.sampled_from([GEN, GEN, GEN, VTEP, BLUE_VTEP, ("10.66.6.6", 4789)]),
    st.one_of(
        st.just(""),
        st.just(""),
        st.sampled_from(["ethertype", "arp", "length", "header", "flags", "tag", "short", "padded"]),
    ),
    st.integers(1, 6),
    OUTER,
)


@given(
    st.sampled_from(CHOSEN),
    st.lists(FRAMED, min_size=1, max_size=14),
    st.booleans(),
    st.integers(0, 60),
    st.sampled_from([None, 0, 46]),
    MOST,
    SHORT,
    st.booleans(),
)
def test_what_tenants_send(
    suite: EspSuite,
    specs: list[Framed],
    ruled: bool,
    room: int,
    dscp: int | None,
    most: int,
    short: int,
    everywhere: bool,
) -> None:
    with slices(everywhere=everywhere), patch.object(sorting, "SHORT", short), UNLIMITED:
        _tenants_send(suite, specs, ruled, room, dscp, most)


_OUTWARD = _SAME.map(lambda inner: inner._replace(inward=False))
CLEAN_FRAME = st.builds(
    Framed, _OUTWARD, st.just(ACME), st.just(GEN), st.just(""), st.integers(1, 4), st.just(0)
)
DIRTY_FRAME = st.builds(
    Framed,
    OTHER.map(lambda inner: inner._replace(inward=False)),
    st.sampled_from([ACME, ACME, ACME, BLUE]),
    st.just(GEN),
    st.sampled_from(["", "", "ethertype", "length", "header", "short", "padded"]),
    st.just(1),
    st.just(0),
)


@given(
    st.sampled_from(CHOSEN[:2]),
    st.lists(CLEAN_FRAME, min_size=3, max_size=8),
    st.lists(st.tuples(st.integers(0, 8), st.none() | DIRTY_FRAME), min_size=2, max_size=6),
    st.sampled_from([1000, 1000, 60]),
    st.sampled_from([None, 46]),
    st.integers(1, 3),
)
def test_what_tenants_send_in_the_same_few_sizes(
    suite: EspSuite,
    clean: list[Framed],
    trains: list[tuple[int, Framed | None]],
    room: int,
    dscp: int | None,
    most: int,
) -> None:
    """As of peers: such rows are sorted."""
    with slices(everywhere=True), UNLIMITED:
        _tenants_send(suite, _again_and_again(clean, trains), True, room, dscp, most)


def _tenants_send(
    suite: EspSuite, specs: list[Framed], ruled: bool, room: int, dscp: int | None, most: int
) -> None:
    start = (1 << 32) - 20 if suite.esn else 1
    w = world(rules=ruled, room=room, suite=suite, start=start, dscp=dscp)
    sent: list[Sent] = []
    place = 0
    for (source, tos), run in groupby(specs, key=lambda spec: (spec.source, spec.tos)):
        frames = []
        for spec in run:
            for _ in range(spec.repeat):
                frames.append(spec.build(place))
                w.reference.receive_vxlan(frames[-1], source, tos)
                place += 1
        if most:
            sent += marked(w.receive_vxlan_train(*frames, most=most, source=source, tos=tos))
        else:
            sent += marked(w.receive_vxlan(*frames, source=source, tos=tos))
    assert w.counters.nonzero() == dict(w.reference.counts)
    sas = {sa.spi_out.to_bytes(4): sa for sa in w.reference.sas}
    told = [(dest, data) for dest, data, _ in sent if dest in TOLD]
    assert sorted(told) == sorted(w.reference.told_out)
    sent = [each for each in sent if each[0] not in TOLD]
    assert _rows(sent, sas) == _rows(w.reference.sent_out, sas)


def _rows(sent: list[Sent], sas: dict[bytes, ReferenceSa]) -> dict[bytes, list[Sent]]:
    """In order for each SA (by its SPI), and for what is returned (by the VXLAN flags).

    What has a random IV is compared by what it opens to.
    """
    rows: dict[bytes, list[Sent]] = {}
    for dest, data, tos in sent:
        sa = sas.get(data[:4])
        if sa is not None and not sa.suite.startswith("aes256gcm16"):
            high = 1 if data[4:8] < b"\x80" and "esn" in sa.suite else 0
            data = data[:8] + unseal(sa.key_out, data, sa.suite, high)
        rows.setdefault(data[:4], []).append((dest, data, tos))
    return rows
