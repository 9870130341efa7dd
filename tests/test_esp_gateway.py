"""A GPN's data path: who may send what where, what is parked, echoed, returned, and said to the GMN."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.esp import inbound
from protego_cli.esp.events import FirstPacket, PeerMoved, RangeLow
from protego_cli.esp.gateway import Neighbour
from protego_cli.esp.outbox import Port, Way
from protego_cli.esp.parking import MAX_AGE, PER_SPI
from protego_cli.esp.tenants import Vtep
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.tags import Tag, TagKind, open_tag, seal_tag
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, ETHERTYPE_IPV6, build_frame_header
from tests.support.esp_packets import ipv4, ipv6, passed, ports
from tests.support.esp_reference import ReferenceSa, padded, seal, unseal
from tests.support.esp_world import (
    ACME,
    BLUE,
    BLUE_VTEP,
    GATEWAY_MAC,
    GEN,
    GEN_KEY,
    GIN,
    GIN_KEY,
    NOW,
    VIP,
    VTEP,
    VTEP2,
    VTEP2_MAC,
    VTEP_MAC,
    World,
    datagrams,
    entry,
    world,
)

IN = ipv4("10.2.0.9", "10.1.0.5", b"from the peer")
OUT = ipv4("10.1.0.5", "10.2.0.9", b"from the tenant")


@pytest.fixture
def w() -> World:
    return world()


def esp(sa: ReferenceSa, *inners: bytes, first: int = 1) -> list[bytes]:
    return [seal(sa.key_in, sa.spi_in, first + n, padded(inner, 4)) for n, inner in enumerate(inners)]


def vxlan(inner: bytes, vni: int = ACME, ethertype: bytes = ETHERTYPE_IPV4) -> bytes:
    return build_frame_header(vni, GATEWAY_MAC, VTEP_MAC, ethertype) + inner


def frame(inner: bytes, vni: int = ACME, mac: bytes = VTEP_MAC) -> bytes:
    """What the tenant gets."""
    ethertype = ETHERTYPE_IPV4 if inner[0] >> 4 == 4 else ETHERTYPE_IPV6
    return build_frame_header(vni, mac, GATEWAY_MAC, ethertype) + passed(inner)


# ---- from the peer to the tenant


def test_a_batch_of_one_flow_is_one_send(w: World) -> None:
    (send,) = w.receive_esp(*esp(w.sa(), *[IN] * 44))
    assert send.way == Way(Port.VXLAN, VTEP, None, "gpn_opened")
    assert (bytes(send.data), send.size, send.packets) == (frame(IN) * 44, len(frame(IN)), 44)
    assert w.counters.nonzero() == {}
    assert w.gateway.take_events() == [FirstPacket(w.sa().spi_in)]
    usage = w.gateway.usage()[0]
    assert usage[:5] == (w.sa().spi_in, 44, 44 * len(IN), 0, 0)
    assert (usage.highest_in, usage.next_out) == (44, 1)


def test_the_last_packet_of_a_batch_may_be_shorter(w: World) -> None:
    short = ipv4("10.2.0.9", "10.1.0.5", b"")
    (send,) = w.receive_esp(*esp(w.sa(), IN, IN, short))
    assert send.data == frame(IN) * 2 + frame(short)
    assert (send.size, send.packets) == (len(frame(IN)), 3)


def test_the_longest_prefix_says_which_vtep(w: World) -> None:
    other = ipv4("10.2.0.9", "10.1.0.200", b"from the peer")
    sends = w.receive_esp(*esp(w.sa(), IN, other, IN, other))
    assert datagrams(sends) == [
        *[(VTEP, frame(IN))] * 2,
        *[(VTEP2, frame(other, mac=VTEP2_MAC))] * 2,
    ]


def test_the_sa_says_which_tenant(w: World) -> None:
    sends = w.receive_esp(*esp(w.sa("blue/hq"), IN))
    assert datagrams(sends) == [(BLUE_VTEP, frame(IN, BLUE))]


def test_ipv6_and_ipv4_share_an_sa(w: World) -> None:
    sa, six = w.sa(), ipv6("fd00:2::9", "fd00:1::5", bytes(13))
    packets = [*esp(sa, IN), seal(sa.key_in, sa.spi_in, 2, padded(six, 41)), *esp(sa, IN, first=3)]
    assert datagrams(w.receive_esp(*packets)) == [(VTEP, frame(inner)) for inner in (IN, six, IN)]


def test_packets_whose_lengths_hide_in_the_padding_stay_in_order(w: World) -> None:
    inners = [ipv4("10.2.0.9", "10.1.0.5", bytes([n]) * (8 + n % 3)) for n in range(12)]
    packets = esp(w.sa(), *inners)
    assert len({len(packet) for packet in packets}) == 1
    assert datagrams(w.receive_esp(*packets)) == [(VTEP, frame(inner)) for inner in inners]


def test_packets_whose_lengths_hide_in_traffic_flow_padding_stay_in_order(w: World) -> None:
    sa = w.sa()
    inners = [ipv4("10.2.0.9", "10.1.0.5", bytes([n]) * (16 + 4 * (n % 3))) for n in range(12)]
    packets = [
        seal(sa.key_in, sa.spi_in, 1 + n, padded(inner, 4, extra=8 - 4 * (n % 3)))
        for n, inner in enumerate(inners)
    ]
    assert len({len(packet) for packet in packets}) == 1
    assert datagrams(w.receive_esp(*packets)) == [(VTEP, frame(inner)) for inner in inners]


def test_sas_mixed_in_a_batch_are_told_apart_and_stay_in_order(w: World) -> None:
    inners = [ipv4("10.2.0.9", "10.1.0.5", bytes([n])) for n in range(20)]
    acme = esp(w.sa(), *inners)
    blue = esp(w.sa("blue/hq"), *inners)
    sent = datagrams(w.receive_esp(*[p for pair in zip(acme, blue, strict=True) for p in pair]))
    assert [data for dest, data in sent if dest == VTEP] == [frame(inner) for inner in inners]
    assert [data for dest, data in sent if dest == BLUE_VTEP] == [frame(inner, BLUE) for inner in inners]


def test_a_tenant_that_is_gone_has_no_vtep(w: World) -> None:
    assert w.receive_esp(*esp(w.sa(), IN))
    w.gateway.drop_tenant(ACME)
    assert w.receive_esp(*esp(w.sa(), IN, first=2)) == []
    assert w.counters.nonzero() == {"gpn_drop_no_vtep": 1}
    w.gateway.put_tenant(ACME, GATEWAY_MAC, [Vtep("10.1.0.0/16", *VTEP2, VTEP2_MAC)])
    assert datagrams(w.receive_esp(*esp(w.sa(), IN, first=3))) == [(VTEP2, frame(IN, mac=VTEP2_MAC))]


def test_selectors_with_ports_look_into_every_packet(w: World) -> None:
    sa = w.sa()
    whole = entry(sa).remote_ts[0]
    web = TrafficSelector(whole.start, whole.end, 17, 80, 80)
    w.gateway.put_sa(replace(entry(sa), remote_ts=(web,)))
    inners = [ipv4("10.2.0.9", "10.1.0.5", ports(port, 9)) for port in (80, 81, 80)]
    sent = datagrams(w.receive_esp(*esp(sa, *inners)))
    assert sent == [(VTEP, frame(inners[0])), (VTEP, frame(inners[2]))]
    back = [ipv4("10.1.0.5", "10.2.0.9", ports(9, port)) for port in (80, 81, 80)]
    assert len(datagrams(w.receive_vxlan(*map(vxlan, back)))) == 2
    assert w.counters.nonzero() == {"gpn_drop_selector_in": 1, "gpn_drop_selector_out": 1}


# ---- from the tenant to the peer


def test_a_batch_of_frames_is_sealed_in_one_send(w: World) -> None:
    sa = w.sa()
    (send,) = w.receive_vxlan(*[vxlan(OUT)] * 44)
    assert send.way == Way(Port.ESP, sa.peer, VIP, "gpn_sealed")
    expected = [seal(sa.key_out, sa.spi_out, 1 + n, padded(passed(OUT), 4)) for n in range(44)]
    assert (send.data, send.size, send.packets) == (b"".join(expected), len(expected[0]), 44)
    assert w.gateway.usage()[0][3:7] == (44, 44 * len(OUT), 0, 45)


def test_ethernet_padding_stays_behind(w: World) -> None:
    sa, small = w.sa(), ipv4("10.1.0.5", "10.2.0.9", b"")
    assert datagrams(w.receive_vxlan(vxlan(small) + bytes(26))) == [
        (sa.peer, seal(sa.key_out, sa.spi_out, 1, padded(passed(small), 4)))
    ]


def test_a_cut_packet_is_not_taken_for_the_whole_one_before_it(w: World) -> None:
    assert len(w.receive_vxlan(vxlan(OUT))) == 1
    assert w.receive_vxlan(vxlan(OUT[:-2])) == []
    assert w.counters.nonzero() == {"gpn_drop_inner": 1}


def test_ipv6_flows_beside_ipv4_are_told_apart(w: World) -> None:
    four = ipv4("10.1.0.5", "10.2.0.9", bytes(40))
    mine, foreign = (ipv6("fd00:1::5", f"fd00:{n}::9", bytes(20)) for n in (2, 3))
    frames = [vxlan(four), *(vxlan(six, ethertype=ETHERTYPE_IPV6) for six in (mine, foreign, mine))]
    assert len({len(data) for data in frames}) == 1
    assert len(datagrams(w.receive_vxlan(*frames))) == 3
    assert w.counters.nonzero() == {"gpn_drop_no_rule": 1}


def test_of_two_tunnels_the_one_more_exact_seals(w: World) -> None:
    to_annex = ipv4("10.1.0.5", "10.2.9.1", b"from the tenant")
    sent = datagrams(w.receive_vxlan(vxlan(OUT), vxlan(to_annex), vxlan(OUT)))
    assert [dest for dest, _ in sent] == [w.sa().peer] * 2 + [w.sa("acme/annex").peer]


@pytest.mark.parametrize("source", [VTEP, ("10.20.0.5", 51515), VTEP2])
def test_a_vtep_may_send_straight_here(w: World, source: tuple[str, int]) -> None:
    assert [dest for dest, _ in datagrams(w.receive_vxlan(vxlan(OUT), source=source))] == [w.sa().peer]


@pytest.mark.parametrize("source", [BLUE_VTEP, ("10.66.6.6", 4789), GIN, ("10.10.0.3", 4790)])
def test_nobody_else_may(w: World, source: tuple[str, int]) -> None:
    assert w.receive_vxlan(vxlan(OUT), source=source) == []
    assert w.counters.nonzero() == {"gpn_drop_vxlan_source": 1}


def test_what_no_tunnel_here_takes_goes_on_to_a_gen(w: World) -> None:
    w.gateway.drop_rule("acme/hq")
    (send,) = w.receive_vxlan(*[vxlan(OUT)] * 3, source=VTEP)
    assert send.way == Way(Port.VXLAN, GEN, None, "gpn_returned")
    assert bytes(send.data) == vxlan(OUT) * 3
    assert w.receive_vxlan(vxlan(OUT)) == [], "but never back to the GEN it came from"
    assert w.counters.nonzero() == {"gpn_drop_no_rule": 1}


@pytest.mark.parametrize("most", [1, 64])
def test_a_tunnel_that_leaves_takes_packets_from_gens_alone(w: World, most: int) -> None:
    """Those that a VTEP sends straight here go the way of all others, until the rule says otherwise."""
    spi = w.sa().spi_in
    w.gateway.put_rule("acme/hq", spi, direct=False)
    sent = datagrams(w.receive_vxlan_train(*[vxlan(OUT)] * 3, most=most, source=VTEP))
    assert sent == [(GEN, vxlan(OUT))] * 3
    assert len(datagrams(w.receive_vxlan_train(*[vxlan(OUT)] * 3, most=most))) == 3
    assert w.gateway.usage()[0].packets_out == 3
    w.gateway.drop_rule("acme/hq")
    w.gateway.put_rule("acme/hq", spi)
    w.receive_vxlan(vxlan(OUT), source=VTEP)
    assert w.gateway.usage()[0].packets_out == 4


def test_without_a_gen_it_is_sealed_all_the_same(w: World) -> None:
    w.gateway.put_rule("acme/hq", w.sa().spi_in, direct=False)
    w.gateway.drop_neighbour("gen-1")
    w.receive_vxlan(vxlan(OUT), source=VTEP)
    assert w.gateway.usage()[0].packets_out == 1


def test_without_a_gen_it_is_dropped(w: World) -> None:
    w.gateway.drop_rule("acme/hq")
    w.gateway.drop_neighbour("gen-1")
    assert w.receive_vxlan(vxlan(OUT), source=VTEP) == []
    assert w.counters.nonzero() == {"gpn_drop_no_rule": 1}


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (vxlan(bytes(28), ethertype=b"\x08\x06"), "gpn_drop_inner"),
        (vxlan(OUT, ethertype=ETHERTYPE_IPV6), "gpn_drop_inner"),
        (vxlan(OUT[:-1]), "gpn_drop_inner"),
        (vxlan(b""), "gpn_drop_inner"),
        (vxlan(OUT)[:12], "gpn_drop_inner"),
        (vxlan(OUT)[:7], "gpn_drop_vxlan_malformed"),
        (bytes(8) + vxlan(OUT)[8:], "gpn_drop_vxlan_malformed"),
        (b"", "gpn_drop_vxlan_malformed"),
        (vxlan(ipv4("10.9.0.5", "10.2.0.9", b"")), "gpn_drop_selector_out"),
        (vxlan(OUT, vni=77), "gpn_drop_no_rule"),
    ],
    ids=["arp", "other version", "cut", "empty", "no frame", "short", "no flag", "nothing", "foreign", "vni"],
)
def test_frames_that_do_not_hold_are_dropped_for_their_reason(w: World, data: bytes, counter: str) -> None:
    assert w.receive_vxlan(data) == []
    assert w.counters.nonzero() == {counter: 1}


def test_a_rule_moves_sealing_from_one_sa_to_the_next(w: World) -> None:
    old = w.sa()
    new = replace(entry(old), spi_in=0x31, spi_out=0x4141, key_in=bytes(36), key_out=bytes(36))
    w.gateway.put_sa(new)
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][1][:4] == old.spi_out.to_bytes(4)
    w.gateway.put_rule("acme/hq", new.spi_in)
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][1][:4] == new.spi_out.to_bytes(4)
    w.gateway.drop_sa(new.spi_in)
    assert w.receive_vxlan(vxlan(OUT)) == []
    assert w.counters.nonzero() == {"gpn_drop_no_rule": 1}


def test_checksums_left_to_a_card_are_made(w: World) -> None:
    """A virtual link's sender leaves the sum of the pseudo-header where the checksum belongs."""
    sa, length = w.sa(), 8 + 6
    inner = bytearray(ipv4("10.1.0.5", "10.2.0.9", ports(7, 9, b"half..")))
    pseudo = inner[12:20] + bytes((0, 17)) + length.to_bytes(2)
    total = sum(int.from_bytes(pseudo[at : at + 2]) for at in range(0, len(pseudo), 2))
    partial = ((total & 0xFFFF) + (total >> 16)).to_bytes(2)
    whole = bytes(inner)
    inner[26:28] = partial
    sent = datagrams(w.receive_vxlan(vxlan(whole), vxlan(bytes(inner)), vxlan(whole)))
    assert sent[0][1] == seal(sa.key_out, sa.spi_out, 1, padded(passed(whole), 4))
    finished = unseal(sa.key_out, sent[1][1])
    everything = total + sum(int.from_bytes(inner[at : at + 2]) for at in (20, 22, 24, 28, 30, 32))
    inner[26:28] = (0xFFFF - everything % 0xFFFF).to_bytes(2)
    assert finished[20:] == padded(bytes(inner), 4)[20:]
    assert len(sent) == 3


