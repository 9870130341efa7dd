"""Packets that have no hop left are dropped, counted, and their senders told."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet, Raw

from protego_cli.config.model import Rate
from protego_cli.esp.pairs import ERRORS
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_packets import partial
from tests.support.esp_reference import padded, seal
from tests.support.esp_scapy import scapy_open
from tests.support.esp_site import GATEWAY, GATEWAY6, frame, site, told
from tests.support.esp_suites import key
from tests.support.esp_world import GCM, NOW, VTEP, World, datagrams

OUT4, OUT6 = IP(src="10.1.0.5", dst="10.2.0.9"), IPv6(src="fd00:1::5", dst="fd00:2::9")
IN4, IN6 = IP(src="10.2.0.9", dst="10.1.0.5"), IPv6(src="fd00:2::9", dst="fd00:1::5")
LOAD = UDP(sport=7, dport=9) / Raw(bytes(40))
GATEWAYS = GATEWAY, GATEWAY6


def left(network: Packet, hops: int, load: Packet = LOAD) -> bytes:
    made = network.copy()
    setattr(made, "ttl" if isinstance(network, IP) else "hlim", hops)
    return bytes(made / load)


def esp(made: World, *packets: bytes) -> list[bytes]:
    sa = made.sa()
    first = 1 + next(used.highest_in for used in made.gateway.usage() if used.spi_in == sa.spi_in)
    return [
        seal(sa.key_in, sa.spi_in, first + n, padded(packet, 4 if packet[0] >> 4 == 4 else 41))
        for n, packet in enumerate(packets)
    ]


def heard(made: World, sent: Sequence[tuple[tuple[str, int], bytes]]) -> list[Any]:
    """What the peer gets, read by scapy."""
    sa = made.sa()
    texts = [scapy_open(GCM, key(GCM, 3), sa.spi_out, data, 0)[1] for to, data in sent if to == sa.peer]
    return [(IP if text[0] >> 4 == 4 else IPv6)(text) for text in texts]


def says(error: Any, source: str, dest: str, packet: bytes) -> bool:
    """Whether it is a time exceeded about this packet, its checksums right."""
    kind = (error[ICMP].type, error[ICMP].code) if IP in error else (error.type, error.code)
    built = error.copy()
    if IP in error:
        del built.chksum, built[ICMP].chksum
    else:
        assert ICMPv6TimeExceeded in error
        del built[ICMPv6TimeExceeded].cksum
    quoted = error.original[28 if IP in error else 48 :]
    exact = bytes(built) == error.original and packet.startswith(quoted) and len(quoted) >= 48
    return exact and (error.src, error.dst) == (source, dest) and kind == ((11, 0) if IP in error else (3, 0))


@pytest.mark.parametrize("hops", [0, 1])
@pytest.mark.parametrize(("gateway", "sources"), [(GATEWAYS, GATEWAYS), ((), ("10.2.0.9", "fd00:2::9"))])
def test_a_tenants_machine_is_told(hops: int, gateway: Sequence[str], sources: tuple[str, str]) -> None:
    made = site(gateway=gateway)
    packets = left(OUT4, hops), left(OUT6, hops)
    sent = datagrams(made.receive_vxlan(*map(frame, packets)))
    assert [to for to, _ in sent] == [VTEP] * 2
    four, six = told(sent)
    assert says(four, sources[0], "10.1.0.5", packets[0])
    assert says(six, sources[1], "fd00:1::5", packets[1])
    assert made.counters.nonzero() == {"gpn_drop_ttl_out": 2}
    assert made.gateway.usage()[0].next_out == 1, "nothing was sealed"


@pytest.mark.parametrize("hops", [0, 1])
@pytest.mark.parametrize(("gateway", "sources"), [(GATEWAYS, GATEWAYS), ((), ("10.1.0.5", "fd00:1::5"))])
def test_a_peers_machine_is_told_through_the_tunnel(
    hops: int, gateway: Sequence[str], sources: tuple[str, str]
) -> None:
    made = site(gateway=gateway)
    packets = left(IN4, hops), left(IN6, hops)
    sent = datagrams(made.receive_esp(*esp(made, *packets)))
    assert [to for to, _ in sent] == [made.sa().peer] * 2
    four, six = heard(made, sent)
    assert says(four, sources[0], "10.2.0.9", packets[0])
    assert says(six, sources[1], "fd00:2::9", packets[1])
    assert made.counters.nonzero() == {"gpn_drop_ttl_in": 2}
    usage = made.gateway.usage()[0]
    assert (usage.packets_in, usage.packets_out) == (0, 2)


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("most", [1, 64])
def test_the_rest_of_a_batch_goes_on_in_order(count: int, most: int) -> None:
    made = site()
    for _ in range(3):  # as a guess, too
        rows = [left(IN4, 64, UDP() / Raw(bytes([n]) * (40 + n % 2 * (most == 1)))) for n in range(count)]
        rows[count // 2] = left(IN4, 1, UDP() / Raw(bytes(40)))
        sent = datagrams(made.receive_esp_train(*esp(made, *rows), most=most))
        delivered = [data for to, data in sent if to == VTEP]
        assert [data[50:51] for data in delivered] == [
            row[28:29] for n, row in enumerate(rows) if n != count // 2
        ]
        assert len(heard(made, sent)) == 1
        sent = datagrams(
            made.receive_vxlan_train(
                *[frame(left(OUT4, 1 if n == count // 2 else 64)) for n in range(count)], most=most
            )
        )
        assert (len(told(sent)), len(heard(made, sent))) == (1, count - 1)
    assert made.counters.nonzero() == {"gpn_drop_ttl_in": 3, "gpn_drop_ttl_out": 3}


def test_both_directions_share_one_allowance_and_drops_are_counted_all_the_same() -> None:
    made = site()
    sent = datagrams(made.receive_vxlan(*[frame(left(OUT4, 1))] * 30))
    back = datagrams(made.receive_esp(*esp(made, *[left(IN4, 1)] * 30)))
    assert (len(told(sent)), len(heard(made, back))) == (30, ERRORS - 30)
    assert made.counters.nonzero() == {"gpn_drop_ttl_out": 30, "gpn_drop_ttl_in": 30}


def test_nobody_is_told_about_an_error_or_a_broken_header() -> None:
    for out, back in (
        (left(OUT4, 1, ICMP(type=11) / Raw(bytes(40))), left(IN4, 1, ICMP(type=3) / Raw(bytes(40)))),
        (
            left(OUT6, 1, ICMPv6TimeExceeded() / Raw(bytes(40))),
            left(IN6, 1, ICMPv6TimeExceeded() / Raw(bytes(40))),
        ),
        (left(OUT4, 2)[:8] + b"\1" + left(OUT4, 2)[9:], left(IN4, 2)[:8] + b"\1" + left(IN4, 2)[9:]),
    ):
        made = site()
        assert made.receive_vxlan(frame(out)) == made.receive_esp(*esp(made, back)) == []
        assert made.counters.nonzero() == {"gpn_drop_ttl_out": 1, "gpn_drop_ttl_in": 1}


def test_nothing_is_sealed_that_the_selectors_do_not_let_through() -> None:
    """An address of ours outside them is not used; an SA for UDP alone carries no ICMP."""
    made = site(gateway=("10.9.0.1",))
    (error,) = heard(made, datagrams(made.receive_esp(*esp(made, left(IN4, 1)))))
    assert error.src == "10.1.0.5"
    ends = ipaddress.ip_address("10.2.0.0").packed, ipaddress.ip_address("10.2.255.255").packed
    made = site(remote_ts=(TrafficSelector(*ends, 17, 0, 65535),))
    assert made.receive_esp(*esp(made, left(IN4, 1))) == []
    assert made.counters.nonzero() == {"gpn_drop_ttl_in": 1}


def test_without_numbers_nobody_is_told_and_nothing_is_asked_for() -> None:
    made = site(seal_lo=1, seal_hi=1)
    made.receive_esp(*esp(made, left(IN4, 64)))
    made.gateway.take_events()
    assert made.receive_esp(*esp(made, left(IN4, 1))) == []
    assert made.gateway.take_events() == []
    assert made.counters.nonzero() == {"gpn_drop_ttl_in": 1}


def test_a_packet_that_is_refused_for_another_reason_is_not_told_of() -> None:
    made = site()
    (good,) = esp(made, left(IN4, 1))
    assert made.receive_esp(good[:-1] + bytes([good[-1] ^ 1])) == []
    foreign = IP(src="10.9.0.9", dst="10.1.0.5")
    assert made.receive_esp(*esp(made, left(foreign, 1))) == []
    assert made.counters.nonzero() == {"gpn_drop_auth": 1, "gpn_drop_selector_in": 1}


def test_limits_hold_before() -> None:
    made = site()
    made.gateway.put_limit("acme/hq", Rate(8, 10 * len(left(IN4, 1))), None, NOW)
    sent = datagrams(made.receive_esp(*esp(made, *[left(IN4, 1)] * 30)))
    assert len(heard(made, sent)) == 10
    assert made.counters.nonzero() == {"gpn_drop_ttl_in": 10, "gpn_drop_limit_in": 20}


def test_out_of_hops_is_told_before_too_big_and_left_to_a_card() -> None:
    made = site()
    (error,) = told(datagrams(made.receive_vxlan(frame(left(OUT4, 1, UDP() / Raw(bytes(1500)))))))
    assert error[ICMP].type == 11
    whole = left(OUT4, 1, TCP(sport=1, dport=2, flags="A") / Raw(bytes(5000)))
    (error,) = told(datagrams(made.receive_vxlan(partial(frame(whole)))))
    assert error[ICMP].type == 11
    segments = heard(made, datagrams(made.receive_vxlan(partial(frame(bytes([*whole[:8], 64, *whole[9:]]))))))
    assert {segment.ttl for segment in segments} == {63}
