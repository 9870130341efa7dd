"""Fragments that tenants and peers send inside a tunnel (RFC 4301 7)."""

from __future__ import annotations

import ipaddress

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Raw

from protego_cli.wire.fragments import fragment
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_site import delivered, frame, opened, site
from tests.support.esp_world import datagrams

LOAD = UDP(sport=7, dport=9) / Raw(bytes(range(256)) * 10)


def cut(source: str, destination: str) -> list[bytes]:
    return fragment(bytes(IP(src=source, dst=destination, id=5) / LOAD), 1000)


def cut6(source: str, destination: str) -> list[bytes]:
    whole = IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(id=5) / LOAD
    return [bytes(piece) for piece in fragment6(whole, 1300)]


OUT = cut("10.1.0.5", "10.2.0.9"), cut6("fd00:1::5", "fd00:2::9")
BACK = cut("10.2.0.9", "10.1.0.5"), cut6("fd00:2::9", "fd00:1::5")


def test_they_pass_where_ports_do_not_matter() -> None:
    made = site()
    for pieces in OUT:
        assert len(pieces) > 1
        assert opened(made, datagrams(made.receive_vxlan(*map(frame, pieces)))) == pieces
    for pieces in BACK:
        assert delivered(made, *pieces) == pieces
    assert made.counters.nonzero() == {}


def test_where_an_sa_selects_by_ports_only_the_first_has_any() -> None:
    selectors = [
        TrafficSelector(ipaddress.ip_address(first).packed, ipaddress.ip_address(last).packed, 17, 0, 9)
        for first, last in (("10.2.0.0", "10.2.255.255"), ("fd00:2::", "fd00:2::ffff"))
    ]
    made = site(remote_ts=tuple(selectors))
    for pieces in OUT:
        assert opened(made, datagrams(made.receive_vxlan(*map(frame, pieces)))) == pieces[:1]
    for pieces in BACK:
        assert delivered(made, *pieces) == pieces[:1]
    later = sum(len(pieces) - 1 for pieces in OUT)
    assert made.counters.nonzero() == {"gpn_drop_selector_out": later, "gpn_drop_selector_in": later}