# ---- the sealing range and the lifetime


def test_a_range_runs_low_once_and_then_out(w: World) -> None:
    sa = w.sa()
    w.gateway.drop_sa(sa.spi_in)
    w.gateway.put_sa(replace(entry(sa), seal_lo=100, seal_hi=108))
    assert len(datagrams(w.receive_vxlan(*[vxlan(OUT)] * 5))) == 5
    assert w.gateway.take_events() == []
    assert len(datagrams(w.receive_vxlan(*[vxlan(OUT)] * 5))) == 3
    assert w.receive_vxlan(vxlan(OUT)) == []
    assert w.gateway.take_events() == [RangeLow(sa.spi_in)]
    assert w.counters.nonzero() == {"gpn_drop_range": 3}
    w.gateway.put_sa(replace(entry(sa), seal_lo=200, seal_hi=208))
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][1][4:8] == (200).to_bytes(4)


def test_an_older_range_is_not_taken(w: World) -> None:
    sa = w.sa()
    w.gateway.put_sa(replace(entry(sa), seal_lo=1000, seal_hi=2000))
    w.receive_vxlan(vxlan(OUT))
    w.gateway.put_sa(replace(entry(sa), seal_lo=1, seal_hi=2000))
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][1][4:8] == (1001).to_bytes(4)


