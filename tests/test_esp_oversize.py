"""What becomes of a tenant's packets that would not fit the path to the peer."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, defragment
from scapy.layers.inet6 import ICMPv6PacketTooBig
from scapy.packet import Packet, Raw

from protego_cli.crypto.algorithms import EspSuite
from protego_cli.esp.pairs import ERRORS
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_packets import partial
from tests.support.esp_site import DF, GATEWAY, GATEWAY6, V4, V6, frame, inner, opened, site, told
from tests.support.esp_suites import SUITES
from tests.support.esp_world import (
    NOW,
    datagrams,
    entry,
)

LIMIT = 1438  # of AES-GCM and a path of 1,500: 20 + 8 + 8 + 8 + 1,440 + 16


@pytest.mark.parametrize("suite", [suite for suite in SUITES if not suite.esn], ids=str)
@pytest.mark.parametrize("mtu", [1500, 1492, 1431])
def test_the_sender_is_told_the_most_that_fits(suite: EspSuite, mtu: int) -> None:
    made = site(suite, mtu=mtu)
    (error,) = told(datagrams(made.receive_vxlan(frame(inner(DF, mtu)))))
    limit = error[ICMP].nexthopmtu
    sent = datagrams(made.receive_vxlan(frame(inner(DF, limit))))
    assert opened(made, sent, suite) == [inner(DF, limit)]
    assert 28 + len(sent[0][1]) <= mtu
    wide = site(suite, mtu=9000)
    ((_, longer),) = datagrams(wide.receive_vxlan(frame(inner(DF, limit + 1))))
    assert 28 + len(longer) > mtu, "one byte more would not have fitted"


def test_with_df_the_sender_is_told_and_nothing_is_sealed() -> None:
    made = site()
    whole, small = inner(DF, LIMIT + 1), inner(DF, LIMIT)
    sent = datagrams(made.receive_vxlan(frame(whole), frame(whole), frame(small)))
    for error in told(sent):
        assert (error.src, error.dst) == (GATEWAY, "10.1.0.5")
        assert (error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (3, 4, LIMIT)
        assert error.original[28:] == whole[:548]
    assert len(told(sent)) == 2
    assert opened(made, sent) == [small]
    assert made.counters.nonzero() == {"gpn_drop_too_big": 2}, "the sends are counted when they are done"


def test_ipv6_is_told_never_less_than_1280() -> None:
    made = site()
    (error,) = told(datagrams(made.receive_vxlan(frame(inner(V6, LIMIT + 1)))))
    assert (error.src, error.dst, error[ICMPv6PacketTooBig].mtu) == (GATEWAY6, "fd00:1::5", LIMIT)
    made = site(mtu=1000)
    (error,) = told(datagrams(made.receive_vxlan(frame(inner(V6, 1281)))))
    assert error[ICMPv6PacketTooBig].mtu == 1280
    ((to, _),) = datagrams(made.receive_vxlan(frame(inner(V6, 1280))))
    assert to == made.sa().peer


def test_without_an_address_of_ours_it_is_as_if_the_destination_said_so() -> None:
    made = site(gateway=())
    errors = told(datagrams(made.receive_vxlan(frame(inner(DF, 1500)), frame(inner(V6, 1500)))))
    assert [error.src for error in errors] == ["10.2.0.9", "fd00:2::9"]


def test_without_df_it_is_cut_before_it_is_sealed() -> None:
    made = site()
    whole = inner(V4, 4000)
    pieces = opened(made, sent := datagrams(made.receive_vxlan(frame(whole))))
    assert [len(piece) <= LIMIT for piece in pieces] == [True] * 3
    assert all(28 + len(packet) <= 1500 for _, packet in sent)
    (together,) = defragment([IP(piece) for piece in pieces])
    assert bytes(together.payload) == whole[20:]
    assert made.counters.nonzero() == {"gpn_fragmented": 1}


def test_or_sealed_whole_where_the_esp_packet_is_to_be_cut() -> None:
    made = site(fragment="outer")
    whole = inner(V4, 4000)
    assert opened(made, datagrams(made.receive_vxlan(frame(whole)))) == [whole]
    assert len(told(datagrams(made.receive_vxlan(frame(inner(DF, 4000)))))) == 1


def test_an_sa_that_selects_by_ports_gets_no_fragments() -> None:
    ends = ipaddress.ip_address("10.2.0.0").packed, ipaddress.ip_address("10.2.255.255").packed
    made = site(remote_ts=(TrafficSelector(*ends, 17, 0, 9),))
    whole = inner(V4, 4000)
    assert opened(made, datagrams(made.receive_vxlan(frame(whole)))) == [whole]
    later = bytes(IP(src="10.1.0.5", dst="10.2.0.9", frag=5, proto=17) / Raw(bytes(64)))
    assert made.receive_vxlan(frame(later)) == []
    assert made.counters.nonzero() == {"gpn_drop_selector_out": 1}


def test_errors_have_a_bounded_rate_and_packets_are_counted_all_the_same() -> None:
    made = site()
    flood = [frame(inner(DF, 1500))] * 40
    sent = [told(datagrams(made.receive_vxlan(*flood))) for _ in range(3)]
    assert [len(errors) for errors in sent] == [40, ERRORS - 40, 0]
    assert made.counters["gpn_drop_too_big"] == 120
    assert len(told(datagrams(made.receive_vxlan(*flood, now=NOW + 0.5)))) == ERRORS / 2
    assert told(datagrams(made.receive_vxlan(*flood, now=NOW - 3600))) == [], "a clock set back gives nothing"
    assert len(told(datagrams(made.receive_vxlan(*flood, now=NOW - 3599)))) == 40


def test_another_mtu_holds_at_once() -> None:
    made = site()
    small = frame(inner(DF, 1400))
    assert opened(made, datagrams(made.receive_vxlan(small)))
    made.gateway.put_sa(replace(entry(made.sa()), mtu=1400))
    (error,) = told(datagrams(made.receive_vxlan(small)))
    assert error[ICMP].nexthopmtu == 1338
    made.gateway.put_sa(entry(made.sa()))
    assert opened(made, datagrams(made.receive_vxlan(small)))


@pytest.mark.parametrize("network", [DF, V6], ids=["v4", "v6"])
def test_what_was_never_segmented_is_cut_to_fit_and_not_refused(network: Packet) -> None:
    """A card's work left undone: the frame is longer than the path, its segments are not to be."""
    made = site(mtu=1400)
    payload = bytes(range(256)) * 20
    whole = bytes(network / TCP(sport=1, dport=2, flags="A") / Raw(payload))
    sent = datagrams(made.receive_vxlan(partial(frame(whole))))
    assert told(sent) == []
    assert all(28 + len(packet) <= 1400 for _, packet in sent)
    pieces = opened(made, sent)
    assert b"".join(piece[40 if network is DF else 60 :] for piece in pieces) == payload
    assert len(told(datagrams(made.receive_vxlan(frame(whole))))) == 1, (
        "one that its sender finished is too big"
    )


def test_a_header_that_is_broken_is_neither_cut_nor_answered() -> None:
    for network in (V4, DF):
        made = site()
        broken = bytearray(inner(network, 1500))
        broken[8] ^= 1
        assert made.receive_vxlan(frame(bytes(broken))) == []
        assert made.counters.nonzero() == {"gpn_drop_inner": 1}


def test_no_error_answers_an_error() -> None:
    made = site()
    assert made.receive_vxlan(frame(bytes(DF / ICMP(type=3, code=1) / Raw(bytes(1500))))) == []
    assert made.counters.nonzero() == {"gpn_drop_too_big": 1}
