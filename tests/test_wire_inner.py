from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.errors import Malformed
from protego_cli.wire.inner import MAX_EXTENSIONS, Inner, Transport, parse, parse_transport
from tests.support.esp_packets import ipv4, ipv6, ports

V4 = bytes((10, 1, 0, 5, 10, 2, 0, 9))


def transport(packet: bytes) -> Transport:
    return parse_transport(packet, parse(packet))


def test_the_header_is_read_and_the_length_is_its_own() -> None:
    packet = ipv4("10.1.0.5", "10.2.0.9", b"payload")
    assert parse(packet) == parse(packet + bytes(18)) == Inner(4, 27, V4)
    six = ipv6("fd00::1", "fd00::2", b"payload")
    assert parse(memoryview(six + b"pad")) == Inner(6, 47, six[8:40])


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45" + bytes(18),  # no whole header
        b"\x44" + ipv4("10.1.0.5", "10.2.0.9", b"")[1:],  # header of 16 bytes
        b"\x4f" + ipv4("10.1.0.5", "10.2.0.9", bytes(20))[1:],  # header longer than the packet
        ipv4("10.1.0.5", "10.2.0.9", b"cut")[:-1],
        ipv6("fd00::1", "fd00::2", b"cut")[:-1],
        ipv6("fd00::1", "fd00::2", b"", protocol=0),  # a jumbogram, RFC 2675
        b"\x55" + bytes(60),
    ],
)
def test_lengths_that_disagree_are_malformed(packet: bytes) -> None:
    with pytest.raises(Malformed):
        parse(packet)


def test_ports_of_both_versions() -> None:
    datagram = ports(1234, 4321)
    assert transport(ipv4("10.1.0.5", "10.2.0.9", datagram)) == (17, 1234, 4321)
    assert transport(ipv6("fd00::1", "fd00::2", datagram)) == (17, 1234, 4321)


def test_ports_are_opaque_where_there_are_none() -> None:
    datagram = ports(1234, 4321)
    assert transport(ipv4("10.1.0.5", "10.2.0.9", datagram, fragment=0x2000)) == (17, 1234, 4321)
    assert transport(ipv4("10.1.0.5", "10.2.0.9", datagram, fragment=5)) == (17, None, None)
    assert transport(ipv4("10.1.0.5", "10.2.0.9", datagram[:3])) == (17, None, None)
    assert transport(ipv4("10.1.0.5", "10.2.0.9", datagram, protocol=50)) == (50, None, None)


def test_icmp_type_and_code_stand_for_ports() -> None:
    assert transport(ipv4("10.1.0.5", "10.2.0.9", bytes((3, 4, 0, 0)), protocol=1)) == (1, 0x304, 0x304)
    assert transport(ipv6("fd00::1", "fd00::2", bytes((128, 0)), protocol=58)) == (58, 0x8000, 0x8000)


def test_extension_headers_are_walked() -> None:
    options = bytes((43, 0)) + bytes(6)  # hop-by-hop, then routing, destination options, AH
    routing = bytes((60, 1)) + bytes(14)
    destination = bytes((51, 0)) + bytes(6)
    authentication = bytes((17, 1)) + bytes(10)
    chain = options + routing + destination + authentication + ports(7, 8)
    assert transport(ipv6("fd00::1", "fd00::2", chain, protocol=0)) == (17, 7, 8)


def test_a_later_ipv6_fragment_has_no_ports() -> None:
    first = bytes((17, 0, 0, 1)) + bytes(4) + ports(7, 8)
    later = bytes((17, 0, 0, 8)) + bytes(4) + ports(7, 8)
    assert transport(ipv6("fd00::1", "fd00::2", first, protocol=44)) == (17, 7, 8)
    assert transport(ipv6("fd00::1", "fd00::2", later, protocol=44)) == (17, None, None)


@pytest.mark.parametrize(
    "chain", [b"", bytes((0, 0)) + bytes(6), (bytes((60, 0)) + bytes(6)) * (MAX_EXTENSIONS + 1)]
)
def test_a_chain_that_does_not_end_is_malformed(chain: bytes) -> None:
    packet = ipv6("fd00::1", "fd00::2", chain + b"\0", protocol=60)
    with pytest.raises(Malformed):
        transport(packet)


@given(
    st.one_of(st.binary(max_size=120), st.binary(min_size=40, max_size=120).map(lambda b: b"\x60" + b[1:]))
)
def test_nothing_but_malformed_comes_out_of_any_bytes(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        inner = parse(data)
        assert inner.length <= len(data)
        assert parse_transport(data, inner).protocol in range(256)