def test_an_sa_that_comes_back_goes_on_where_it_was(w: World) -> None:
    sa = w.sa()
    packets = esp(sa, IN, IN)
    w.receive_esp(*packets)
    w.receive_vxlan(vxlan(OUT))
    w.gateway.drop_sa(sa.spi_in)
    w.gateway.put_sa(entry(sa))
    assert w.receive_esp(*packets) == []
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][1][4:8] == (2).to_bytes(4)
    w.gateway.put_sa(replace(entry(sa), window=128))
    assert w.receive_esp(*packets) == []
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][1][4:8] == (3).to_bytes(4)


def test_a_put_keeps_the_window_and_only_raises_the_floor(w: World) -> None:
    sa = w.sa()
    packets = esp(sa, *[IN] * 9)
    w.receive_esp(*packets[:4])
    w.gateway.put_sa(replace(entry(sa), floor=6))
    w.gateway.put_sa(replace(entry(sa), floor=0))
    assert len(datagrams(w.receive_esp(*packets))) == 3
    w.gateway.put_sa(replace(entry(sa), opens=False))
    assert w.receive_esp(*esp(sa, IN, first=50)) == []
    assert w.counters.nonzero() == {"gpn_drop_floor": 7}


def test_past_its_lifetime_an_sa_carries_nothing(w: World) -> None:
    sa = w.sa()
    w.gateway.put_sa(replace(entry(sa), expires=NOW + 5))
    assert w.receive_esp(*esp(sa, IN), now=NOW + 4)
    assert w.receive_vxlan(vxlan(OUT), now=NOW + 4)
    assert w.receive_esp(*esp(sa, IN, first=2), now=NOW + 5) == []
    assert w.receive_vxlan(vxlan(OUT), now=NOW + 5) == []
    assert w.counters.nonzero() == {"gpn_drop_expired": 2}


