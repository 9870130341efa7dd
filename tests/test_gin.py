"""A whole GIN but its control channel, by each of the steering backends: peers, a GMN and GPNs around it."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio

from protego_cli.config.model import Cluster, Node, Ports
from protego_cli.control.channel.desired import put
from protego_cli.control.channel.desired_records import Park, Peer, Steer, Tenant
from protego_cli.control.channel.node_messages import Welcome
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import EnvironmentFault, Refused
from protego_cli.ike.rations import Allowance
from protego_cli.net.raw import RawSocket
from protego_cli.net.udp import Address
from protego_cli.plugins.steering_backends import Mux
from protego_cli.roles.gin import GinPlane
from protego_cli.wire.envelope import Envelope, open_envelope, seal_envelope
from protego_cli.wire.tags import Tag, TagKind, open_tag, seal_tag
from tests.support.datagrams import Station, esp, station
from tests.support.gin_world import ENVELOPE_KEY, SPI, SPI2, TAG_KEY, TAG_KEY2, World, gin_world, serving
from tests.support.hostile import datagram

IKE = bytes(range(1, 90))


@pytest.fixture(params=["mux", pytest.param("nftables", marks=pytest.mark.root)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    with gin_world(request.param) as (world, _):
        async with serving(world):
            yield world


@pytest.fixture
async def mux_world() -> AsyncIterator[World]:
    with gin_world("mux") as (world, _):
        async with serving(world):
            yield world


async def hear(at: Station, kind: TagKind, key: bytes = TAG_KEY) -> Tag:
    """The next tag of one kind at a GPN."""
    while True:
        data, _ = await at.hear()
        tag = open_tag(key, data, hmac_sha256)
        if tag.kind is kind:
            return tag


async def hear_from(at: Station, source: Address) -> bytes:
    """The next packet at a GPN from there that is no probe."""
    while True:
        data, where = await at.hear()
        if where == source and int.from_bytes(data[:4]) != TagKind.PROBE:
            return data


async def test_esp_goes_to_its_gpn(world: World) -> None:
    packets = [esp(SPI, seq) for seq in range(1, 45)]
    world.peer.say_batch(world.vip, *packets)
    assert [await world.hear_at_gpn() for _ in packets] == packets
    assert world.plane.marks((SPI, 7)) == ({} if world.in_kernel else {SPI: 44, 7: 0})
    await world.counted(gin_esp_forwarded=1 if world.in_kernel else 44)  # it sees the batch as one packet


async def test_short_batches_leave_together_once_the_gpn_has_echoed_a_bundle(mux_world: World) -> None:
    gpn, packets = mux_world.gpn, [esp(SPI, seq, 100 + 4 * (seq % 3)) for seq in range(30)]
    rounds, took = 0, len(packets)
    while took >= len(packets):
        mux_world.peer.say(mux_world.vip, *packets)
        before, heard = gpn.datagrams, 0
        while heard < len(packets):
            data, _ = await gpn.hear()
            if int.from_bytes(data[:4]) == TagKind.PROBE:
                probe = open_tag(TAG_KEY, data, hmac_sha256)
                gpn.say(mux_world.fabric, seal_tag(TAG_KEY, probe.echo(), hmac_sha256))
            else:
                assert data == packets[heard]
                heard += 1
        rounds, took = rounds + 1, gpn.datagrams - before
        await trio.sleep(0.01)
    assert rounds > 1, "not before"
    await mux_world.counted(gin_esp_forwarded=30 * rounds)


async def test_what_is_steered_anew_goes_the_new_way_at_once(world: World) -> None:
    for number in range(1, 41):
        gpn, name = (world.gpn, "gpn-1") if number % 2 else (world.gpn2, "gpn-2")
        await world.put(Steer(SPI, name, *world.peer.address))
        world.peer.say(world.vip, esp(SPI, number))
        assert await world.hear_at_gpn(gpn) == esp(SPI, number)
    await world.counted(gin_esp_forwarded=40)


async def test_a_batch_of_several_spis_and_ike_reaches_all_in_the_end(world: World) -> None:
    """The kernel passes on all of it by the first SPI; a GPN sends back what is none of its own."""
    await world.put(Steer(SPI2, "gpn-2", *world.peer.address))
    world.peer.say_batch(world.vip, esp(SPI, 1), esp(SPI2, 1), esp(SPI, 2), esp(SPI2, 2))
    heard = [await world.hear_at_gpn() for _ in range(2 + 2 * world.in_kernel)]
    for packet in heard:
        if packet[:4] != SPI.to_bytes(4):
            source = socket.inet_aton(world.peer.address[0]), world.peer.address[1]
            tag = Tag(TagKind.RETURN, 0, *source, packet)
            world.gpn.say(world.fabric, seal_tag(TAG_KEY, tag, hmac_sha256))
    assert [packet for packet in heard if packet[:4] == SPI.to_bytes(4)] == [esp(SPI, 1), esp(SPI, 2)]
    for number in (1, 2):
        assert await hear_from(world.gpn2, world.fabric) == esp(SPI2, number)
    if world.in_kernel:
        await world.counted(gin_esp_forwarded=3, gin_esp_returned=2)
    else:
        await world.counted(gin_esp_forwarded=4)


async def test_what_comes_back_for_nobody_is_dropped(world: World) -> None:
    source = socket.inet_aton("127.20.0.9"), 1234
    for packet in (esp(SPI2, 1), esp(7, 1), esp(0, 1)):
        tag = Tag(TagKind.RETURN, 0, *source, packet)
        world.gpn.say(world.fabric, seal_tag(TAG_KEY, tag, hmac_sha256))
    tag = Tag(TagKind.RETURN, 0, bytes(16), 1, esp(SPI, 1))
    world.gpn.say(world.fabric, seal_tag(TAG_KEY, tag, hmac_sha256))
    await world.counted(gin_drop_unknown_spi=3, gin_drop_tag=1)


async def test_a_rebound_peer_is_told_to_the_gpn(world: World) -> None:
    world.stranger.say(world.vip, esp(SPI, 1))
    if world.in_kernel:
        while (heard := await world.gpn.hear())[1] == world.fabric:
            pass
        assert heard == (esp(SPI, 1), world.stranger.address)
        return
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


async def test_known_peers_are_heard_through_a_flood_of_strangers(world: World) -> None:
    """By the address that a tunnel names, or that a tunnel's packets come from."""
    world.plane._relay.callers._later = Allowance(0, 0, 0)
    world.stranger.say(world.vip, bytes(4) + IKE)
    await world.counted(gin_drop_stranger=1)
    await world.put(Peer("127.20.0.8"))
    for sender in (world.stranger, world.peer):
        sender.say(world.vip, bytes(4) + IKE)
        data, _ = await world.gmn.hear()
        assert open_envelope(ENVELOPE_KEY, data, hmac_sha256).remote == sender.address[0]
    await world.drop(("peer", "127.20.0.8"))
    await world.drop(("steer", SPI))
    for sender in (world.stranger, world.peer):
        sender.say(world.vip, bytes(4) + IKE)
    await world.counted(gin_drop_stranger=3, gin_ike_in=2)


