"""One SA: what is on the wire, numbers that are never used twice, rows with bad packets among good ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite
from protego_cli.crypto.etm import Authenticator, CbcDecryptor
from protego_cli.esp.packet import Dropped, trailer, unwrap
from protego_cli.esp.sa import InboundSa, OutboundSa
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_packets import ipv4, ipv6
from tests.support.esp_suites import SUITES, key
from tests.support.esp_world import GCM, REGISTRY

KEY = bytes(range(36))
MAX_SEQUENCE = (1 << 32) - 1
SPI = 0xC0FFEE01
ANY = (TrafficSelector.from_prefix("0.0.0.0/0"),)
EVERYTHING: Any = {"local_ts": ANY, "remote_ts": ANY}
randbytes = Random(3).randbytes


def outbound(lo: int = 1, hi: int = MAX_SEQUENCE) -> OutboundSa:
    return OutboundSa(SPI, GCM, KEY, bytes, local_ts=ANY, remote_ts=ANY, lo=lo, hi=hi)


def inbound(**changes: object) -> InboundSa:
    return InboundSa(SPI, GCM, KEY, local_ts=ANY, remote_ts=ANY, **changes)  # type: ignore[arg-type]


def packet(number: int, text: bytes) -> bytes:
    """RFC 4106, straight from the text."""
    header, iv = struct.pack("!II", SPI, number), number.to_bytes(8)
    return header + iv + AESGCM(KEY[:32]).encrypt(KEY[32:] + iv, text, header)


def open_row(sa: InboundSa, packets: Sequence[bytes], counters: Counters, now: float = 0.0) -> list[bytes]:
    numbers = [int.from_bytes(p[4:8]) for p in packets]
    return sa.open(numbers, b"".join(packets), len(packets[0]), counters, now)


# ---- on the wire


def test_a_row_is_sealed_as_rfc_4106_says() -> None:
    texts = [bytes([n]) * 20 for n in range(5)]
    assert outbound(lo=7).seal(texts) == b"".join(packet(7 + n, text) for n, text in enumerate(texts))


@given(st.binary(max_size=64), st.sampled_from([4, 6]))
def test_a_trailer_aligns_to_four_bytes(data: bytes, version: int) -> None:
    tail = trailer(len(data), version, 4)
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
        OutboundSa(SPI, GCM, KEY[:-1], bytes, local_ts=ANY, remote_ts=ANY, lo=1, hi=2)
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


# ---- every suite

NUMBER, FLAW = st.integers(1, 30), st.sampled_from(["", "", "icv", "body"])


@pytest.mark.parametrize("suite", SUITES, ids=str)
@settings(max_examples=20)
@given(st.lists(st.tuples(NUMBER, FLAW), min_size=1, max_size=30))
def test_rows_of_every_suite_open_what_their_packets_would_alone(
    suite: EspSuite, row: list[tuple[int, str]]
) -> None:
    base = (1 << 32) - 15 if suite.esn else 0
    text = bytes(range(14)) + b"\x00\x04"
    made = {}
    for number in {number for number, _ in row}:
        lo = base + number
        sealer = OutboundSa(SPI, suite, key(suite, 1), randbytes, **EVERYTHING, lo=lo, hi=lo + 1)
        made[number] = sealer.seal([bytes([number]) + text[1:]])
    packets = []
    for number, flaw in row:
        data = bytearray(made[number])
        if flaw:
            data[-1 if flaw == "icv" else 24] ^= 1
        packets.append(bytes(data))

    def opener() -> InboundSa:
        sa = InboundSa(SPI, suite, key(suite, 1), **EVERYTHING)
        sa.window.raise_floor(base)
        return sa

    together, apart, single, sa = Counters(), Counters(), opener(), opener()
    expected = [text for p in packets for text in open_row(single, [p], apart)]
    assert open_row(sa, packets, together) == expected
    assert together == apart
    assert sa.highest == single.highest
    numbers = [number for number, flaw in row if not flaw]
    assert len(expected) == len(set(numbers))


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite.integrity], ids=str)
def test_no_packet_is_decrypted_before_every_icv_was_compared(
    suite: EspSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int]] = []
    verify, decrypt = Authenticator.verify, CbcDecryptor.decrypt

    def verified(self: Authenticator, texts: Sequence[bytes], *rest: Any) -> list[int]:
        steps.append(("verify", len(texts)))
        return verify(self, texts, *rest)

    def decrypted(self: CbcDecryptor, data: bytes) -> bytes:
        steps.append(("decrypt", len(data)))
        return decrypt(self, data)

    monkeypatch.setattr(Authenticator, "verify", verified)
    monkeypatch.setattr(CbcDecryptor, "decrypt", decrypted)
    sealer = OutboundSa(SPI, suite, key(suite, 1), randbytes, **EVERYTHING, lo=1, hi=100)
    data = bytearray(sealer.seal([bytes(32)] * 5))
    size = len(data) // 5
    data[2 * size - 1] ^= 1  # the second's ICV
    sa, counters = InboundSa(SPI, suite, key(suite, 1), **EVERYTHING), Counters()
    assert sa.open([1, 2, 3, 4, 5], bytes(data), size, counters, 0.0) == [bytes(32)] * 4
    assert counters.nonzero() == {"gpn_drop_auth": 1}
    assert steps == [("verify", 5), ("decrypt", 4 * 48)], "and the forged one never"
    assert sa.open([2, 3], bytes(data[size : 3 * size]), size, counters, 0.0) == []
    assert steps[2:] == [("verify", 1), ("decrypt", 0)]


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite.integrity], ids=str)
def test_lengths_that_cbc_cannot_make_leave_the_decryptor_alone(suite: EspSuite) -> None:
    sealer = OutboundSa(SPI, suite, key(suite, 1), randbytes, **EVERYTHING, lo=1, hi=100)
    sa, counters = InboundSa(SPI, suite, key(suite, 1), **EVERYTHING), Counters()
    good = sealer.seal([bytes(32)])
    for cut in (*range(1, 16), *range(17, 32), 33, len(good) - 28):
        assert open_row(sa, [good[:-cut]], counters) == []
    assert counters.nonzero() == {"gpn_drop_short": 32}
    assert open_row(sa, [good], counters) == [bytes(32)]


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite.integrity], ids=str)
def test_no_iv_comes_twice_nor_follows_from_what_was_sent(suite: EspSuite) -> None:
    sealer = OutboundSa(SPI, suite, key(suite, 1), randbytes, **EVERYTHING, lo=1, hi=1000)
    size = 8 + 16 + 32 + sealer.overhead - 24
    rows = [sealer.seal([bytes(32)] * 44) for _ in range(5)]
    ivs = [row[at + 8 : at + 24] for row in rows for at in range(0, len(row), size)]
    assert len(set(ivs)) == 220
    other = OutboundSa(SPI, suite, key(suite, 1), Random(9).randbytes, **EVERYTHING, lo=1, hi=1000)
    assert other.seal([bytes(32)])[8:24] not in ivs


# ---- extended sequence numbers


ESN = REGISTRY.esp_suite("aes256gcm16", None, esn=True)


def extended(number: int, text: bytes = b"text") -> bytes:
    """RFC 4106 5: all 64 bits are authenticated, the low half is sent."""
    header, iv = struct.pack("!II", SPI, number & 0xFFFFFFFF), number.to_bytes(8)
    return header + iv + AESGCM(KEY[:32]).encrypt(KEY[32:] + iv, text, struct.pack("!IQ", SPI, number))


def test_a_row_is_sealed_across_the_wrap() -> None:
    lo = (1 << 32) - 2
    sa = OutboundSa(SPI, ESN, KEY, randbytes, **EVERYTHING, lo=lo, hi=lo + 1000)
    assert sa.seal([b"text"] * 5) == b"".join(extended(lo + n) for n in range(5))
    with pytest.raises(ValueError, match="no range"):
        OutboundSa(SPI, ESN, KEY, randbytes, **EVERYTHING, lo=1, hi=(1 << 64) + 1)


def test_a_floor_admits_its_own_high_half_only() -> None:
    """What a GIN has seen are low halves: N + 2^32 may have been opened where N was not."""
    counters = Counters()
    sa = InboundSa(SPI, ESN, KEY, **EVERYTHING, floor=100)
    assert open_row(sa, [extended((1 << 32) + 5)], counters) == []
    assert open_row(sa, [extended(101)], counters) == [b"text"]
    assert open_row(sa, [extended(2000), extended(2001)], counters) == [b"text"] * 2
    assert open_row(sa, [extended((1 << 32) + 5)], counters) == []
    assert open_row(sa, [extended(100)], counters) == []
    assert counters.nonzero() == {"gpn_drop_floor": 3}


def test_what_this_process_opened_itself_is_known_in_full() -> None:
    """An SA dropped and put again goes on past the wrap."""
    sa, counters = InboundSa(SPI, ESN, KEY, **EVERYTHING), Counters()
    sa.window.raise_floor((1 << 32) - 1)
    assert open_row(sa, [extended(1 << 32)], counters) == [b"text"]
    assert open_row(sa, [extended(1 << 32)], counters) == []
    assert sa.highest == 1 << 32
    assert counters.nonzero() == {"gpn_drop_replay": 1}


# ---- what an opened packet holds


V4, V6 = ipv4("10.1.0.5", "10.2.0.9", b"xyz"), ipv6("fd00::1", "fd00::2", b"xyz")


@pytest.mark.parametrize("inner", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("extra", [0, 1, 40])
def test_padding_of_every_kind_is_taken_off(inner: bytes, extra: int) -> None:
    text = inner + bytes(extra)
    head, found = unwrap(text + trailer(len(text), inner[0] >> 4, 4))
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