def test_a_bad_put_changes_nothing(w: World) -> None:
    sa = w.sa()
    for bad in (replace(entry(sa), key_in=b"short"), replace(entry(sa), seal_lo=5, seal_hi=4)):
        with pytest.raises(ValueError, match=r"keying material|no range"):
            w.gateway.put_sa(bad)
    assert w.receive_esp(*esp(sa, IN))
    assert w.receive_vxlan(vxlan(OUT))


# ---- parking


def test_packets_wait_for_their_keys_and_come_out_in_order() -> None:
    w = world()
    sa = w.sa()
    w.gateway.drop_sa(sa.spi_in)
    w.gateway.park(sa.spi_in)
    inners = [ipv4("10.2.0.9", "10.1.0.5", bytes(n)) for n in range(30)]
    packets = esp(sa, *inners)
    assert w.receive_esp(*packets[:20]) == []
    assert w.receive_esp(*packets[20:]) == []
    assert w.counters.nonzero() == {"gpn_parked": 30}
    assert w.gateway.take_events() == []
    assert datagrams(w.gateway.put_sa(entry(sa))) == [(VTEP, frame(inner)) for inner in inners]
    assert w.gateway.take_events() == [FirstPacket(sa.spi_in)]
    w.gateway.unpark(sa.spi_in)
    assert w.counters.nonzero() == {"gpn_parked": 30}


