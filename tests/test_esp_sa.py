"""One SA: what is on the wire, numbers that are never used twice, rows with bad packets among good ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Encryption
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.esp.packet import MAX_SEQUENCE, Dropped, trailer, unwrap
from protego_cli.esp.sa import InboundSa, OutboundSa
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_packets import ipv4, ipv6

GCM = next(a for a in ALGORITHMS if isinstance(a, Encryption) and a.keyword == "aes256gcm16")
KEY = bytes(range(36))
SPI = 0xC0FFEE01
ANY = (TrafficSelector.from_prefix("0.0.0.0/0"),)


def outbound(lo: int = 1, hi: int = MAX_SEQUENCE) -> OutboundSa:
    return OutboundSa(SPI, GCM, KEY, local_ts=ANY, remote_ts=ANY, lo=lo, hi=hi)


def inbound(**changes: object) -> InboundSa:
    return InboundSa(SPI, GCM, KEY, local_ts=ANY, remote_ts=ANY, **changes)  # type: ignore[arg-type]


def packet(number: int, text: bytes) -> bytes:
    """RFC 4106, straight from the text."""
    header, iv = struct.pack("!II", SPI, number), number.to_bytes(8)
    return header + iv + AESGCM(KEY[:32]).encrypt(KEY[32:] + iv, text, header)


def open_row(sa: InboundSa, packets: Sequence[bytes], counters: Counters, now: float = 0.0) -> list[bytes]:
    numbers = [int.from_bytes(p[4:8]) for p in packets]
    parts = [p[:8] for p in packets], [p[8:16] for p in packets], [p[16:] for p in packets]
    return sa.open(numbers, *parts, counters, now)


# ---- on the wire


def test_a_row_is_sealed_as_rfc_4106_says() -> None:
    texts = [bytes([n]) * 20 for n in range(5)]
    assert outbound(lo=7).seal(texts) == b"".join(packet(7 + n, text) for n, text in enumerate(texts))


@given(st.binary(max_size=64), st.sampled_from([4, 6]))
def test_a_trailer_aligns_to_four_bytes(data: bytes, version: int) -> None:
    tail = trailer(len(data), version)
    assert (len(data) + len(tail)) % 4 == 0
    assert tail[-1] == {4: 4, 6: 41}[version]
    assert tail[:-2] == bytes(range(1, tail[-2] + 1))
    assert len(tail) <= 5


# ---- the sealing range


@given(
    st.integers(1, 50),
    st.integers(0, 50),
    st.lists(st.one_of(st.integers(1, 20), st.tuples(st.integers(1, 120), st.integers(0, 60))), max_size=20),
)
def test_no_number_is_used_twice_nor_outside_its_range(
    lo: int, length: int, steps: list[int | tuple[int, int]]
) -> None:
    sa = outbound(lo, lo + length)
    allowed, used = set(range(lo, lo + length)), set()
    for step in steps:
        if isinstance(step, int):
            sealed = sa.seal([b"text"] * step)
            numbers = [int.from_bytes(sealed[at + 4 : at + 8]) for at in range(0, len(sealed), 36)]
            assert not used.intersection(numbers)
            assert allowed.issuperset(numbers)
            used.update(numbers)
        elif sa.grant(step[0], step[0] + step[1]):
            allowed = set(range(step[0], step[0] + step[1]))


def test_an_older_range_is_refused() -> None:
    sa = outbound(100, 200)
    sa.take(10)
    assert not sa.grant(50, 300)
    assert not sa.grant(100, 105)
    assert sa.grant(105, 300)
    assert sa.next == 110
    assert sa.grant(1000, 2000)
    assert sa.take(1) == range(1000, 1001)


@pytest.mark.parametrize(("lo", "hi"), [(0, 5), (5, 4), (1, MAX_SEQUENCE + 2)])
def test_a_range_is_of_32_bit_numbers(lo: int, hi: int) -> None:
    with pytest.raises(ValueError, match="no range"):
        outbound(lo, hi)


def test_keys_must_fit_the_cipher() -> None:
    with pytest.raises(ValueError, match="wrong length") as caught:
        OutboundSa(SPI, GCM, KEY[:-1], local_ts=ANY, remote_ts=ANY, lo=1, hi=2)
    assert KEY[:8].hex() not in str(caught.value)


# ---- opening


def test_a_row_opens_in_order() -> None:
    counters, sa = Counters(), inbound()
    texts = [bytes([n]) * 8 for n in range(10)]
    assert open_row(sa, [packet(n + 1, text) for n, text in enumerate(texts)], counters) == texts
    assert sa.highest == 10
    assert counters.nonzero() == {}


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=30))
def test_a_row_opens_what_its_packets_would_alone(row: list[tuple[int, bool]]) -> None:
    texts = [bytes([place]) * 4 for place in range(len(row))]
    packets = [packet(number, text) for (number, _), text in zip(row, texts, strict=True)]
    packets = [p if good else p[:-1] + bytes([p[-1] ^ 1]) for p, (_, good) in zip(packets, row, strict=True)]
    together, apart = Counters(), Counters()
    single = inbound()
    expected = [text for p in packets for text in open_row(single, [p], apart)]
    sa = inbound()
    assert open_row(sa, packets, together) == expected
    assert together == apart
    assert sa.highest == single.highest


def test_a_forged_packet_moves_nothing() -> None:
    counters, sa = Counters(), inbound()
    forged = packet(4_000_000_000, b"text")[:-1] + b"!"
    assert open_row(sa, [forged], counters) == []
    assert sa.highest == 0
    assert open_row(sa, [packet(1, b"text")], counters) == [b"text"]
    assert counters.nonzero() == {"gpn_drop_auth": 1}


def test_nothing_opens_at_or_below_the_floor() -> None:
    counters, sa = Counters(), inbound(floor=10)
    row = [packet(number, b"text") for number in (9, 10, 11)]
    assert open_row(sa, row, counters) == [b"text"]
    assert counters.nonzero() == {"gpn_drop_floor": 2}
    sa.raise_floor(20)
    sa.raise_floor(15)
    assert open_row(sa, [packet(20, b"text")], counters) == []
    assert open_row(sa, [packet(21, b"text")], counters) == [b"text"]


def test_a_closed_or_expired_sa_opens_nothing() -> None:
    counters = Counters()
    assert open_row(inbound(opens=False), [packet(1, b"text")], counters) == []
    sa = inbound(expires=100.0)
    assert open_row(sa, [packet(1, b"text")], counters, now=99.9) == [b"text"]
    assert open_row(sa, [packet(2, b"text")], counters, now=100.0) == []
    assert counters.nonzero() == {"gpn_drop_floor": 1, "gpn_drop_expired": 1}


# ---- what an opened packet holds


V4, V6 = ipv4("10.1.0.5", "10.2.0.9", b"xyz"), ipv6("fd00::1", "fd00::2", b"xyz")


@pytest.mark.parametrize("inner", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("extra", [0, 1, 40])
def test_padding_of_every_kind_is_taken_off(inner: bytes, extra: int) -> None:
    text = inner + bytes(extra)
    head, found = unwrap(text + trailer(len(text), inner[0] >> 4))
    assert found == inner
    assert head.length == len(inner)


@pytest.mark.parametrize(
    ("text", "counter"),
    [
        (b"", "gpn_drop_padding"),
        (b"\x04", "gpn_drop_padding"),
        (V4 + b"\x01\x02\x02\x04"[1:], "gpn_drop_padding"),
        (V4 + b"\x01\x03\x02\x04", "gpn_drop_padding"),
        (b"\xff\x04", "gpn_drop_padding"),
        (V4 + b"\x00\x11", "gpn_drop_padding"),
        (bytes(30) + b"\x00\x3b", "gpn_drop_dummy"),
        (V4 + b"\x00\x29", "gpn_drop_inner_in"),
        (V6 + b"\x00\x04", "gpn_drop_inner_in"),
        (V4[:-1] + b"\x00\x04", "gpn_drop_inner_in"),
        (b"\x00\x04", "gpn_drop_inner_in"),
    ],
)
def test_a_packet_that_does_not_hold_is_dropped_for_its_reason(text: bytes, counter: str) -> None:
    with pytest.raises(Dropped) as caught:
        unwrap(text)
    assert caught.value.counter == counter
    assert counter in Counters()
