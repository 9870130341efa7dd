"""Short batches worked on together: mixed sizes, and senders whose packets nothing merges."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest

from protego_cli.crypto.algorithms import EspSuite
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.esp.transforms import opening, sealing
from protego_cli.net.gso import runs
from protego_cli.wire.tags import TAG_LENGTH, Tag, TagKind, open_tag, seal_tag
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from tests.support.esp_packets import ipv4, passed
from tests.support.esp_reference import padded, seal, unseal
from tests.support.esp_suites import SUITES, key
from tests.support.esp_world import (
    ACME,
    GATEWAY_MAC,
    GEN,
    GEN_KEY,
    GIN,
    GIN_KEY,
    NOW,
    VTEP,
    VTEP_MAC,
    World,
    batches,
    datagrams,
    entry,
    marked,
    world,
)

HERE, THERE = "10.1.0.5", "10.2.0.9"


@pytest.fixture
def w() -> World:
    return world()


def mixture(count: int = 10) -> list[int]:
    sizes = [64, 64, 64, 64, 64, 64, 64, 570, 570, 570, 570, 1400] * count
    random.Random(1).shuffle(sizes)
    return sizes


def inwards(number: int, size: int) -> bytes:
    return ipv4(THERE, HERE, number.to_bytes(4) + bytes(size - 24))


def frame(number: int, size: int) -> bytes:
    inner = ipv4(HERE, THERE, number.to_bytes(4) + bytes(size - 24))
    return build_frame_header(ACME, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4) + inner


def test_a_mixture_from_a_peer_leaves_in_order_in_as_few_sends_as_can_be(w: World) -> None:
    sa, sizes = w.sa(), mixture()
    inners = [inwards(number, size) for number, size in enumerate(sizes)]
    packets = [seal(sa.key_in, sa.spi_in, number, padded(inner, 4)) for number, inner in enumerate(inners, 1)]
    sends = w.receive_esp_train(*packets, most=64)
    header = build_frame_header(ACME, VTEP_MAC, GATEWAY_MAC, ETHERTYPE_IPV4)
    assert datagrams(sends) == [(VTEP, header + passed(inner)) for inner in inners]
    assert [send.packets for send in sends] == [stop - start for start, stop in runs(sizes)]
    (usage,) = (usage for usage in w.gateway.usage() if usage.spi_in == sa.spi_in)
    assert (usage.packets_in, usage.bytes_in) == (len(sizes), sum(sizes))


def test_a_mixture_from_a_tenant_leaves_in_order_in_as_few_sends_as_can_be(w: World) -> None:
    sa, sizes = w.sa(), mixture()
    frames = [frame(number, size) for number, size in enumerate(sizes)]
    sends = w.receive_vxlan_train(*frames, most=64)
    sent = [data for _, data in datagrams(sends)]
    assert [unseal(sa.key_out, data) for data in sent] == [padded(passed(each[22:]), 4) for each in frames]
    assert [int.from_bytes(data[4:8]) for data in sent] == list(range(1, len(sizes) + 1))
    assert [send.packets for send in sends] == [stop - start for start, stop in runs(sizes)]
    (usage,) = (usage for usage in w.gateway.usage() if usage.spi_in == sa.spi_in)
    assert (usage.packets_out, usage.bytes_out) == (len(sizes), sum(sizes))


def test_a_tag_is_echoed_between_what_came_before_it_and_what_came_behind(w: World) -> None:
    sa = w.sa()
    barrier = Tag(TagKind.BARRIER, 7)
    packets = [
        seal(sa.key_in, sa.spi_in, number, padded(inwards(number, 60 + 8 * number), 4))
        for number in range(1, 5)
    ]
    packets.insert(2, seal_tag(GIN_KEY, barrier, hmac_sha256))
    sent = datagrams(w.receive_esp_train(*packets, most=1))
    assert [dest for dest, _ in sent] == [VTEP, VTEP, GIN, VTEP, VTEP]
    assert open_tag(GIN_KEY, sent[2][1], hmac_sha256) == barrier.echo()

    frames = [frame(number, 60 + 8 * number) for number in range(1, 5)]
    frames.insert(2, seal_tag(GEN_KEY, barrier, hmac_sha256))
    sent = datagrams(w.receive_vxlan_train(*frames, most=1))
    assert [dest for dest, _ in sent] == [sa.peer, sa.peer, GEN, sa.peer, sa.peer]
    assert len(sent[2][1]) == TAG_LENGTH


def test_the_packets_of_an_sa_past_its_lifetime_go_no_further(w: World) -> None:
    sa = w.sa()
    packets = [
        seal(sa.key_in, sa.spi_in, number, padded(inwards(number, 60 + 8 * number), 4))
        for number in range(1, 4)
    ]
    train = [(memoryview(batch), size, GIN, 0) for batch, size in batches(packets, 1)]
    w.gateway.drop_sa(sa.spi_in)
    assert w.gateway.receive_esp_train(train, NOW) == []
    assert w.counters.nonzero() == {"gpn_drop_unknown_spi": 3}


def test_parked_packets_of_a_mixture_come_out_in_order(w: World) -> None:
    sa = w.sa()
    w.gateway.drop_sa(sa.spi_in)
    w.gateway.park(sa.spi_in)
    inners = [inwards(number, 60 + 8 * (number % 3)) for number in range(1, 9)]
    packets = [seal(sa.key_in, sa.spi_in, number, padded(inner, 4)) for number, inner in enumerate(inners, 1)]
    assert w.receive_esp_train(*packets, most=1) == []
    assert [data[22:] for _, data in datagrams(w.gateway.put_sa(entry(sa)))] == list(map(passed, inners))


@pytest.mark.parametrize("path", [{}, {"mss": 500}, {"mtu": 700}, {"mtu": 700, "mss": "auto"}, {"dscp": 46}])
def test_whatever_the_path_asks_rows_leave_as_the_same_packets_do_alone(path: dict[str, Any]) -> None:
    together, alone = world(), world()
    sa = together.sa()
    for w in (together, alone):
        w.gateway.put_sa(replace(entry(sa), **path))
    syn = struct.pack("!HHIIBBHHHBBH", 1, 2, 3, 0, 6 << 4, 2, 9, 0, 0, 2, 4, 1400)
    inners = []
    for number, size in enumerate(mixture(2)):
        payload = syn + bytes(size - 44) if number % 5 == 0 else number.to_bytes(4) + bytes(size - 24)
        protocol = 6 if number % 5 == 0 else 17
        inners.append((payload, {"protocol": protocol, "tos": number % 2 * 32}))

    header = build_frame_header(ACME, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
    frames = [header + ipv4(HERE, THERE, payload, **kind) for payload, kind in inners]
    sends = [send for frame in frames for send in alone.receive_vxlan(frame)]
    assert marked(together.receive_vxlan_train(*frames, most=64)) == marked(sends)

    texts = [padded(ipv4(THERE, HERE, payload, **kind), 4) for payload, kind in inners]
    packets = [seal(sa.key_in, sa.spi_in, number, text) for number, text in enumerate(texts, 1)]
    sends = [send for packet in packets for send in alone.receive_esp(packet)]
    assert marked(together.receive_esp_train(*packets, most=64)) == marked(sends)
    assert together.counters.nonzero() == alone.counters.nonzero()
    assert together.gateway.usage() == alone.gateway.usage()


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_every_suite_opens_and_seals_packets_of_mixed_lengths(suite: EspSuite) -> None:
    material = key(suite, 3)
    alike = sealing(suite, material, 0x1234, random.Random(1).randbytes)
    mixed = sealing(suite, material, 0x1234, random.Random(1).randbytes)
    start = (1 << 32) - 2 if suite.esn else 1
    texts = [bytes([number]) * (alike.block * (1 + number % 3)) for number in range(6)]
    numbers = range(start, start + len(texts))
    packets = mixed.seal_each(numbers, texts)
    singly = [
        alike.seal(range(number, number + 1), [text]) for number, text in zip(numbers, texts, strict=True)
    ]
    assert packets == singly
    opener = opening(suite, material, 0x1234)
    packets[2] = packets[2][:-1] + bytes([packets[2][-1] ^ 1])
    assert opener.open_each(packets, numbers) == (texts[:2] + texts[3:], [0, 1, 3, 4, 5])
    assert all(map(opener.fits, map(len, packets)))
