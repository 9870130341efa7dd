"""A whole GIN but its control channel, on loopback addresses: peers, a GMN and GPNs around it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from protego_cli.config.model import Cluster, Node, Ports
from protego_cli.control.messages import Neighbour, Park, Steer, Tenant, Welcome
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import EnvironmentFault, Refused
from protego_cli.plugins.steering_backends import Mux
from protego_cli.roles.gin import GinPlane
from protego_cli.wire.envelope import Envelope, open_envelope, seal_envelope
from protego_cli.wire.tags import Tag, TagKind, open_tag, seal_tag
from tests.support.datagrams import Station, esp, station

ENVELOPE_KEY = bytes(range(32))
TAG_KEY = bytes(range(32, 64))
SPI = 0xC0FFEE01
IKE = bytes(range(1, 90))


class World:
    """The GIN and everything it talks to. Ports are the kernel's choice, so tests never collide."""

    def __init__(self, stack: ExitStack) -> None:
        self.peer = stack.enter_context(station("127.20.0.7"))
        self.stranger = stack.enter_context(station("127.20.0.8"))
        self.gmn = stack.enter_context(station("127.10.0.1"))
        self.gpn = stack.enter_context(station("127.10.0.21"))
        gmn = Node("gmn-1", "gmn", self.gmn.address[0], Ports(fabric=self.gmn.address[1]))
        gin = Node("gin-1", "gin", "127.10.0.11", Ports(ike=0, natt=0, fabric=0))
        cluster = Cluster(
            "test", Path("cluster.toml"), ("127.30.0.10",), Path("pki"), Path("state"), (gmn, gin), ()
        )
        self.plane = GinPlane(cluster, gin, Mux(), stack)
        self.vip = self.plane.natt[0].address
        self.fabric = self.plane.fabric.address
        address, port = self.gpn.address
        self.plane.welcome(Welcome(1, ENVELOPE_KEY))
        self.plane.put(Neighbour("gpn-1", "gpn", address, port, 4789, TAG_KEY))
        self.plane.put(Steer(SPI, "gpn-1", *self.peer.address))

    async def counted(self, **expected: int) -> None:
        """Wait until these counters stand so."""
        with trio.fail_after(10):
            while any(self.plane.counters[name] < count for name, count in expected.items()):
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert self.plane.counters.nonzero() == expected

    async def hear_at_gpn(self) -> bytes:
        """The next packet at the GPN; probes are not packets."""
        while True:
            data, source = await self.gpn.hear()
            assert source == self.fabric
            if int.from_bytes(data[:4]) != TagKind.PROBE:
                return data


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with ExitStack() as stack:
        world = World(stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.plane.serve, lambda: None)
            yield world
            nursery.cancel_scope.cancel()


async def hear(at: Station, kind: TagKind) -> Tag:
    """The next tag of one kind at the GPN."""
    while True:
        data, _ = await at.hear()
        tag = open_tag(TAG_KEY, data, hmac_sha256)
        if tag.kind is kind:
            return tag


async def test_esp_goes_to_its_gpn_from_the_fabric_socket(world: World) -> None:
    packets = [esp(SPI, seq) for seq in range(1, 45)]
    world.peer.say_batch(world.vip, *packets)
    assert [await world.hear_at_gpn() for _ in packets] == packets
    assert world.plane.marks((SPI, 7)) == {SPI: 44, 7: 0}
    await world.counted(gin_esp_forwarded=44)


async def test_a_rebound_peer_is_told_to_the_gpn(world: World) -> None:
    world.stranger.say(world.vip, esp(SPI, 1))
    tag = await hear(world.gpn, TagKind.ORIGIN)
    assert (tag.address, tag.port) == (bytes([127, 20, 0, 8]), world.stranger.address[1])
    assert tag.packet == esp(SPI, 1)


async def test_ike_there_and_back(world: World) -> None:
    world.peer.say(world.vip, bytes(4) + IKE)
    data, source = await world.gmn.hear()
    assert source == world.fabric
    envelope = open_envelope(ENVELOPE_KEY, data, hmac_sha256)
    assert envelope == Envelope(*world.vip, *world.peer.address, IKE)
    world.gmn.say(world.fabric, seal_envelope(ENVELOPE_KEY, envelope._replace(data=b"answer"), hmac_sha256))
    assert await world.peer.hear() == (bytes(4) + b"answer", world.vip)


