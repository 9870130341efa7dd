"""ICMP errors about packets that go no further, as scapy reads them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw

from protego_cli.errors import Malformed
from protego_cli.wire.icmp_errors import TIME_EXCEEDED, error_about, too_big
from protego_cli.wire.inner import parse

HERE, THERE, GATEWAY = "10.1.0.5", "10.2.0.9", "10.1.0.1"
HERE6, THERE6, GATEWAY6 = "fd00:1::5", "fd00:2::9", "fd00:1::1"
V4 = IP(src=HERE, dst=THERE, flags="DF")
V6 = IPv6(src=HERE6, dst=THERE6)
LOAD = Raw(bytes(1400))


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


@pytest.mark.parametrize("source", [GATEWAY, None])
def test_fragmentation_needed(source: str | None) -> None:
    packet = bytes(V4 / TCP(sport=1, dport=2) / LOAD)
    error = error_about(packet, too_big(1338), packed(source) if source else None)
    assert error is not None
    read = IP(error)
    assert (read.src, read.dst, read.len) == (source or THERE, HERE, 576)
    assert (read[ICMP].type, read[ICMP].code, read[ICMP].nexthopmtu) == (3, 4, 1338)
    assert error[28:] == packet[:548]
    expected = IP(src=read.src, dst=HERE, flags="DF", tos=0xC0, id=0)
    assert error == bytes(expected / ICMP(type=3, code=4, nexthopmtu=1338) / Raw(packet[:548]))


@pytest.mark.parametrize("source", [GATEWAY6, None])
def test_packet_too_big(source: str | None) -> None:
    packet = bytes(V6 / UDP(sport=1, dport=2) / LOAD)
    error = error_about(packet, too_big(1338), packed(source) if source else None)
    expected = IPv6(src=source or THERE6, dst=HERE6) / ICMPv6PacketTooBig(mtu=1338) / Raw(packet[:1232])
    assert error == bytes(expected)
    assert len(error) == 1280


def test_time_exceeded() -> None:
    four, six = (bytes(ip / UDP(sport=1, dport=2) / Raw(bytes(40))) for ip in (V4, V6))
    head = IP(src=GATEWAY, dst=HERE, flags="DF", tos=0xC0, id=0) / ICMP(type=11, code=0)
    assert error_about(four, TIME_EXCEEDED, packed(GATEWAY)) == bytes(head / Raw(four))
    head = IPv6(src=GATEWAY6, dst=HERE6) / ICMPv6TimeExceeded(code=0)
    assert error_about(six, TIME_EXCEEDED, packed(GATEWAY6)) == bytes(head / Raw(six))


def test_a_header_with_a_wrong_checksum_is_not_answered() -> None:
    packet = bytearray(bytes(V4 / UDP() / LOAD))
    packet[8] ^= 1
    assert error_about(bytes(packet), TIME_EXCEEDED, None) is None


@pytest.mark.parametrize(
    "packet",
    [
        V4 / ICMP(type=8) / LOAD,
        V6 / ICMPv6EchoRequest(data=bytes(1400)),
        IP(src=HERE, dst=THERE, flags="MF") / UDP() / LOAD,
        V6 / IPv6ExtHdrFragment(offset=0, m=1) / UDP() / LOAD,
        V6 / IPv6ExtHdrDestOpt() / UDP() / LOAD,
    ],
)
def test_these_are_answered(packet: Packet) -> None:
    assert error_about(bytes(packet), too_big(1300), None)


@pytest.mark.parametrize(
    "packet",
    [
        *(V4 / ICMP(type=kind) / LOAD for kind in (3, 4, 5, 11, 12)),
        V6 / ICMPv6TimeExceeded() / LOAD,
        V6 / ICMPv6PacketTooBig() / LOAD,
        V6 / ICMPv6ND_Redirect() / LOAD,
        IP(src=HERE, dst=THERE, frag=5, proto=17) / LOAD,
        V6 / IPv6ExtHdrFragment(offset=5, nh=58) / LOAD,
        IP(src="0.0.0.0", dst=THERE) / UDP() / LOAD,
        IP(src="127.0.0.1", dst=THERE) / UDP() / LOAD,
        IP(src="224.0.0.1", dst=THERE) / UDP() / LOAD,
        IP(src=HERE, dst="224.0.0.5") / UDP() / LOAD,
        IP(src=HERE, dst="255.255.255.255") / UDP() / LOAD,
        IPv6(src="::", dst=THERE6) / UDP() / LOAD,
        IPv6(src="::1", dst=THERE6) / UDP() / LOAD,
        IPv6(src="ff02::1", dst=THERE6) / UDP() / LOAD,
        IPv6(src=HERE6, dst="ff02::1") / UDP() / LOAD,
        V6 / IPv6ExtHdrDestOpt(nh=60, len=255) / Raw(bytes(8)),
    ],
)
def test_these_are_not(packet: Packet) -> None:
    assert error_about(bytes(packet), too_big(1300), None) is None


@given(st.sampled_from([b"\x45", b"\x60", b""]), st.binary(max_size=200))
def test_of_any_packet_an_error_no_longer_than_it_and_its_own_headers(first: bytes, rest: bytes) -> None:
    packet = first + rest
    try:
        length = parse(packet).length
    except Malformed:
        return
    error = error_about(packet, too_big(1300), None)
    assert error is None or len(error) <= length + 48
