"""Selectors with protocols and ports (RFC 4301 4.4.1.1)."""

from __future__ import annotations

import pytest

from protego_cli.esp.flows import FlowSelectors
from protego_cli.wire.inner import parse
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_packets import ipv4, ipv6, ports

HERE, THERE = "10.1.0.0/24", "10.2.0.0/24"


def selector(prefix: str, protocol: int = 0, first: int = 0, last: int = 65535) -> TrafficSelector:
    whole = TrafficSelector.from_prefix(prefix)
    return TrafficSelector(whole.start, whole.end, protocol, first, last)


def admits(selectors: FlowSelectors, packet: bytes) -> bool:
    return selectors.admit(parse(packet), packet)


def test_addresses_alone_decide_when_no_selector_asks_for_more() -> None:
    plain = FlowSelectors([selector(HERE)], [selector(THERE)])
    assert plain.by_address
    assert admits(plain, ipv4("10.1.0.255", "10.2.0.0", b""))
    assert not admits(plain, ipv4("10.1.1.0", "10.2.0.0", b""))
    assert not admits(plain, ipv4("10.1.0.1", "10.1.0.2", b""))
    assert not admits(plain, ipv6("::a01:1", "::a02:1", b""))


@pytest.mark.parametrize(
    ("packet", "admitted"),
    [
        (ipv4("10.1.0.1", "10.2.0.1", ports(9999, 80), protocol=6), True),
        (ipv4("10.1.0.1", "10.2.0.1", ports(9999, 81), protocol=6), False),
        (ipv4("10.1.0.1", "10.2.0.1", ports(9999, 80), protocol=17), False),
        (ipv4("10.1.0.1", "10.2.0.1", ports(9999, 80), protocol=6, fragment=0x2000), True),
        (ipv4("10.1.0.1", "10.2.0.1", ports(9999, 80), protocol=6, fragment=1), False),
        (ipv4("10.1.0.1", "10.2.0.1", b"", protocol=6), False),
        (ipv4("10.1.0.1", "10.2.1.1", ports(9999, 80), protocol=6), False),
    ],
)
def test_a_port_is_asked_of_every_packet(packet: bytes, admitted: bool) -> None:
    web = FlowSelectors([selector(HERE, 6)], [selector(THERE, 6, 80, 80)])
    assert not web.by_address
    assert admits(web, packet) is admitted


def test_opaque_ports_match_only_what_has_none() -> None:
    rest = FlowSelectors([selector(HERE, 6, 65535, 0)], [selector(THERE, 6, 65535, 0)])
    assert admits(rest, ipv4("10.1.0.1", "10.2.0.1", ports(1, 2), protocol=6, fragment=9))
    assert not admits(rest, ipv4("10.1.0.1", "10.2.0.1", ports(1, 2), protocol=6))


def test_icmp_is_selected_by_type_and_code() -> None:
    echo = FlowSelectors([selector(HERE, 1, 0x800, 0x8FF)], [selector(THERE, 1)])
    assert admits(echo, ipv4("10.1.0.1", "10.2.0.1", bytes((8, 0, 0, 0)), protocol=1))
    assert not admits(echo, ipv4("10.1.0.1", "10.2.0.1", bytes((5, 0, 0, 0)), protocol=1))


def test_a_broken_header_chain_matches_nothing() -> None:
    any_udp = FlowSelectors([selector("::/0", 17)], [selector("::/0", 17)])
    assert not admits(any_udp, ipv6("::1", "::2", bytes((17, 200)) + bytes(6), protocol=60) + bytes(1))


def test_breadth_is_that_of_the_narrowest_range() -> None:
    selectors = FlowSelectors([selector(HERE)], [selector("10.0.0.0/8"), selector(THERE)])
    assert selectors.breadth(bytes((10, 2, 0, 1))) == 256
    assert selectors.breadth(bytes((10, 9, 0, 1))) == 1 << 24
    assert selectors.breadth(bytes((11, 0, 0, 1))) is None
