"""A whole GEN but its control channel, on loopback addresses: VTEPs and GPNs around it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from protego_cli.config.model import Node, Ports
from protego_cli.control.channel.desired import put
from protego_cli.control.channel.desired_records import Neighbour, Route, Steer, Tenant, Vtep
from protego_cli.control.channel.node_messages import Welcome
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import Refused, Unreachable
from protego_cli.net.udp import Address
from protego_cli.plugins.steering_backends import Mux
from protego_cli.roles.gen import GenPlane
from protego_cli.wire.tags import Tag, TagKind, is_tag, open_tag, seal_tag
from tests.support.datagrams import Station, counted, station, vxlan

KEYS = {"gpn-1": bytes(range(32)), "gpn-2": bytes(range(32, 64))}
VNI = 1001


class World:
    """The GEN and everything it talks to. Ports are the kernel's choice, so tests never collide."""

    def __init__(self, stack: ExitStack) -> None:
        self.vtep = stack.enter_context(station("127.20.0.5"))
        self.stranger = stack.enter_context(station("127.20.0.6"))
        self.gpns = {
            name: stack.enter_context(station(address))
            for name, address in (("gpn-1", "127.10.0.21"), ("gpn-2", "127.10.0.22"))
        }
        self.plane = GenPlane(Node("gen-1", "gen", "127.10.0.12", Ports(vxlan=0)), Mux(), stack)
        self.address = self.plane.vxlan.address
        self.plane.welcome(Welcome(1))
        for name, gpn in self.gpns.items():
            address, port = gpn.address
            self.plane.put(Neighbour(name, "gpn", address, 4500, port, KEYS[name]))
        vtep = Vtep("10.1.0.0/24", self.vtep.address[0], 4789, bytes(6))
        self.plane.put(Tenant("acme", VNI, bytes(6), (vtep,)))
        self.route("gpn-1")

    def route(self, gpn: str) -> None:
        self.plane.put(Route("acme/hq", VNI, ("10.2.0.0/24",), gpn))

    async def counted(self, **expected: int) -> None:
        await counted(self.plane, expected)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with ExitStack() as stack:
        world = World(stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.plane.serve, lambda: None)
            yield world
            nursery.cancel_scope.cancel()


async def hear(at: Station, source: Address) -> bytes:
    """The next datagram that is no probe."""
    while True:
        data, heard_from = await at.hear()
        assert heard_from == source
        if int.from_bytes(data[:4]) != TagKind.PROBE:
            return data


async def test_a_tenants_packets_go_to_the_routed_gpn(world: World) -> None:
    packets = [vxlan("10.2.0.9", VNI)] * 20 + [vxlan("10.2.0.9", VNI, 77)]
    world.vtep.say_batch(world.address, *packets)
    assert [await hear(world.gpns["gpn-1"], world.address) for _ in packets] == packets
    world.route("gpn-2")
    world.vtep.say(world.address, packets[0])
    assert await hear(world.gpns["gpn-2"], world.address) == packets[0]
    await world.counted(gen_forwarded=22)


async def test_a_barrier_arrives_behind_what_was_forwarded(world: World) -> None:
    packets = [vxlan("10.2.0.9", VNI, 100 + number) for number in range(30)]
    world.vtep.say(world.address, *packets)
    await world.counted(gen_forwarded=30)
    world.route("gpn-2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.plane.barrier, "gpn-1")
        old = world.gpns["gpn-1"]
        assert [await hear(old, world.address) for _ in packets] == packets
        barrier = open_tag(KEYS["gpn-1"], await hear(old, world.address), hmac_sha256)
        assert barrier.kind is TagKind.BARRIER
        old.say(world.address, seal_tag(KEYS["gpn-1"], barrier.echo(), hmac_sha256))


async def test_an_echo_from_another_gpn_does_not_lift_a_barrier(world: World, autojump_clock: object) -> None:
    async def mislead() -> None:
        data = await hear(world.gpns["gpn-1"], world.address)
        echo = open_tag(KEYS["gpn-1"], data, hmac_sha256).echo()
        world.gpns["gpn-2"].say(world.address, seal_tag(KEYS["gpn-2"], echo, hmac_sha256))
        world.stranger.say(world.address, seal_tag(KEYS["gpn-1"], echo, hmac_sha256))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mislead)
        with pytest.raises(Unreachable):
            await world.plane.barrier("gpn-1")
    await world.counted(gen_drop_tag=1)


