"""What a GEN answers in the gateway's name: scapy asks and judges; hostile bytes; who gets the answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from protego_cli.counters import Counters
from protego_cli.errors import Malformed
from protego_cli.net.answers import Answers, Tenant, Vtep
from protego_cli.wire import arp, icmp
from protego_cli.wire.checksum import checksum, intact
from tests.support import questions
from tests.support.senders import RecordingSender

VNI = 1001
GATEWAY, GATEWAY6 = "10.1.0.1", "2001:db8:1::1"
GATEWAY_MAC, HOST_MAC, BROADCAST = "02:50:00:00:10:01", "02:00:00:00:00:05", "ff:ff:ff:ff:ff:ff"
OTHER_MAC, SPOOF = "02:00:00:00:00:06", "02:00:00:00:00:66"
HOST, HOST6 = "10.1.0.5", "2001:db8:1::5"
GROUP, GROUP_MAC = "ff02::1:ff00:1", "33:33:ff:00:00:01"
VTEP, OTHER = "10.20.0.5", "10.20.0.6"
VTEPS = [
    Vtep("10.1.0.0/24", VTEP, 4789, b"\2\0\0\0\0\5"),
    Vtep("2001:db8:1::/64", VTEP, 4789, b"\2\0\0\0\0\5"),
    Vtep("10.1.0.128/25", OTHER, 4790, b"\2\0\0\0\0\6"),
]

WHO_HAS = Ether(src=HOST_MAC, dst=BROADCAST) / ARP(hwsrc=HOST_MAC, psrc=HOST, pdst=GATEWAY)
ASK6 = Ether(src=HOST_MAC, dst=GROUP_MAC) / IPv6(src=HOST6, dst=GROUP, hlim=255)
SOLICIT = ASK6 / ICMPv6ND_NS(tgt=GATEWAY6) / ICMPv6NDOptSrcLLAddr(lladdr=HOST_MAC)
TO_GATEWAY = Ether(src=HOST_MAC, dst=GATEWAY_MAC)
PING = TO_GATEWAY / IP(src=HOST, dst=GATEWAY, tos=0x28) / ICMP(id=7, seq=9) / Raw(b"odd payload!!")
PING6 = TO_GATEWAY / IPv6(src=HOST6, dst=GATEWAY6) / ICMPv6EchoRequest(id=7, seq=9, data=b"odd payload!!")


class Gen:
    def __init__(self) -> None:
        self.fabric, self.counters = RecordingSender(), Counters()
        self.answers = Answers(self.fabric, self.counters)
        mac = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
        self.tenant = Tenant(VNI, mac, [GATEWAY, GATEWAY6], VTEPS)
        self.answers.put_tenant(self.tenant)

    def ask(self, frame: Packet | bytes, vtep: str | None = VTEP) -> Packet | None:
        """What comes back, as scapy reads it; None for nothing."""
        data = frame if isinstance(frame, bytes) else bytes(VXLAN(vni=VNI, flags=8) / frame)
        self.fabric.sent.clear()
        self.answers.receive(VNI, vtep, memoryview(data), len(data))
        if not self.fabric.sent:
            return None
        ((reply, size, _, _),) = self.fabric.sent
        assert size == len(reply)
        packet = VXLAN(reply)
        assert packet.vni == VNI
        assert packet[Ether].src == GATEWAY_MAC
        return packet[Ether]

    @property
    def went_to(self) -> tuple[str, int]:
        return self.fabric.sent[-1][2]


@pytest.fixture
def gen() -> Gen:
    return Gen()


def checked(packet: Packet) -> bool:
    """Whether scapy computes the same lengths and checksums."""
    fresh = packet.copy()
    for layer in fresh.iterpayloads():
        for name in ("chksum", "cksum", "len", "plen"):
            if name in layer.fields:
                del layer.fields[name]
    return bytes(fresh) == bytes(packet)


def test_arp(gen: Gen) -> None:
    for frame in (WHO_HAS, Ether(src=HOST_MAC, dst=GATEWAY_MAC) / WHO_HAS[ARP], WHO_HAS / Raw(bytes(18))):
        reply = gen.ask(frame)
        assert reply is not None
        assert reply.dst == HOST_MAC
        answer = reply[ARP]
        assert (answer.op, answer.hwsrc, answer.psrc) == (2, GATEWAY_MAC, GATEWAY)
        assert (answer.hwdst, answer.pdst) == (HOST_MAC, HOST)
        assert gen.went_to == (VTEP, 4789)


def test_an_arp_probe_is_told_that_the_address_is_taken(gen: Gen) -> None:
    reply = gen.ask(Ether(src=HOST_MAC, dst=BROADCAST) / ARP(hwsrc=HOST_MAC, psrc="0.0.0.0", pdst=GATEWAY))
    assert reply is not None
    assert (reply[ARP].psrc, reply[ARP].pdst) == (GATEWAY, "0.0.0.0")


def test_neighbour_solicitation(gen: Gen) -> None:
    unicast = TO_GATEWAY / IPv6(src=HOST6, dst=GATEWAY6, hlim=255) / ICMPv6ND_NS(tgt=GATEWAY6)
    for frame in (SOLICIT, ASK6 / ICMPv6ND_NS(tgt=GATEWAY6), unicast):
        reply = gen.ask(frame)
        assert reply is not None
        assert checked(reply)
        assert (reply.dst, reply[IPv6].src, reply[IPv6].dst) == (HOST_MAC, GATEWAY6, HOST6)
        assert reply[IPv6].hlim == 255
        answer = reply[ICMPv6ND_NA]
        assert (answer.R, answer.S, answer.O, answer.tgt) == (1, 1, 1, GATEWAY6)
        assert answer[ICMPv6NDOptDstLLAddr].lladdr == GATEWAY_MAC
        assert gen.went_to == (VTEP, 4789)


def test_an_address_that_is_tried_out_is_defended_to_all_nodes(gen: Gen) -> None:
    reply = gen.ask(
        Ether(src=HOST_MAC, dst=GROUP_MAC) / IPv6(src="::", dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=GATEWAY6)
    )
    assert reply is not None
    assert checked(reply)
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (reply[ICMPv6ND_NA].S, reply[ICMPv6ND_NA].O) == (0, 1)


def test_ping(gen: Gen) -> None:
    reply = gen.ask(PING)
    assert reply is not None
    assert checked(reply)
    assert (reply.dst, reply[IP].src, reply[IP].dst, reply[IP].ttl) == (HOST_MAC, GATEWAY, HOST, 64)
    answer = reply[ICMP]
    assert (answer.type, answer.code, answer.id, answer.seq) == (0, 0, 7, 9)
    assert bytes(answer.payload) == b"odd payload!!"
    reply6 = gen.ask(PING6)
    assert reply6 is not None
    assert checked(reply6)
    assert (reply6[IPv6].src, reply6[IPv6].dst) == (GATEWAY6, HOST6)
    answer6 = reply6[ICMPv6EchoReply]
    assert (answer6.id, answer6.seq, answer6.data) == (7, 9, b"odd payload!!")


def test_who_gets_the_answer(gen: Gen) -> None:
    """The VTEP that asked; where a GPN passed it on, the one that serves the asker."""
    asker = Ether(src=HOST_MAC, dst=BROADCAST) / ARP(hwsrc=HOST_MAC, psrc="10.1.0.200", pdst=GATEWAY)
    local = (
        Ether(src=OTHER_MAC, dst=GATEWAY_MAC)
        / IPv6(src="fe80::6", dst=GATEWAY6, hlim=255)
        / ICMPv6ND_NS(tgt=GATEWAY6)
    )
    for vtep, frame, dest in [
        (VTEP, WHO_HAS, (VTEP, 4789)),
        (OTHER, WHO_HAS, (OTHER, 4790)),  # a host may have moved behind another VTEP
        (None, WHO_HAS, (VTEP, 4789)),
        (None, asker, (OTHER, 4790)),
        (None, SOLICIT, (VTEP, 4789)),
        (None, local, (OTHER, 4790)),
    ]:
        assert gen.ask(frame, vtep) is not None
        assert gen.went_to == dest
    foreign = Ether(src=SPOOF, dst=BROADCAST) / ARP(hwsrc=SPOOF, psrc="192.0.2.1", pdst=GATEWAY)
    assert gen.ask(foreign, None) is None
    assert gen.counters.nonzero() == {"gen_answered": 6, "gen_drop_unanswered": 1}


GROUP_SENDER = "01:00:5e:00:00:01"


@pytest.mark.parametrize(
    "frame",
    [
        Ether(src=HOST_MAC, dst=BROADCAST) / ARP(hwsrc=HOST_MAC, psrc=HOST, pdst="10.1.0.2"),
        Ether(src=HOST_MAC, dst="02:00:00:00:00:09") / WHO_HAS[ARP],
        ASK6 / ICMPv6ND_NS(tgt="2001:db8:1::ff00:1"),  # of the same group
        TO_GATEWAY / IP(src=HOST, dst="10.1.0.2") / ICMP(),
        Ether(src=HOST_MAC, dst=GATEWAY_MAC, type=0x0800) / PING6[IPv6],
    ],
    ids=["arp-other", "other-mac", "ns-other", "ping-other", "ethertype"],
)
def test_nothing_is_answered_for_others(gen: Gen, frame: Packet) -> None:
    assert gen.ask(frame) is None
    assert gen.counters.nonzero() == {"gen_drop_unanswered": 1}


@pytest.mark.parametrize(
    "frame",
    [
        WHO_HAS.__class__(src=HOST_MAC, dst=BROADCAST) / ARP(op=2, hwsrc=HOST_MAC, psrc=HOST, pdst=GATEWAY),
        Ether(src=HOST_MAC, dst=BROADCAST) / ARP(hwsrc=HOST_MAC, psrc=HOST, pdst=GATEWAY, hwlen=8),
        Ether(src=HOST_MAC, dst=BROADCAST) / ARP(hwsrc=HOST_MAC, psrc=HOST, pdst=GATEWAY, plen=16),
        Ether(src=HOST_MAC, dst=BROADCAST) / ARP(hwsrc=HOST_MAC, psrc=HOST, pdst=GATEWAY, hwtype=6),
        Ether(src=HOST_MAC, dst=BROADCAST) / ARP(hwsrc=BROADCAST, psrc=HOST, pdst=GATEWAY),
        Ether(src=GROUP_SENDER, dst=BROADCAST) / WHO_HAS[ARP],
        Ether(src=HOST_MAC, dst=BROADCAST, type=0x0806) / Raw(bytes(WHO_HAS[ARP])[:27]),
        Ether(src=HOST_MAC, dst=BROADCAST, type=0x0806),
        ASK6.__class__(bytes(ASK6)[:14]) / IPv6(src=HOST6, dst=GROUP, hlim=254) / ICMPv6ND_NS(tgt=GATEWAY6),
        ASK6 / ICMPv6ND_NS(tgt=GATEWAY6, code=1),
        ASK6 / ICMPv6ND_NS(tgt=GATEWAY6, cksum=1),
        ASK6 / ICMPv6ND_NS(tgt=GROUP),
        ASK6 / ICMPv6ND_NS(tgt="2001:db8:1::2"),  # of another group
        ASK6 / ICMPv6ND_NS(tgt=GATEWAY6) / ICMPv6NDOptSrcLLAddr(lladdr=GROUP_SENDER),
        ASK6 / ICMPv6ND_NS(tgt=GATEWAY6) / ICMPv6NDOptSrcLLAddr(len=0, lladdr=HOST_MAC),
        ASK6 / ICMPv6ND_NS(tgt=GATEWAY6) / ICMPv6NDOptSrcLLAddr(len=2, lladdr=HOST_MAC),
        ASK6 / ICMPv6ND_NS(tgt=GATEWAY6) / Raw((b"\x0e\x01" + bytes(6)) * 16),
        TO_GATEWAY / IPv6(src="::", dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=GATEWAY6) / ICMPv6NDOptSrcLLAddr(),
        TO_GATEWAY / IPv6(src="::", dst=GATEWAY6, hlim=255) / ICMPv6ND_NS(tgt=GATEWAY6),
        TO_GATEWAY / IPv6(src="ff02::1", dst=GATEWAY6, hlim=255) / ICMPv6ND_NS(tgt=GATEWAY6),
        ASK6 / ICMPv6ND_RS(),
        TO_GATEWAY / IP(src=HOST, dst=GATEWAY) / UDP(dport=53) / Raw(b"?"),
        TO_GATEWAY / IP(src=HOST, dst=GATEWAY) / ICMP(type=13),
        TO_GATEWAY / IP(src=HOST, dst=GATEWAY) / ICMP(code=1),
        TO_GATEWAY / IP(src=HOST, dst=GATEWAY) / ICMP(chksum=1),
        TO_GATEWAY / IP(src=HOST, dst=GATEWAY, chksum=1) / ICMP(),
        TO_GATEWAY / IP(src=HOST, dst=GATEWAY, flags="MF") / ICMP(),
        TO_GATEWAY / IP(src=HOST, dst=GATEWAY, frag=1) / ICMP(),
        TO_GATEWAY / IP(src="255.255.255.255", dst=GATEWAY) / ICMP(),
        TO_GATEWAY / IP(src="0.0.0.0", dst=GATEWAY) / ICMP(),
        TO_GATEWAY / IP(src=HOST, dst=GATEWAY, options=IPOption(b"\x07\x07\x04\0\0\0\0")) / ICMP(),
        TO_GATEWAY / IPv6(src=HOST6, dst=GATEWAY6) / ICMPv6EchoRequest(cksum=1),
        TO_GATEWAY / IPv6(src=HOST6, dst=GATEWAY6) / ICMPv6EchoReply(),
        TO_GATEWAY / IPv6(src="::", dst=GATEWAY6) / ICMPv6EchoRequest(),
        TO_GATEWAY / IPv6(src="ff02::1", dst=GATEWAY6) / ICMPv6EchoRequest(),
    ],
)  # fmt: skip
def test_a_bad_question_gets_nothing(gen: Gen, frame: Packet) -> None:
    assert gen.ask(frame) is None
    assert gen.counters.nonzero() == {"gen_drop_malformed": 1}


def test_no_tenant_no_answer(gen: Gen) -> None:
    gen.answers.drop_tenant(VNI)
    assert gen.ask(WHO_HAS) is None
    assert gen.counters.nonzero() == {"gen_drop_unanswered": 1}


def test_what_the_kernel_refuses_is_counted(gen: Gen) -> None:
    gen.fabric.accepting = False
    gen.ask(WHO_HAS)
    assert gen.counters.nonzero() == {"gen_drop_send": 1}


def test_where_questions_go(gen: Gen) -> None:
    group = bytes.fromhex("ff0200000000000000000001ff000001")
    assert gen.tenant.heard() == {b"\x0a\1\0\1", bytes.fromhex("20010db8000100000000000000000001"), group}


GOOD = [bytes(VXLAN(vni=VNI, flags=8) / frame) for frame in (WHO_HAS, SOLICIT, PING, PING6)]


def test_the_golden_questions_are_scapys() -> None:
    assert list(questions.ALL) == GOOD


@given(st.sampled_from(GOOD), st.integers(0, 8), st.data())
def test_a_changed_question_is_answered_correctly_or_not_at_all(
    good: bytes, changes: int, data: st.DataObject
) -> None:
    gen, frame = Gen(), bytearray(good)
    for _ in range(changes):
        frame[data.draw(st.integers(22, len(frame) - 1))] = data.draw(st.integers(0, 255))
    reply = gen.ask(bytes(frame[: data.draw(st.integers(0, len(frame)))]) if changes == 8 else bytes(frame))
    assert sum(gen.counters.values()) == 1
    if reply is not None:
        assert checked(reply)
        assert len(gen.fabric.sent[0][0]) <= len(good) + 8  # a solicitation may lack its option
        source = reply[ARP].psrc if ARP in reply else reply[1].src
        assert source in (GATEWAY, GATEWAY6)


PARSERS: list[Callable[[bytes], object]] = [arp.parse_request, icmp.parse_solicitation, icmp.echo_reply]


@pytest.mark.parametrize("parse", PARSERS)
@given(st.binary(max_size=120))
def test_any_bytes_are_malformed_at_the_worst(parse: Callable[[bytes], object], data: bytes) -> None:
    for each in (data, b"\x60" + data, b"\x45" + data):
        try:
            parse(each)
        except Malformed:
            continue


@given(st.binary(min_size=2, max_size=60).filter(any))
def test_a_checksum_covers_its_own_field(data: bytes) -> None:
    assert intact(data if len(data) % 2 == 0 else data + b"\0", checksum(data))