async def test_a_new_envelope_key_replaces_the_old(world: World) -> None:
    world.plane.welcome(Welcome(2, bytes(32)))
    world.gmn.say(
        world.fabric,
        seal_envelope(ENVELOPE_KEY, Envelope(*world.vip, *world.peer.address, IKE), hmac_sha256),
    )
    await world.counted(gin_drop_envelope=1)


async def test_gpns_are_probed_and_the_silent_reported(mux_world: World, autojump_clock: object) -> None:
    for _ in range(10):
        probe = await hear(mux_world.gpn, TagKind.PROBE)
        assert mux_world.plane.report().silent == ()
        mux_world.gpn.say(mux_world.fabric, seal_tag(TAG_KEY, probe.echo(), hmac_sha256))
        other = await hear(mux_world.gpn2, TagKind.PROBE, TAG_KEY2)
        mux_world.gpn2.say(mux_world.fabric, seal_tag(TAG_KEY2, other.echo(), hmac_sha256))
    await trio.sleep(2)
    assert mux_world.plane.report().silent == ("gpn-1", "gpn-2")


async def test_the_desired_state_goes_away_again(world: World) -> None:
    await world.drop(("steer", SPI))
    world.peer.say(world.vip, esp(SPI, 1))
    await world.counted(gin_drop_unknown_spi=1)
    await world.put(Steer(SPI, "gpn-1", *world.peer.address))
    await world.drop(("neighbour", "gpn-1"))
    world.peer.say(world.vip, esp(SPI, 2))
    await world.counted(gin_drop_unknown_spi=2)


async def test_what_came_before_a_steer_goes_is_steered_by_it(mux_world: World) -> None:
    """A process that got no CPU may hear that it goes before it comes to what waits in its sockets."""
    mux_world.peer.say(mux_world.vip, esp(SPI, 1))
    mux_world.plane.drop(("steer", SPI))
    assert await mux_world.hear_at_gpn() == esp(SPI, 1)
    assert mux_world.plane.counters.nonzero() == {"gin_esp_forwarded": 1}


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
        put(world.plane, Steer(255, "gpn-1", *world.peer.address))


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
    while (await world.gpn.hear())[0] != esp(SPI, 0xFFFFFFFF, 444):
        pass


# ---- without UDP