async def test_a_new_envelope_key_replaces_the_old(world: World) -> None:
    world.plane.welcome(Welcome(2, bytes(32)))
    world.gmn.say(
        world.fabric,
        seal_envelope(ENVELOPE_KEY, Envelope(*world.vip, *world.peer.address, IKE), hmac_sha256),
    )
    await world.counted(gin_drop_envelope=1)


async def test_gpns_are_probed_and_the_silent_reported(world: World, autojump_clock: object) -> None:
    for _ in range(10):
        probe = await hear(world.gpn, TagKind.PROBE)
        assert world.plane.report().silent == ()
        world.gpn.say(world.fabric, seal_tag(TAG_KEY, probe.echo(), hmac_sha256))
    await trio.sleep(2)
    assert world.plane.report().silent == ("gpn-1",)


async def test_the_desired_state_goes_away_again(world: World) -> None:
    world.plane.drop(("steer", SPI))
    world.peer.say(world.vip, esp(SPI, 1))
    await world.counted(gin_drop_unknown_spi=1)
    world.plane.put(Steer(SPI, "gpn-1", *world.peer.address))
    world.plane.drop(("neighbour", "gpn-1"))
    world.peer.say(world.vip, esp(SPI, 2))
    await world.counted(gin_drop_unknown_spi=2)


async def test_other_nodes_records_are_no_concern(world: World) -> None:
    world.plane.put(Park(SPI))
    world.plane.put(Tenant("acme", 1, bytes(6), ()))
    world.plane.drop(("park", SPI))
    world.plane.drop(("tenant", 1))
    world.peer.say(world.vip, esp(SPI, 1))
    assert await world.hear_at_gpn() == esp(SPI, 1)
    with pytest.raises(Refused):
        await world.plane.barrier("gpn-1")
    with pytest.raises(Refused, match="steer 255: SPI 255 is reserved"):
        world.plane.put(Steer(255, "gpn-1", *world.peer.address))


async def test_foreign_and_forged_datagrams_on_the_fabric_are_counted(world: World) -> None:
    envelope = Envelope(*world.vip, *world.peer.address, IKE)
    forged = seal_envelope(bytes(32), envelope, hmac_sha256)
    world.gmn.say(world.fabric, forged)
    world.stranger.say(world.fabric, seal_envelope(ENVELOPE_KEY, envelope, hmac_sha256))
    world.gpn.say(world.fabric, seal_tag(bytes(32), Tag(TagKind.PROBE_ECHO, 1), hmac_sha256))
    world.stranger.say(world.fabric, seal_tag(TAG_KEY, Tag(TagKind.PROBE_ECHO, 1), hmac_sha256))
    await world.counted(gin_drop_envelope=2, gin_drop_tag=2)


async def test_tags_from_outside_are_dropped(world: World) -> None:
    world.peer.say(world.vip, seal_tag(TAG_KEY, Tag(TagKind.BARRIER, 1), hmac_sha256))
    await world.counted(gin_drop_tag_outside=1)


async def test_garbage_on_every_port_stops_nothing(world: World) -> None:
    source = random.Random(2026)
    for number in range(3000):
        data = source.randbytes(source.choice([0, 1, 3, 15, 16, 28, 32, 33, 64, 200, 1400]))
        if number % 3 == 0:
            data = bytes(4) + data[4:]
        elif number % 3 == 1:
            data = SPI.to_bytes(4) + data[4:]
        speaker = (world.peer, world.stranger, world.gmn, world.gpn)[number % 4]
        speaker.say(world.fabric if number % 2 else world.vip, data)
        if number % 50 == 0:
            await trio.lowlevel.checkpoint()
    world.peer.say(world.vip, esp(SPI, 0xFFFFFFFF, 444))
    while await world.hear_at_gpn() != esp(SPI, 0xFFFFFFFF, 444):
        pass


async def test_an_occupied_vip_port_is_told_and_nothing_stays_bound(world: World) -> None:
    vip, port = world.vip
    gmn = Node("gmn-1", "gmn", "127.10.0.1")
    second = Node("gin-2", "gin", "127.10.0.12", Ports(ike=0, natt=port, fabric=45001))
    cluster = Cluster("test", Path("c.toml"), (vip,), Path("pki"), Path("state"), (gmn, second), ())
    with ExitStack() as stack, pytest.raises(EnvironmentFault, match=f"{vip} UDP port {port} is in use"):
        GinPlane(cluster, second, Mux(), stack)
    with station("127.10.0.12", 45001):
        pass