def test_parking_is_bounded_in_size_and_time(w: World) -> None:
    w.gateway.park(0xABCDEF01)
    packet = (0xABCDEF01).to_bytes(4) + bytes(1372)
    room = PER_SPI // (len(packet) + 128)
    for _ in range(room // 40 + 1):
        w.receive_esp(*[packet] * 40)
    assert w.counters["gpn_parked"] == room
    assert w.counters["gpn_drop_park_full"] == (room // 40 + 1) * 40 - room
    w.gateway.expire(NOW + MAX_AGE)
    assert w.counters["gpn_drop_park_expired"] == 0
    w.gateway.expire(NOW + MAX_AGE + 1)
    assert w.counters["gpn_drop_park_expired"] == room
    w.receive_esp(packet, now=NOW + 20)
    assert w.counters["gpn_parked"] == room + 1
    w.gateway.unpark(0xABCDEF01)
    assert w.counters["gpn_drop_park_expired"] == room + 1
    w.receive_esp(packet)
    assert w.counters["gpn_drop_unknown_spi"] == 1


def test_to_park_a_packet_takes_no_look_at_what_else_is_parked(w: World) -> None:
    """There may be thousands of SPIs, when a GPN has died."""
    ours, other = 0xABCDEF01, 0xABCDEF02
    for spi in (ours, other):
        w.gateway.park(spi)
        w.receive_esp(spi.to_bytes(4) + bytes(60))
    later = NOW + MAX_AGE + 1
    w.receive_esp(ours.to_bytes(4) + bytes(60), now=later)
    assert w.counters.nonzero() == {"gpn_parked": 3, "gpn_drop_park_expired": 1}
    w.gateway.expire(later)
    assert w.counters["gpn_drop_park_expired"] == 2


def test_what_is_remembered_of_all_sas_together_is_bounded(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "MAX_JUDGED", 8)
    for length in range(12):
        inner = ipv4("10.2.0.9", "10.1.0.5", bytes(4 * length))
        for tunnel, dest in (("acme/hq", VTEP), ("blue/hq", BLUE_VTEP)):
            (sent,) = datagrams(w.receive_esp(*esp(w.sa(tunnel), inner, first=length + 1)))
            assert (sent[0], sent[1][22:]) == (dest, passed(inner))
        assert sum(len(pair.verdicts) for pair in w.gateway._pairs.values()) <= 8
    assert w.counters.nonzero() == {}


# ---- tags


@pytest.mark.parametrize("kind", [TagKind.PROBE, TagKind.BARRIER])
def test_a_tag_is_echoed_behind_what_came_before_it(w: World, kind: TagKind) -> None:
    tag = seal_tag(GIN_KEY, Tag(kind, 77), hmac_sha256)
    before, after = esp(w.sa(), IN, IN)
    sends = w.receive_esp(before, tag, after)
    echo = sends[1]
    assert [send.way.port for send in sends] == [Port.VXLAN, Port.ESP, Port.VXLAN]
    assert (echo.way.dest, echo.way.counter) == (GIN, "")
    assert open_tag(GIN_KEY, bytes(echo.data), hmac_sha256) == Tag(kind, 77).echo()


def test_a_gens_barrier_is_echoed_on_the_vxlan_port(w: World) -> None:
    sends = w.receive_vxlan(vxlan(OUT), vxlan(OUT), seal_tag(GEN_KEY, Tag(TagKind.BARRIER, 5), hmac_sha256))
    assert [send.way[:2] for send in sends] == [(Port.ESP, w.sa().peer), (Port.VXLAN, GEN)]
    assert open_tag(GEN_KEY, bytes(sends[1].data), hmac_sha256).kind is TagKind.BARRIER_ECHO


@pytest.mark.parametrize(
    ("key", "source", "tag"),
    [
        (bytes(32), GIN, Tag(TagKind.PROBE, 1)),
        (GIN_KEY, ("10.10.0.9", 4501), Tag(TagKind.PROBE, 1)),
        (GEN_KEY, GIN, Tag(TagKind.PROBE, 1)),
        (GIN_KEY, GIN, Tag(TagKind.PROBE_ECHO, 1)),
        (GIN_KEY, GIN, Tag(TagKind.ORIGIN, 1, bytes(16), 9, bytes(40))),
        (GIN_KEY, GIN, Tag(TagKind.ORIGIN, 1, bytes(4), 9, bytes((0, 0, 0, 1)) + bytes(40))),
    ],
    ids=["unknown key", "unknown place", "another's key", "an echo", "IPv6 origin", "tag in a tag"],
)
def test_tags_that_are_not_a_neighbours_get_no_answer(
    w: World, key: bytes, source: tuple[str, int], tag: Tag
) -> None:
    assert w.receive_esp(seal_tag(key, tag, hmac_sha256), source=source) == []
    assert w.counters.nonzero() == {"gpn_drop_tag": 1}


def origin(packet: bytes, address: str = "192.0.2.44", port: int = 60000) -> bytes:
    octets = bytes(map(int, address.split(".")))
    return seal_tag(GIN_KEY, Tag(TagKind.ORIGIN, 0, octets, port, packet), hmac_sha256)


def test_a_peer_is_followed_to_a_new_address_by_a_packet_that_opens(w: World) -> None:
    sa = w.sa()
    first, second, third = esp(sa, IN, IN, IN)
    assert w.receive_esp(origin(second[:-1] + bytes([second[-1] ^ 1]))) == []
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][0] == sa.peer, "a forged packet moves nothing"
    assert datagrams(w.receive_esp(origin(second))) == [(VTEP, frame(IN))]
    assert w.gateway.take_events() == [FirstPacket(sa.spi_in), PeerMoved(sa.spi_in, "192.0.2.44", 60000)]
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][0] == ("192.0.2.44", 60000)
    w.receive_esp(origin(first, "192.0.2.66"))
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][0] == ("192.0.2.44", 60000), "an older packet does not"
    w.receive_esp(origin(third))
    assert w.gateway.take_events() == [], "nor is the same place told twice"


