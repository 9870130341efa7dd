"""DSCP and ECN through a GPN, in batches (RFC 4301 5.1.2, RFC 6040), beside `test_esp_differential.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.esp.outbox import Port, Way
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.tags import Tag, TagKind, open_tag, seal_tag
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, ETHERTYPE_IPV6, build_frame_header
from tests.support.esp_packets import ipv4, ipv6, ports, summed, unpassed
from tests.support.esp_reference import ReferenceSa, padded, seal, unseal
from tests.support.esp_world import (
    ACME,
    GATEWAY_MAC,
    GEN,
    GIN,
    GIN_KEY,
    VIP,
    VTEP,
    VTEP2,
    VTEP_MAC,
    World,
    entry,
    marked,
    world,
)

CE, ECT0, ECT1, EF = 3, 2, 1, 46 << 2


@pytest.fixture
def w() -> World:
    return world()


def inward(tos: int, number: int = 0, here: str = "10.1.0.5") -> bytes:
    return summed(ipv4("10.2.0.9", here, number.to_bytes(4), tos=tos))


def outward(tos: int, number: int = 0) -> bytes:
    return summed(ipv4("10.1.0.5", "10.2.0.9", number.to_bytes(4), tos=tos))


def esp(sa: ReferenceSa, *inners: bytes, first: int = 1) -> list[bytes]:
    versions = {4: 4, 6: 41}
    return [
        seal(sa.key_in, sa.spi_in, first + n, padded(inner, versions[inner[0] >> 4]))
        for n, inner in enumerate(inners)
    ]


def vxlan(inner: bytes) -> bytes:
    ethertype = ETHERTYPE_IPV4 if inner[0] >> 4 == 4 else ETHERTYPE_IPV6
    return build_frame_header(ACME, GATEWAY_MAC, VTEP_MAC, ethertype) + inner


def opened(w: World, *packets: bytes, tos: int = 0) -> list[tuple[bytes, int]]:
    """The inner packets that leave in VXLAN, as they came but for their marks, each with the outer TOS."""
    return [(unpassed(frame[22:]), outer) for _, frame, outer in marked(w.receive_esp(*packets, tos=tos))]


def sealed(w: World, *inners: bytes, tos: int = 0) -> list[tuple[bytes, int]]:
    """The same of what leaves in ESP; numbers must follow one another."""
    sa, rows = w.sa(), marked(w.receive_vxlan(*map(vxlan, inners), tos=tos))
    numbers = [int.from_bytes(packet[4:8]) for _, packet, _ in rows]
    assert numbers == list(range(numbers[0], numbers[0] + len(rows))) if rows else True
    texts = [(unseal(sa.key_out, packet), outer) for _, packet, outer in rows]
    return [(unpassed(text[: -2 - text[-2]]), outer) for text, outer in texts]


# ---- from the peer


def test_a_marked_batch_of_one_flow_is_one_send(w: World) -> None:
    packets = esp(w.sa(), *[inward(EF | ECT0, n) for n in range(44)])
    (send,) = w.receive_esp(*packets, tos=CE)
    assert send.way == Way(Port.VXLAN, VTEP, None, "gpn_opened", EF | CE)
    assert [unpassed(frame[22:]) for _, frame, _ in marked([send])] == [inward(EF | CE, n) for n in range(44)]


def test_the_outer_dscp_ends_here(w: World) -> None:
    assert opened(w, *esp(w.sa(), inward(0), inward(8 << 2)), tos=EF) == [(inward(0), 0), (inward(32), 32)]


def test_what_cannot_be_marked_is_dropped_and_the_rest_goes_on_in_order(w: World) -> None:
    inners = [inward(tos, n) for n, tos in enumerate([0, ECT0, EF, ECT1, CE, ECT0, 0])]
    packets = esp(w.sa(), *inners)
    assert opened(w, *packets, tos=CE) == [(inward(CE, n), CE) for n in (1, 3, 4, 5)]
    assert w.counters.nonzero() == {"gpn_drop_ecn_in": 3}
    assert opened(w, *packets, tos=CE) == [], "and its number is used up"
    assert w.counters["gpn_drop_replay"] == 7
    usage = w.gateway.usage()[0]
    assert (usage.packets_in, usage.bytes_in) == (4, 4 * 24)


def test_a_flow_keeps_its_order_whatever_its_marks(w: World) -> None:
    """A card on the way marks some packets of a flow; their order is TCP's."""
    inners = [inward(CE if n % 3 == 0 else ECT0, n) for n in range(30)]
    assert opened(w, *esp(w.sa(), *inners)) == [(inner, inner[1]) for inner in inners]


