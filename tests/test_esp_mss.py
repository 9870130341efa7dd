"""MSS clamping in both directions of a tunnel that asks for it, and in no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from tests.support.esp_packets import partial
from tests.support.esp_scapy import syn
from tests.support.esp_site import delivered, frame, opened, site
from tests.support.esp_world import datagrams, entry

OUT4, OUT6 = IP(src="10.1.0.5", dst="10.2.0.9"), IPv6(src="fd00:1::5", dst="fd00:2::9")
IN4, IN6 = IP(src="10.2.0.9", dst="10.1.0.5"), IPv6(src="fd00:2::9", dst="fd00:1::5")
LONG = 9000, 9000
FIT4, FIT6 = 1398, 1378  # of 1,438 less the headers


def segment(network: Packet) -> bytes:
    """As long as a SYN with options, so that a batch holds both."""
    return bytes(network / TCP(sport=7, dport=9, flags="A") / Raw(bytes(8)))


@pytest.mark.parametrize(
    ("option", "path", "v4", "v6"),
    [
        ("auto", 1500, FIT4, FIT6),
        ("auto", 1400, 1298, 1278),
        (1200, 1500, 1200, 1200),
        (None, 1500, 9000, 9000),
    ],
)
def test_syns_are_held_to_what_fits_both_ways(option: Any, path: int, v4: int, v6: int) -> None:
    made = site(mss=option, mtu=path)
    for out, back, most in ((OUT4, IN4, v4), (OUT6, IN6, v6)):
        row = [segment(out), syn(out, 9000), segment(out)]
        expected = [row[0], syn(out, most), row[2]]
        assert opened(made, datagrams(made.receive_vxlan(*map(frame, row)))) == expected
        row = [segment(back), syn(back, 9000, flags="SA"), segment(back)]
        assert delivered(made, *row) == [row[0], syn(back, most, flags="SA"), row[2]]


def test_a_flow_that_is_known_is_still_looked_at() -> None:
    made = site(mss="auto")
    for packet in (segment(OUT4), syn(OUT4, 1000), segment(OUT4)):
        assert opened(made, datagrams(made.receive_vxlan(frame(packet)))) == [packet]
    assert opened(made, datagrams(made.receive_vxlan(frame(syn(OUT4, 9000))))) == [syn(OUT4, FIT4)]


def test_a_checksum_left_to_a_card_is_made_first() -> None:
    made = site(mss="auto")
    sent = datagrams(made.receive_vxlan(partial(frame(syn(OUT4, 9000)))))
    assert opened(made, sent) == [syn(OUT4, FIT4)]


def test_the_option_holds_from_when_it_is_put() -> None:
    made = site()
    long = frame(syn(OUT4, 9000))
    assert opened(made, datagrams(made.receive_vxlan(long))) == [syn(OUT4, 9000)]
    made.gateway.put_sa(replace(entry(made.sa()), mss="auto"))
    assert opened(made, datagrams(made.receive_vxlan(long))) == [syn(OUT4, FIT4)]
    assert delivered(made, syn(IN4, 9000)) == [syn(IN4, FIT4)]