def test_a_packet_that_was_held_back_moves_nothing_beside_the_newest_once_more(w: World) -> None:
    sa = w.sa()
    first, second, third, fourth = esp(sa, IN, IN, IN, IN)
    assert datagrams(w.receive_esp(second, source=sa.peer)) == [(VTEP, frame(IN))]
    assert datagrams(w.receive_esp(first, second, source=("192.0.2.66", 1))) == [(VTEP, frame(IN))]
    assert w.gateway.take_events() == [FirstPacket(sa.spi_in)]
    assert len(datagrams(w.receive_esp(fourth, third, source=("192.0.2.44", 60000)))) == 2
    assert w.gateway.take_events() == [PeerMoved(sa.spi_in, "192.0.2.44", 60000)], "one was the newest"


def test_a_put_that_names_no_new_peer_leaves_it_where_packets_proved_it(w: World) -> None:
    sa = w.sa()
    w.receive_esp(origin(*esp(sa, IN)))
    w.gateway.put_sa(replace(entry(sa), expires=NOW + 100))
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][0] == ("192.0.2.44", 60000)
    w.gateway.put_sa(replace(entry(sa), peer=("192.0.2.99", 4500)))
    assert datagrams(w.receive_vxlan(vxlan(OUT)))[0][0] == ("192.0.2.99", 4500)