def test_flows_to_two_vteps_keep_their_orders(w: World) -> None:
    places = ["10.1.0.5", "10.1.0.200"]
    inners = [inward((0, ECT0)[n % 3 == 0], n, places[n % 2]) for n in range(20)]
    rows = marked(w.receive_esp(*esp(w.sa(), *inners), tos=ECT0))
    for vtep, mine in ((VTEP, inners[0::2]), (VTEP2, inners[1::2])):
        assert [(unpassed(f[22:]), tos) for dest, f, tos in rows if dest == vtep] == [(i, i[1]) for i in mine]


def test_ipv6(w: World) -> None:
    def inner(tos: int, number: int) -> bytes:
        return ipv6("fd00:2::9", "fd00:1::5", number.to_bytes(4), tos=tos)

    inners = [inner(tos, n) for n, tos in enumerate([EF | ECT0, EF, ECT1])]
    assert opened(w, *esp(w.sa(), *inners), tos=CE) == [(inner(EF | CE, 0), EF | CE), (inner(CE, 2), CE)]
    assert w.counters.nonzero() == {"gpn_drop_ecn_in": 1}


def test_a_packet_with_another_fault_is_dropped_for_that(w: World) -> None:
    sa, number = w.sa(), 0
    for text, counter in (
        (padded(inward(0), 59), "gpn_drop_dummy"),
        (padded(inward(0), 17), "gpn_drop_padding"),
        (padded(inward(0), 41), "gpn_drop_inner_in"),
        (b"\x45" + bytes(30) + b"\x04", "gpn_drop_inner_in"),
        (padded(inward(ECT0, here="10.9.0.5"), 4), "gpn_drop_selector_in"),
    ):
        number += 1
        before = w.counters[counter]
        assert w.receive_esp(seal(sa.key_in, sa.spi_in, number, text), tos=CE) == []
        assert w.counters[counter] == before + 1
    assert sum(w.counters.nonzero().values()) == number


def test_selectors_by_port_take_marks_too(w: World) -> None:
    sa = w.sa()
    local = TrafficSelector.from_prefix("10.1.0.0/24")
    remote = structs.replace(
        TrafficSelector.from_prefix("10.2.0.0/24"), protocol=17, start_port=9, end_port=9
    )
    w.gateway.drop_sa(sa.spi_in)
    w.gateway.put_sa(replace(entry(sa), local_ts=(local,), remote_ts=(remote,)))
    udp = [summed(ipv4("10.2.0.9", "10.1.0.5", ports(9, 7), tos=tos)) for tos in (ECT0, CE)]
    assert opened(w, *esp(sa, udp[0], udp[0]), tos=CE) == [(udp[1], CE)] * 2
    back = [summed(ipv4("10.1.0.5", "10.2.0.9", ports(7, 9), tos=tos)) for tos in (ECT0, CE)]
    assert sealed(w, *back, tos=CE) == [(back[1], CE)] * 2


def test_parked_packets_keep_their_marks(w: World) -> None:
    sa = w.sa()
    w.gateway.drop_sa(sa.spi_in)
    w.gateway.park(sa.spi_in)
    first, second, third = esp(sa, inward(ECT0, 1), inward(ECT0, 2), inward(0, 3))
    assert w.receive_esp(first, tos=CE) == w.receive_esp(second) == w.receive_esp(third, tos=CE) == []
    rows = marked(w.gateway.put_sa(entry(sa)))
    assert [(unpassed(frame[22:]), tos) for _, frame, tos in rows] == [
        (inward(CE, 1), CE),
        (inward(ECT0, 2), ECT0),
    ]
    assert w.counters.nonzero() == {"gpn_parked": 3, "gpn_drop_ecn_in": 1}


def test_packets_in_origin_tags_keep_their_marks(w: World) -> None:
    sa = w.sa()
    (packet,) = esp(sa, inward(ECT1))
    tag = seal_tag(GIN_KEY, Tag(TagKind.ORIGIN, 0, bytes((192, 0, 2, 44)), 60000, packet), hmac_sha256)
    assert opened(w, tag, tos=CE) == [(inward(CE), CE)]


