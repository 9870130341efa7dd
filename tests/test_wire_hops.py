"""A hop less, as scapy and RFC 1624 compute it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from protego_cli.wire import hops
from tests.support.esp_packets import ipv4, ipv6, passed, with_checksum

CODES = st.one_of(
    st.integers(0, 0xFFFE),
    st.sampled_from([0, 0xFE, 0xFF, 0xFDFF, 0xFE00, 0xFEFE, 0xFEFF, 0xFF00, 0xFF7F, 0xFFFE]),
)
ROW = st.lists(st.tuples(st.integers(2, 255), CODES), min_size=1, max_size=30)


def packet(ttl: int, code: int, length: int = 8) -> bytes:
    return with_checksum(ipv4("10.1.0.5", "10.2.0.9", bytes(length), ttl=ttl), code)


@given(ROW, st.integers(0, 23))
def test_a_row_is_as_each_of_its_packets_and_as_scapy_builds_it(
    row: list[tuple[int, int]], start: int
) -> None:
    packets = [packet(*each) for each in row]
    size = start + len(packets[0])
    data = bytearray(b"".join([bytes(start) + each for each in packets]))
    assert hops.forward(data, size, len(row), start)
    expected = list(map(passed, packets))
    assert data == b"".join([bytes(start) + each for each in expected])
    for each in expected:
        built = IP(each)
        del built.chksum
        assert bytes(built) == each
    assert list(map(hops.forwarded, packets)) == expected


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=8), st.integers(2, 255))
def test_a_checksum_that_is_wrong_stays_wrong(codes: list[int], ttl: int) -> None:
    bare = ipv4("10.1.0.5", "10.2.0.9", b"", ttl=ttl)
    packets = [bare[:10] + code.to_bytes(2) + bare[12:] for code in codes]
    data = bytearray(b"".join(packets))
    assert hops.forward(data, 20, len(packets), 0)
    assert data == b"".join(map(passed, packets))


@given(st.lists(st.tuples(st.integers(0, 255), CODES, st.integers(0, 90)), min_size=1, max_size=20))
def test_of_packets_of_any_sizes_the_words_that_change(row: list[tuple[int, int, int]]) -> None:
    packets = [packet(*each) for each in row]
    words = hops.words([b"head" + each for each in packets], 4)
    if min(ttl for ttl, _, _ in row) < 2:
        assert words is None
    else:
        assert words is not None
        expected = [passed(each)[hops.START : hops.STOP] for each in packets]
        assert list(words) == expected
        assert [
            each[: hops.START] + word + each[hops.STOP :] for each, word in zip(packets, words, strict=True)
        ] == [*map(passed, packets)]


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("place", [0, 5, 19])
def test_where_one_has_none_left_nothing_is_done(last: int, place: int) -> None:
    for make in (ipv4, ipv6):
        ends = ("10.1.0.5", "10.2.0.9") if make is ipv4 else ("fd00:1::5", "fd00:2::9")
        packets = [make(*ends, b"", ttl=last if each == place else 64) for each in range(20)]
        assert [hops.spent(each) for each in packets] == [each == place for each in range(20)]
        data = bytearray(b"".join(packets))
        assert not hops.forward(data, len(packets[0]), 20, 0)
        assert data == b"".join(packets)


@given(st.lists(st.integers(2, 255), min_size=1, max_size=20))
def test_ipv6(limits: list[int]) -> None:
    packets = [bytes(IPv6(src="fd00:1::5", dst="fd00:2::9", hlim=each) / UDP()) for each in limits]
    data = bytearray(b"".join(packets))
    assert hops.forward(data, len(packets[0]), len(packets), 0)
    built = [bytes(IPv6(src="fd00:1::5", dst="fd00:2::9", hlim=each - 1) / UDP()) for each in limits]
    assert data == b"".join(built)
