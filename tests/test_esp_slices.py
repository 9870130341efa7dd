"""Rows that go through kept slices: the buffers, batch after batch beside the reference, what is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.config.model import Rate
from protego_cli.crypto.algorithms import BufferAead, Encryption, EspSuite
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.esp.outbox import Send
from protego_cli.esp.slices import FEW, MAX_BUFFERS, MAX_LAYOUTS, MAX_ROWS, MAX_SLICES, ROOM, Pool, Sliced
from protego_cli.esp.transforms import opening, sealing
from protego_cli.wire.tags import Tag, TagKind, seal_tag
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, ETHERTYPE_IPV6, build_frame_header
from tests.support.esp_packets import ipv4, ipv6, passed
from tests.support.esp_reference import ReferenceSa, padded, seal
from tests.support.esp_slices import slices
from tests.support.esp_suites import SUITES, key
from tests.support.esp_world import (
    ACME,
    GATEWAY_MAC,
    GCM,
    GEN,
    GIN,
    GIN_KEY,
    NOW,
    REGISTRY,
    VTEP_MAC,
    datagrams,
    entry,
    marked,
    world,
)

HERE, THERE = "10.1.0.5", "10.2.0.9"
ESN = REGISTRY.esp_suite("aes256gcm16", None, esn=True)
AEADS = [suite for suite in SUITES if isinstance(suite.encryption, Encryption)]

# ---- the buffers


def test_the_slices_of_a_layout_are_there_from_its_second_batch_on_and_stay() -> None:
    buffer = Sliced()
    assert buffer.cut(4, 10, 20, 3) is None
    three = buffer.cut(4, 10, 20, 3)
    assert three is not None
    five = buffer.cut(4, 10, 20, 5)
    assert five is not None
    again = buffer.cut(4, 10, 20, 3)
    assert again is not None
    assert all(map(lambda one, other: one is other, five[:3], again))
    buffer.view[:256] = bytes(range(256))
    assert list(map(bytes, five)) == [bytes(range(at, at + 10)) for at in range(4, 104, 20)]


def test_no_slice_reaches_beyond_the_buffer_and_no_row_beyond_the_longest() -> None:
    buffer, length = Sliced(), ROOM // MAX_ROWS
    for _ in range(2):
        most = buffer.cut(0, length, length, MAX_ROWS)
    assert most is not None
    assert sum(map(len, most)) == ROOM
    for _ in range(2):
        assert buffer.cut(1, length, length, MAX_ROWS) is None
        assert buffer.cut(0, 1, 1, MAX_ROWS + 1) is None


def test_only_so_many_slices_are_kept() -> None:
    buffer = Sliced()
    layouts = [(0, length, length, MAX_ROWS) for length in range(1, MAX_SLICES // MAX_ROWS + 1)]
    for layout in layouts:
        assert buffer.cut(*layout) is None
        assert buffer.cut(*layout) is not None
    assert buffer.cut(*layouts[0]) is not None
    assert buffer.cut(0, 500, 500, 1) is None
    assert buffer.cut(*layouts[0]) is not None
    one = buffer.cut(0, 500, 500, 1)
    assert one is not None
    assert list(map(len, one)) == [500]
    assert buffer.cut(*layouts[0]) is None


def test_only_so_many_layouts_are_remembered() -> None:
    buffer = Sliced()
    for length in [*range(1, MAX_LAYOUTS + 2), 1]:
        assert buffer.cut(0, length, 64, 1) is None


def test_what_is_lent_is_not_lent_again_while_it_is_held() -> None:
    pool = Pool()
    held = []
    for _ in range(MAX_BUFFERS):
        buffer = pool.take()
        assert buffer is not None
        held.append(buffer.lend(8))
    assert pool.take() is None
    second = held.pop(1)
    assert pool.take() is None
    del second
    free = pool.take()
    assert free is not None
    assert all(free.view.obj is not other.obj for other in held)


# ---- batch after batch, beside the reference


class Batch(NamedTuple):
    """Packets of one size, and what is odd about some of them."""

    length: int
    count: int
    odd: dict[int, str]  # by place
    held: bool  # what comes of it is not sent at once
    version: int = 4

    def inner(self, place: int, *, inward: bool) -> bytes:
        odd = self.odd.get(place, "")
        here, there = HERE, "10.2.9.9" if odd == "tunnel" else "10.3.0.9" if odd == "stranger" else THERE
        if odd == "vtep":
            here = "10.1.0.200"
        if self.version == 6:
            here, there = "fd00:1::5", "fd00:3::9" if odd == "stranger" else "fd00:2::9"
        length = self.length - 4 if odd == "shorter" and self.length else self.length
        payload = bytes([place]) * length
        make = ipv4 if self.version == 4 else ipv6
        ends = (there, here) if inward else (here, there)
        return make(*ends, payload, tos=32 if odd == "tos" else 0)


def rounds(odd: Sequence[str]) -> st.SearchStrategy[list[Batch]]:
    batch = st.builds(
        Batch,
        st.sampled_from([0, 4, 30, 30, 30, 31]),
        st.one_of(st.integers(2, 5), st.integers(FEW, 20)),
        st.one_of(
            st.just({}), st.just({}), st.dictionaries(st.integers(0, 19), st.sampled_from(odd), max_size=4)
        ),
        st.sampled_from([False, False, False, False, True]),
        st.sampled_from([4, 4, 4, 4, 6]),
    )
    return st.lists(batch, min_size=1, max_size=10)


ODD_IN = [
    "forged",
    "again",
    "late",
    "old",
    "stale",
    "ahead",
    "far",
    "tunnel",
    "stranger",
    "vtep",
    "tos",
    "shorter",
    "dummy",
]


@given(st.sampled_from([GCM, ESN]), rounds(ODD_IN), st.sampled_from([1, (1 << 16) - 30, (1 << 32) - 60]))
def test_what_peers_send_batch_after_batch(suite: EspSuite, batches: list[Batch], start: int) -> None:
    peers_send(suite, batches, start if suite.esn or start < 1 << 31 else 1)


@pytest.mark.parametrize("odd", ODD_IN)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("suite", [GCM, ESN], ids=str)
def test_one_odd_packet_in_a_batch_that_is_guessed(suite: EspSuite, version: int, odd: str) -> None:
    plain = Batch(30, FEW, {}, held=False, version=version)
    for places in ((0,), (5,), (FEW - 1,), (0, 1, 7), range(1, FEW), range(FEW)):
        batch = plain._replace(odd=dict.fromkeys(places, odd))
        peers_send(suite, [plain, plain, batch, plain, batch, batch, plain], 200)


@pytest.mark.parametrize("pad", [2, 6, 18, 22, 38, 254])
def test_trailers_longer_than_what_lies_between_inner_packets(pad: int) -> None:
    w = world()
    sa = w.sa()
    text = ipv4(THERE, HERE, bytes(36)) + bytes(range(1, pad + 1)) + bytes((pad, 4))
    with slices(everywhere=True):
        for first in range(1, 5 * FEW, FEW):
            packets = [seal(sa.key_in, sa.spi_in, number, text) for number in range(first, first + FEW)]
            for packet in packets:
                w.reference.receive_esp(packet)
            assert marked(w.receive_esp(*packets)) == w.reference.sent_in[-FEW:]
    assert w.counters.nonzero() == dict(w.reference.counts) == {}


def test_batches_of_changing_length_find_every_header_in_place() -> None:
    peers_send(GCM, [Batch(30, count, {}, held=False) for count in (20, 20, 12, 15, 13, 20, 24, 24)], 1)


@pytest.mark.parametrize(
    "mixture", [("forged", "again"), ("late", "far"), ("vtep", "tunnel"), ("ahead", "late"), ("stale", "far")]
)
def test_a_batch_that_is_odd_in_two_ways(mixture: tuple[str, str]) -> None:
    odd = {place: mixture[place % 2] for place in range(1, 12) if place % 4}
    plain = Batch(30, 14, {}, held=False)
    peers_send(GCM, [plain, plain, plain._replace(odd=odd), plain, plain], 200)


def peers_send(suite: EspSuite, batches: list[Batch], start: int) -> None:
    """Through slices, beside the reference; `start` is the first number."""
    w = world(suite=suite)
    sa, number = w.sa(), start - 1
    held: list[tuple[Send, bytes]] = []
    sent = []
    with slices(everywhere=True):
        if number:
            dummy = seal(sa.key_in, sa.spi_in, number, padded(b"", 59), sa.suite)
            w.receive_esp(dummy)
            w.reference.receive_esp(dummy)
        for batch in batches:
            packets = []
            for place in range(batch.count):
                odd = batch.odd.get(place, "")
                if odd in ("old", "stale") and suite.esn:  # its high half would be that of the whole row
                    odd = "late"
                number += 1
                packets.append(packed(sa, batch, place, odd, number))
                w.reference.receive_esp(packets[-1])
            sends = w.receive_esp(*packets)
            if batch.held:
                held += [(send, bytes(send.data)) for send in sends]
            sent += marked(sends)
            del sends
    assert w.counters.nonzero() == dict(w.reference.counts)
    assert by_way(sent) == by_way(w.reference.sent_in)
    assert all(bytes(send.data) == data for send, data in held)


def packed(sa: ReferenceSa, batch: Batch, place: int, odd: str, number: int) -> bytes:
    """A packet of a batch as the peer seals it."""
    steps = {"again": -1, "late": -7, "old": -66, "stale": -66, "ahead": 9, "far": 5000}
    number = max(1, number + steps.get(odd, 0))
    inner = batch.inner(place, inward=True)
    protocol = 59 if odd == "dummy" else 4 if batch.version == 4 else 41
    lacking = batch.length + (20 if batch.version == 4 else 40) - len(inner)
    packet = seal(sa.key_in, sa.spi_in, number, padded(inner, protocol, extra=lacking), sa.suite)
    return packet[:-1] + bytes([packet[-1] ^ 1]) if odd in ("forged", "stale", "ahead", "far") else packet


def by_way(sent: list[Any]) -> dict[object, list[bytes]]:
    """What goes each way, in order: by destination."""
    ways: dict[object, list[bytes]] = {}
    for dest, data, tos in sent:
        ways.setdefault(dest, []).append(data + bytes([tos]))
    return ways


ODD_OUT = ["tunnel", "stranger", "tos", "padded"]


@given(
    st.sampled_from([GCM, ESN]),
    rounds(ODD_OUT),
    st.sampled_from([1, (1 << 16) - 20, (1 << 32) - 40]),
    st.sampled_from([None, 30]),
)
def test_what_tenants_send_batch_after_batch(
    suite: EspSuite, batches: list[Batch], start: int, room: int | None
) -> None:
    tenants_send(suite, batches, start if suite.esn or start < 1 << 31 else 1, room)


@pytest.mark.parametrize("suite", [GCM, ESN], ids=str)
def test_numbers_wrap_and_end_within_a_batch(suite: EspSuite) -> None:
    plain = Batch(30, FEW, {}, held=False)
    for before in range(2, 2 * FEW, 5):
        tenants_send(suite, [plain] * 3, (1 << 32) - before, before + (FEW + 3 if suite.esn else -1))
        tenants_send(suite, [plain] * 3, (1 << 16) - before, before + FEW + 3)


def tenants_send(suite: EspSuite, batches: list[Batch], start: int, room: int | None) -> None:
    """Through slices, beside the reference, under so many numbers from `start` on."""
    w = world(suite=suite, start=start, room=room or 1000)
    held: list[tuple[Send, bytes]] = []
    sent = []
    with slices(everywhere=True):
        for batch in batches:
            ethertype = ETHERTYPE_IPV4 if batch.version == 4 else ETHERTYPE_IPV6
            header = build_frame_header(ACME, GATEWAY_MAC, VTEP_MAC, ethertype)
            frames = [header + batch.inner(place, inward=False) for place in range(batch.count)]
            if "padded" in batch.odd.values():
                frames = [frame + bytes(10) for frame in frames]
            for frame in frames:
                w.reference.receive_vxlan(frame, GEN)
            sends = w.receive_vxlan(*frames)
            if batch.held:
                held += [(send, bytes(send.data)) for send in sends]
            sent += marked(sends)
            del sends
    assert w.counters.nonzero() == dict(w.reference.counts)
    assert by_way(sent) == by_way(w.reference.sent_out)
    assert all(bytes(send.data) == data for send, data in held)


# ---- the same as without


@pytest.mark.parametrize(
    "changes", [{}, {"mss": 500}, {"mtu": 400}, {"dscp": 46}, {"window": 8}, {"expires": NOW + 5}]
)
@pytest.mark.parametrize("suite", AEADS, ids=str)
def test_every_suite_and_path_gives_what_it_gives_without_slices(
    suite: EspSuite, changes: dict[str, Any]
) -> None:
    results = []
    for everywhere in (False, True):
        w = world(suite=suite)
        sa = w.sa()
        w.gateway.put_sa(replace(entry(sa, suite), **changes))
        w.gateway.put_limit(sa.tunnel, Rate(8 * 100_000, 12_000), Rate(8 * 100_000, 9_000), NOW)
        peer = sealing(suite, sa.key_in, sa.spi_in, bytes)
        header = build_frame_header(ACME, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
        came, went, number = [], [], 1
        with slices(everywhere=everywhere):
            for count, length in ((20, 300), (30, 300), (30, 300), (9, 40), (30, 300), (9, 40)):
                texts = [padded(ipv4(THERE, HERE, bytes([place]) * length), 4) for place in range(count)]
                packets = peer.seal(range(number, number + count), texts)
                number += count
                size = len(packets) // count
                rows = [packets[at : at + size] for at in range(0, len(packets), size)]
                came += marked(w.receive_esp(*rows, now=NOW + number / 20))
                frames = [header + ipv4(HERE, THERE, bytes([place]) * length) for place in range(count)]
                went += marked(w.receive_vxlan(*frames, now=NOW + number / 20))
        results.append((came, went, w.counters.nonzero(), w.gateway.usage()))
    assert results[0] == results[1]
    assert results[0][0]
    assert results[0][1]


def test_what_leaves_through_a_gin_has_its_header_before_each_packet() -> None:
    results = []
    for everywhere in (False, True):
        w = world(through_gins=True)
        w.receive_esp(seal_tag(GIN_KEY, Tag(TagKind.PROBE, 7), hmac_sha256))
        header = build_frame_header(ACME, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
        frames = [header + ipv4(HERE, THERE, bytes([place]) * 100) for place in range(20)]
        with slices(everywhere=everywhere):
            results.append([marked(w.receive_vxlan(*frames)) for _ in range(3)])
    assert results[0] == results[1]
    assert [dest for dest, _, _ in results[0][2]] == [GIN] * 20


class OnlyBytes:
    """An AEAD of a plugin that knows bytes alone."""

    def __init__(self, cipher_key: bytes) -> None:
        self._aead = AESGCM(cipher_key)

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        assert isinstance(nonce, bytes)
        assert isinstance(data, bytes)
        assert isinstance(associated_data, bytes)
        return self._aead.encrypt(nonce, data, associated_data)

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        assert isinstance(nonce, bytes)
        assert isinstance(data, bytes)
        assert isinstance(associated_data, bytes)
        return self._aead.decrypt(nonce, data, associated_data)


@pytest.mark.parametrize("changes", [{"make": OnlyBytes}, {"salt_length": 3, "make": OnlyBytes}])
def test_an_aead_that_knows_bytes_alone_gets_nothing_else(changes: dict[str, Any]) -> None:
    assert isinstance(GCM.encryption, Encryption)
    suite = EspSuite(replace(GCM.encryption, **changes))
    assert not isinstance(OnlyBytes(bytes(32)), BufferAead)
    material = key(suite, 3)
    if suite.encryption.salt_length == 3:  # type: ignore[union-attr]
        suite = EspSuite(replace(suite.encryption, make=lambda k: OnlyBytes(k)))  # type: ignore[type-var]
    texts = [bytes([number]) * 24 for number in range(FEW)]
    numbers = range(1, 1 + FEW)
    with slices(everywhere=True):
        sealer, opener = sealing(suite, material, 0x1234, bytes), opening(suite, material, 0x1234)
        assert sealer.seal_within is None
        packets = sealer.seal(numbers, texts)
        assert opener.open_into is None
        assert opener.open(packets, len(packets) // FEW, numbers) == (texts, range(FEW))


@pytest.mark.parametrize("suite", AEADS, ids=str)
def test_opening_into_slots_names_what_opened_and_fills_it(suite: EspSuite) -> None:
    material = key(suite, 5)
    texts = [bytes([number]) * 40 for number in range(FEW)]
    numbers = range(1, 1 + FEW)
    sealer, opener = sealing(suite, material, 0x1234, bytes), opening(suite, material, 0x1234)
    packets = bytearray(sealer.seal(numbers, texts))
    size = len(packets) // FEW
    for forged in ((), (0,), (3, 4), (FEW - 1,), tuple(range(FEW))):
        broken = bytearray(packets)
        for place in forged:
            broken[place * size + 20] ^= 1
        slots = [memoryview(bytearray(40)) for _ in texts]
        assert opener.open_into is not None
        with slices(everywhere=True):
            opened = opener.open_into(bytes(broken), size, numbers, slots)
        good = [place for place in range(FEW) if place not in forged]
        assert opened is not None
        assert list(opened) == good
        assert [bytes(slots[place]) for place in good] == [texts[place] for place in good]


# ---- what is held


def test_nothing_that_is_held_is_written_to_and_what_finds_no_buffer_goes_without() -> None:
    w = world()
    sa = w.sa()
    header = build_frame_header(ACME, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
    held: list[list[Send]] = []
    expected: list[list[bytes]] = []

    def batch(number: int) -> None:
        inners = [ipv4(THERE, HERE, bytes([number, place]) * 50) for place in range(FEW)]
        packets = [
            seal(sa.key_in, sa.spi_in, number * FEW + place, padded(inner, 4))
            for place, inner in enumerate(inners, 1)
        ]
        held.append(w.receive_esp(*packets))
        frames = build_frame_header(ACME, VTEP_MAC, GATEWAY_MAC, ETHERTYPE_IPV4)
        expected.append([frames + passed(inner) for inner in inners])
        outward = [ipv4(HERE, THERE, bytes([number, place]) * 50) for place in range(FEW)]
        held.append(w.receive_vxlan(*[header + inner for inner in outward]))
        expected.append(
            [
                seal(sa.key_out, sa.spi_out, number * FEW + place, padded(passed(inner), 4))
                for place, inner in enumerate(outward, 1)
            ]
        )

    def kinds() -> list[type]:
        return [type(send.data) for sends in held for send in sends]

    with slices(everywhere=True):
        batch(0)
        del held[:], expected[:]  # of the first batch is learned what is usual
        for number in range(1, MAX_BUFFERS + 3):
            batch(number)
        assert kinds() == [memoryview] * 2 * MAX_BUFFERS + [bytearray, bytes] * 2
        assert [[data for _, data in datagrams(sends)] for sends in held] == expected
        del held[:4], expected[:4]  # they have been sent
        batch(MAX_BUFFERS + 3)
        batch(MAX_BUFFERS + 4)
        assert kinds()[-4:] == [memoryview] * 4
        assert [[data for _, data in datagrams(sends)] for sends in held] == expected


def test_batches_that_are_joined_before_they_are_sent_do_not_share_a_buffer() -> None:
    w = world()
    sa = w.sa()
    inners = [ipv4(THERE, HERE, bytes([place]) * 8) for place in range(60)]
    packets = [seal(sa.key_in, sa.spi_in, number, padded(inner, 4)) for number, inner in enumerate(inners, 1)]
    train = [
        (memoryview(b"".join(packets[at : at + 20])), len(packets[0]), ("10.10.0.2", 4501), 0)
        for at in (0, 20, 40)
    ]
    header = build_frame_header(ACME, VTEP_MAC, GATEWAY_MAC, ETHERTYPE_IPV4)
    with slices(everywhere=True):
        sends = w.gateway.receive_esp_train(train, NOW)
    assert [data for _, data in datagrams(sends)] == [header + passed(inner) for inner in inners]


def test_a_network_that_changed_is_seen_at_once() -> None:
    w = world()
    sa = w.sa()

    def batch(first: int) -> list[Any]:
        inner = padded(ipv4(THERE, HERE, bytes(40)), 4)
        packets = map(seal, repeat(sa.key_in), repeat(sa.spi_in), range(first, first + FEW), repeat(inner))
        return marked(w.receive_esp(*packets))

    with slices(everywhere=True):
        assert len(batch(1)) == len(batch(1 + FEW)) == FEW
        w.gateway.drop_tenant(ACME)
        assert batch(1 + 2 * FEW) == []
    assert w.counters.nonzero() == {"gpn_drop_no_vtep": FEW}