def test_packets_that_go_back_to_a_gin_keep_their_tos(w: World) -> None:
    w.receive_esp(seal_tag(GIN_KEY, Tag(TagKind.PROBE, 9), hmac_sha256))
    (known,) = esp(w.sa(), inward(0))
    stray = (0x7777).to_bytes(4) + known[4:]
    (send,) = w.receive_esp(stray, source=w.sa().peer, tos=EF | CE)
    assert send.way == Way(Port.ESP, GIN, None, "gpn_esp_returned", EF | CE)
    assert open_tag(GIN_KEY, bytes(send.data), hmac_sha256).packet == stray


# ---- from the tenant


def test_a_batch_of_one_tos_is_one_send(w: World) -> None:
    (send,) = w.receive_vxlan(*[vxlan(outward(EF | ECT0))] * 44)
    assert send.way == Way(Port.ESP, w.sa().peer, VIP, "gpn_sealed", EF | ECT0)
    assert send.packets == 44


def test_every_tos_within_a_batch_goes_out_in_its_turn(w: World) -> None:
    inners = [outward((0, 0, ECT0, EF, CE)[n % 5], n) for n in range(40)]
    assert sealed(w, *inners) == [(inner, inner[1]) for inner in inners]


@pytest.mark.parametrize(("dscp", "expected"), [(None, EF), (0, 0), (10, 10 << 2), (63, 63 << 2)])
def test_the_tunnels_option_says_the_dscp_and_never_the_ecn(dscp: int | None, expected: int) -> None:
    w = world(dscp=dscp)
    for ecn in range(4):
        assert sealed(w, outward(EF | ecn)) == [(outward(EF | ecn), expected | ecn)]
        six = ipv6("fd00:1::5", "fd00:2::9", b"", tos=EF | ecn)
        assert sealed(w, six) == [(six, expected | ecn)]


def test_another_option_holds_from_the_next_packet(w: World) -> None:
    assert sealed(w, outward(EF)) == [(outward(EF), EF)]
    w.gateway.put_sa(replace(entry(w.sa()), dscp=10))
    assert sealed(w, outward(EF | ECT0)) == [(outward(EF | ECT0), 10 << 2 | ECT0)]


def test_congestion_before_us_goes_into_both_headers(w: World) -> None:
    inners = [outward(tos, n) for n, tos in enumerate([EF | ECT0, EF | ECT0, 0, ECT1, CE])]
    expected = [outward(tos, n) for n, tos in ((0, EF | CE), (1, EF | CE), (3, CE), (4, CE))]
    assert sealed(w, *inners, tos=CE) == [(inner, inner[1]) for inner in expected]
    assert w.counters.nonzero() == {"gpn_drop_ecn_out": 1}
    assert sealed(w, *inners, tos=EF | ECT0) == [(inner, inner[1]) for inner in inners]
    assert w.gateway.usage()[0].packets_out == 9


def test_checksums_left_to_a_card_are_made_under_the_mark(w: World) -> None:
    def udp(tos: int, checksum: int) -> bytes:
        payload = ports(7, 9, b"half")
        return summed(ipv4("10.1.0.5", "10.2.0.9", payload[:6] + checksum.to_bytes(2) + payload[8:], tos=tos))

    pseudo = sum(int.from_bytes(udp(0, 0)[at : at + 2]) for at in range(12, 20, 2)) + 17 + 12
    partial = (pseudo & 0xFFFF) + (pseudo >> 16)
    total = partial + sum(int.from_bytes(udp(0, 0)[at : at + 2]) for at in (20, 22, 24, 28, 30))
    whole = (total % 0xFFFF) ^ 0xFFFF
    assert sealed(w, udp(ECT0, partial), udp(ECT0, whole), tos=CE) == [(udp(CE, whole), CE)] * 2


def test_what_goes_on_to_a_gen_is_left_alone(w: World) -> None:
    w.gateway.drop_rule("acme/hq")
    frames = [vxlan(outward(0)), vxlan(outward(ECT0))]
    rows = marked(w.receive_vxlan(*frames, source=VTEP, tos=EF | CE))
    assert rows == [(GEN, frame, EF | CE) for frame in frames]
    assert w.counters.nonzero() == {}
