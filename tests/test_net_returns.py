"""A GIN that sends GPNs' ESP to peers, from the VIP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from protego_cli.counters import Counters
from protego_cli.net.returns import Returns
from protego_cli.net.steering import Gpn
from protego_cli.net.udp import Batch
from tests.support.datagrams import esp
from tests.support.gin_world import SPI, SPI2, World, gin_world, serving
from tests.support.senders import RecordingSender

VIP = "127.30.0.10"
GPN = ("10.10.0.11", 4500)
PEER, PEER2 = ("198.51.100.7", 4500), ("198.51.100.8", 61000)


def returned(spi: int, packet: bytes, vip: str = VIP) -> bytes:
    return spi.to_bytes(4) + bytes(map(int, vip.split("."))) + packet


class Site:
    def __init__(self, *, raw: bool = True) -> None:
        self.vip = RecordingSender((VIP, 4500))
        self.counters = Counters()
        self.raw = RecordingSender((VIP, 0))
        self.returns = Returns([self.vip], [self.raw] if raw else [], self.counters)
        self.returns.put_gpn(Gpn("gpn-1", GPN, b""))
        self.returns.steer(SPI, PEER)
        self.returns.steer(SPI2, PEER2)

    def receive(self, *datagrams: bytes, source: tuple[str, int] = GPN, tos: int = 0) -> bool:
        data = memoryview(b"".join(datagrams))
        return self.returns.receive(Batch(data, len(datagrams[0]), source, tos))


def test_a_batch_leaves_as_one_with_its_tos() -> None:
    site = Site()
    packets = [esp(7, number, 100 if number < 9 else 60) for number in range(10)]
    assert site.receive(*[returned(SPI, packet) for packet in packets], tos=0xB9)
    assert site.vip.sent == [(b"".join(packets), 100, PEER, 0xB9)]
    assert site.counters.nonzero() == {"gin_esp_to_peer": 10}


def test_a_peer_without_a_port_gets_raw_esp() -> None:
    site = Site()
    site.returns.steer(SPI2, (PEER2[0], 0))
    mixed = [returned((SPI, SPI2)[number % 2], esp(7, number)) for number in range(6)]
    assert site.receive(*mixed, tos=0xB9)
    evens, odds = (b"".join(esp(7, number) for number in range(start, 6, 2)) for start in (0, 1))
    assert site.vip.sent == [(evens, 100, PEER, 0xB9)]
    assert site.raw.sent == [(odds, 100, (PEER2[0], 0), 0xB9)]
    assert site.counters.nonzero() == {"gin_esp_to_peer": 6}


def test_without_a_raw_socket_it_gets_nothing() -> None:
    site = Site(raw=False)
    site.returns.steer(SPI, (PEER[0], 0))
    assert site.receive(returned(SPI, esp(7, 1)), returned(SPI, esp(7, 2)))
    assert site.vip.sent == []
    assert site.counters.nonzero() == {"gin_drop_no_raw": 2}


def test_several_tunnels_in_a_batch_keep_their_order() -> None:
    site = Site()
    mixed = [returned((SPI, SPI2)[number % 2], esp(7, number)) for number in range(6)]
    assert site.receive(*mixed)
    assert [(sent[0], sent[2]) for sent in site.vip.sent] == [
        (b"".join(esp(7, number) for number in (0, 2, 4)), PEER),
        (b"".join(esp(7, number) for number in (1, 3, 5)), PEER2),
    ]


@pytest.mark.parametrize(
    "datagram",
    [
        returned(0xC0FFEE77, esp(7, 1)),  # no SPI that is steered
        returned(SPI, esp(7, 1), "127.30.0.11"),  # a VIP of another GIN
        returned(SPI, bytes(15)),
        bytes(3),
        b"",
    ],
)
def test_what_is_for_nobody_is_dropped(datagram: bytes) -> None:
    site = Site()
    assert site.receive(datagram)
    assert site.vip.sent == []
    assert site.counters.nonzero() == {"gin_drop_to_peer": 1}


def test_the_shortest_esp_there_can_be_passes() -> None:
    site = Site()
    assert site.receive(returned(SPI, esp(7, 1, 16)))
    assert site.receive(returned(SPI, esp(7, 2)), returned(SPI, esp(7, 3, 16)))
    assert [sent[0] for sent in site.vip.sent] == [esp(7, 1, 16), esp(7, 2) + esp(7, 3, 16)]
    assert site.counters.nonzero() == {"gin_esp_to_peer": 3}


@pytest.mark.parametrize("short", [1, 23])
def test_a_short_one_at_the_end_takes_none_along(short: int) -> None:
    site = Site()
    assert site.receive(returned(SPI, esp(7, 1)), bytes(short))
    assert [sent[0] for sent in site.vip.sent] == [esp(7, 1)]
    assert site.counters.nonzero() == {"gin_esp_to_peer": 1, "gin_drop_to_peer": 1}


def test_only_gpns_of_the_desired_state_are_heard() -> None:
    site = Site()
    assert not site.receive(returned(SPI, esp(7, 1)), source=(GPN[0], 4501))
    site.returns.drop_gpn("gpn-1")
    assert not site.receive(returned(SPI, esp(7, 1)))
    assert site.vip.sent == []


def test_what_is_not_steered_any_more_goes_nowhere() -> None:
    site = Site()
    site.returns.unsteer(SPI)
    assert site.receive(returned(SPI, esp(7, 1)))
    assert site.vip.sent == []


@pytest.fixture(params=["mux", pytest.param("nftables", marks=pytest.mark.root)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    with gin_world(request.param) as (world, _):
        async with serving(world):
            yield world


async def test_peers_get_it_from_the_vips_port(world: World) -> None:
    packets = [esp(7, number) for number in range(1, 45)]
    world.gpn.say_batch(world.fabric, *[returned(SPI, packet, world.vip[0]) for packet in packets])
    for packet in packets:
        assert await world.peer.hear() == (packet, world.vip)
    await world.counted(gin_esp_to_peer=44)


async def test_nobody_else_gets_anything_sent(world: World) -> None:
    world.stranger.say(world.fabric, returned(SPI, esp(7, 1), world.vip[0]))
    world.gpn.say(world.fabric, returned(SPI2, esp(7, 1), world.vip[0]))
    await world.counted(gin_drop_envelope=1, gin_drop_to_peer=1)
    await world.drop(("steer", SPI))
    world.gpn.say(world.fabric, returned(SPI, esp(7, 1), world.vip[0]))
    await world.counted(gin_drop_envelope=1, gin_drop_to_peer=2)
    await world.drop(("neighbour", "gpn-1"))
    world.gpn.say(world.fabric, returned(SPI, esp(7, 1), world.vip[0]))
    await world.counted(gin_drop_envelope=2, gin_drop_to_peer=2)