def test_a_parked_packet_keeps_its_origin(w: World) -> None:
    sa = w.sa()
    w.gateway.drop_sa(sa.spi_in)
    w.gateway.park(sa.spi_in)
    assert w.receive_esp(origin(*esp(sa, IN))) == []
    assert datagrams(w.gateway.put_sa(entry(sa))) == [(VTEP, frame(IN))]
    assert PeerMoved(sa.spi_in, "192.0.2.44", 60000) in w.gateway.take_events()


def test_two_neighbours_may_share_an_address(w: World) -> None:
    w.gateway.put_neighbour("gen-2", Neighbour(GIN[0], (GIN[0], 4789), bytes(32)))
    for key in (GIN_KEY, bytes(32)):
        (echo,) = w.receive_esp(seal_tag(key, Tag(TagKind.PROBE, 3), hmac_sha256))
        assert open_tag(key, bytes(echo.data), hmac_sha256).nonce == 3


# ---- straight from a peer, as a GIN's kernel passes it on


def test_a_peer_is_followed_where_the_kernel_steers(w: World) -> None:
    sa = w.sa()
    first, second, third, fourth = esp(sa, IN, IN, IN, IN)
    assert datagrams(w.receive_esp(first, source=sa.peer)) == [(VTEP, frame(IN))]
    assert w.gateway.take_events() == [FirstPacket(sa.spi_in)]
    forged = third[:-1] + bytes([third[-1] ^ 1])
    assert w.receive_esp(forged, source=("192.0.2.66", 1)) == []
    assert datagrams(w.receive_esp(third, source=("192.0.2.44", 60000))) == [(VTEP, frame(IN))]
    assert datagrams(w.receive_esp(second, source=("192.0.2.66", 1))) == [(VTEP, frame(IN))]
    assert w.gateway.take_events() == [PeerMoved(sa.spi_in, "192.0.2.44", 60000)], "only by the newest"
    w.receive_esp(fourth)
    assert w.gateway.take_events() == [], "what a GIN sends says nothing of the peer's place"