@pytest.fixture
def raw_peer() -> Iterator[RawSocket]:
    with closing(RawSocket.bind("127.20.0.7")) as sock:
        yield sock


@pytest.mark.root
async def test_esp_without_udp_goes_to_its_gpn_and_back_to_its_peer(
    mux_world: World, raw_peer: RawSocket
) -> None:
    world = mux_world
    await world.put(Steer(SPI, "gpn-1", "127.20.0.7", 0))
    packets = [esp(SPI, seq) for seq in range(1, 45)]
    assert raw_peer.send(b"".join(packets), 100, world.vip)
    assert [await world.hear_at_gpn() for _ in packets] == packets
    assert world.plane.marks((SPI,)) == {SPI: 44}
    header = SPI.to_bytes(4) + socket.inet_aton(world.vip[0])
    world.gpn.say_batch(world.fabric, *[header + esp(7, seq) for seq in (1, 2)])
    with trio.fail_after(10):
        await raw_peer.wait_readable()
    await world.counted(gin_esp_raw=44, gin_esp_forwarded=44, gin_esp_to_peer=2)
    batch = raw_peer.receive()
    assert batch is not None
    assert (bytes(batch.view), batch.source) == (esp(7, 1) + esp(7, 2), (world.vip[0], 0))


@pytest.mark.root
async def test_the_kernel_of_a_gin_leaves_esp_without_udp_to_the_process() -> None:
    with gin_world("nftables") as (world, _), closing(RawSocket.bind("127.20.0.7")) as peer:
        async with serving(world):
            await world.put(Steer(SPI, "gpn-1", "127.20.0.7", 0))
            assert peer.send(esp(SPI, 1), 100, world.vip)
            assert await hear_from(world.gpn, world.fabric) == esp(SPI, 1)
            world.peer.say(world.vip, esp(SPI, 2))  # in UDP it is the kernel's, whatever was agreed on
            assert await world.hear_at_gpn() == esp(SPI, 2)


@pytest.mark.root
async def test_the_other_form_is_told_to_the_gpn(mux_world: World, raw_peer: RawSocket) -> None:
    world = mux_world
    assert raw_peer.send(esp(SPI, 1), 100, world.vip)  # which is steered as in UDP
    tag = await hear(world.gpn, TagKind.ORIGIN)
    assert (tag.address, tag.port, tag.packet) == (bytes([127, 20, 0, 7]), 0, esp(SPI, 1))
    await world.put(Steer(SPI, "gpn-1", "127.20.0.7", 0))
    world.peer.say(world.vip, esp(SPI, 2))
    tag = await hear(world.gpn, TagKind.ORIGIN)
    assert (tag.port, tag.packet) == (world.peer.address[1], esp(SPI, 2))


@pytest.mark.root
async def test_a_hundred_thousand_hostile_packets_without_udp_stop_nothing(
    mux_world: World, raw_peer: RawSocket
) -> None:
    world, source = mux_world, random.Random(2026)
    await world.put(Steer(SPI, "gpn-1", "127.20.0.7", 0))
    for number in range(100_000):
        packet = datagram(source, SPI.to_bytes(4))
        raw_peer.send(packet, max(len(packet), 1), world.vip)
        if number % 100 == 0:
            await trio.lowlevel.checkpoint()
    with trio.fail_after(60):
        while raw_peer.send(esp(SPI, 0xFFFFFFFF, 444), 444, world.vip):
            data, _ = await world.gpn.hear()
            if data == esp(SPI, 0xFFFFFFFF, 444):
                break
    counters = world.plane.report().counters
    for name in ("gin_drop_short", "gin_drop_unknown_spi", "gin_drop_tag_outside", "gin_esp_forwarded"):
        assert counters[name] > 1000, counters
    assert not counters.get("gin_ike_in")


def test_without_raw_sockets_a_gin_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RawSocket, "bind", Mock(side_effect=EnvironmentFault("needs CAP_NET_RAW")))
    with gin_world("mux") as (world, _):
        assert world.plane.raw == []
        assert world.plane.lacks == "needs CAP_NET_RAW"


async def test_an_occupied_vip_port_is_told_and_nothing_stays_bound(world: World) -> None:
    vip, port = world.vip
    gmn = Node("gmn-1", "gmn", "127.10.0.1")
    second = Node("gin-2", "gin", "127.10.0.12", Ports(ike=0, natt=port, fabric=45001))
    cluster = Cluster("test", Path("c.toml"), (vip,), Path("pki"), Path("state"), (gmn, second), ())
    with ExitStack() as stack, pytest.raises(EnvironmentFault, match=f"{vip} UDP port {port} is in use"):
        GinPlane(cluster, second, Mux(), stack)
    with station("127.10.0.12", 45001):
        pass