async def test_a_gpns_returned_packet_goes_to_the_routed_one(world: World) -> None:
    packet = vxlan("10.2.0.9", VNI)
    world.gpns["gpn-2"].say(world.address, packet)
    assert await hear(world.gpns["gpn-1"], world.address) == packet
    world.gpns["gpn-1"].say(world.address, packet)
    assert await hear(world.gpns["gpn-1"], world.address) == packet
    await world.counted(gen_forwarded=2)


async def test_gpns_are_probed_and_the_silent_reported(world: World, autojump_clock: object) -> None:
    alive = world.gpns["gpn-2"]
    for _ in range(10):
        data, _ = await alive.hear()
        assert is_tag(data[:4])
        alive.say(
            world.address,
            seal_tag(KEYS["gpn-2"], open_tag(KEYS["gpn-2"], data, hmac_sha256).echo(), hmac_sha256),
        )
        await trio.sleep(0.15)
    assert world.plane.report().silent == ("gpn-1",)


async def test_the_desired_state_goes_away_again(world: World) -> None:
    packet = vxlan("10.2.0.9", VNI)
    world.plane.drop(("route", "acme/hq"))
    world.vtep.say(world.address, packet)
    await world.counted(gen_drop_no_route=1)
    world.route("gpn-1")
    world.plane.drop(("neighbour", "gpn-1"))
    world.vtep.say(world.address, packet)
    await world.counted(gen_drop_no_route=2)
    world.plane.drop(("tenant", VNI))
    world.vtep.say(world.address, packet)
    await world.counted(gen_drop_no_route=2, gen_drop_vtep=1)
    world.plane.put(Steer(0x1000, "gpn-1", "127.0.0.1", 4500))
    world.plane.drop(("steer", 0x1000))
    assert world.plane.marks((0x1000,)) == {}
    with pytest.raises(Refused, match=r"route acme/hq: .*10\.2\.0\.1/24"):
        put(world.plane, Route("acme/hq", VNI, ("10.2.0.1/24",), "gpn-1"))


async def test_a_tenant_whose_vtep_is_here_is_taken_from_gpns_alone(world: World) -> None:
    """Without its device, as between the records Tenant and Tun: what is for it is dropped, not sent on."""
    address, port = world.address
    vteps = tuple(Vtep(prefix, address, port, bytes(6)) for prefix in ("0.0.0.0/0", "::/0"))
    world.plane.put(Tenant("acme", VNI, bytes(6), vteps))
    inward = vxlan("10.1.0.5", VNI)
    world.gpns["gpn-2"].say_batch(world.address, *[inward] * 10)
    world.vtep.say(world.address, vxlan("10.2.0.9", VNI))
    await world.counted(gen_drop_tun=10, gen_drop_vtep=1)
    world.plane.put(
        Tenant("acme", VNI, bytes(6), (Vtep("10.1.0.0/24", world.vtep.address[0], 4789, bytes(6)),))
    )
    world.vtep.say(world.address, vxlan("10.2.0.9", VNI))
    await world.counted(gen_drop_tun=10, gen_drop_vtep=1, gen_forwarded=1)


async def test_foreign_and_forged_datagrams_are_counted(world: World) -> None:
    world.stranger.say(world.address, vxlan("10.2.0.9", VNI))
    world.vtep.say(world.address, vxlan("10.2.0.9", VNI + 1))
    world.vtep.say(world.address, seal_tag(KEYS["gpn-1"], Tag(TagKind.BARRIER_ECHO, 1), hmac_sha256))
    world.gpns["gpn-1"].say(world.address, seal_tag(bytes(32), Tag(TagKind.BARRIER_ECHO, 1), hmac_sha256))
    await world.counted(gen_drop_vtep=2, gen_drop_tag=2)


async def test_garbage_stops_nothing(world: World) -> None:
    source = random.Random(2026)
    good = vxlan("10.2.0.9", VNI)
    for number in range(3000):
        data = bytearray(source.randbytes(source.choice([0, 1, 8, 31, 32, 41, 42, 61, 62, 200, 1400])))
        if number % 3 == 0:
            data = bytearray(good)
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        speaker = (world.vtep, world.stranger, world.gpns["gpn-1"])[number % 3]
        speaker.say(world.address, bytes(data))
        if number % 50 == 0:
            await trio.lowlevel.checkpoint()
    last = vxlan("10.2.0.9", VNI, 444)
    world.vtep.say(world.address, last)
    while await hear(world.gpns["gpn-1"], world.address) != last:
        pass