def test_an_unknown_spi_goes_back_to_the_gin_once(w: World) -> None:
    sa = w.sa()
    (known,) = esp(sa, IN)
    stray = (0x7777).to_bytes(4) + known[4:]
    assert w.receive_esp(stray, source=sa.peer) == []
    assert w.counters.nonzero() == {"gpn_drop_unknown_spi": 1}, "no GIN has been heard of yet"
    w.receive_esp(seal_tag(GIN_KEY, Tag(TagKind.PROBE, 9), hmac_sha256))

    sends = w.receive_esp(stray, known, stray, source=sa.peer)
    returned = [(send.way, bytes(send.data[: send.size])) for send in sends if send.way.port is Port.ESP]
    assert [(way.dest, way.counter) for way, _ in returned] == [(GIN, "gpn_esp_returned")]
    assert sum(send.packets for send in sends if send.way.port is Port.ESP) == 2
    tag = open_tag(GIN_KEY, returned[0][1], hmac_sha256)
    assert tag == Tag(TagKind.RETURN, 0, bytes((198, 51, 100, 7)), sa.peer[1], stray)
    assert (VTEP, frame(IN)) in datagrams(sends)

    assert w.receive_esp(stray) == w.receive_esp(origin(stray)) == [], "what a GIN sent never goes back"
    assert w.receive_esp(bytes(4) + known[4:], source=sa.peer) == [], "nor IKE"
    assert w.counters["gpn_drop_unknown_spi"] == 4
    w.gateway.drop_neighbour("gin-1")
    assert w.receive_esp(stray, source=sa.peer) == []
    assert w.counters["gpn_drop_unknown_spi"] == 5


# ---- nothing shows


def test_keys_do_not_show(w: World) -> None:
    text = repr((entry(w.sa()), Neighbour(GIN[0], None, GIN_KEY)))
    assert "key_in" not in text
    assert "tag_key" not in text


def test_a_tenant_with_a_bad_address_is_refused(w: World) -> None:
    with pytest.raises(ValueError, match="MAC"):
        w.gateway.put_tenant(9, b"short", [])
    with pytest.raises(ValueError, match="has host bits"):
        w.gateway.put_tenant(9, GATEWAY_MAC, [Vtep("10.1.0.5/24", *VTEP, VTEP_MAC)])
    assert TrafficSelector.from_prefix("10.1.0.0/24") in entry(w.sa()).local_ts
