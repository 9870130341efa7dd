"""A mark crosses the whole data path over real sockets: peer, GIN, GPN, VTEP, and VTEP, GEN, GPN, peer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from protego_cli.config.model import Cluster, Node, Ports
from protego_cli.control.channel.desired_records import Neighbour, Route, Rule, Sa, Steer, Tenant, Vtep
from protego_cli.control.channel.node_messages import Welcome
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.plugins.steering_backends import Mux
from protego_cli.roles.gen import GenPlane
from protego_cli.roles.gin import GinPlane
from protego_cli.roles.gpn import GpnPlane
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from tests.support.datagrams import station
from tests.support.esp_packets import ipv4, summed, unpassed
from tests.support.esp_reference import padded, seal, unseal

VNI, SPI_IN, SPI_OUT = 1001, 0xC0FFEE01, 0xC0FFEE02
KEY_IN, KEY_OUT, GIN_KEY, GEN_KEY = bytes(range(36)), bytes(range(100, 136)), bytes(32), bytes(range(32))
GATEWAY_MAC, VTEP_MAC = bytes.fromhex("025000001001"), bytes.fromhex("020000000005")
VIP, GIN, GEN, GPN = "127.31.0.10", "127.11.0.11", "127.11.0.12", "127.11.0.21"
LOCAL, REMOTE = (TrafficSelector.from_prefix("10.1.0.0/24"),), (TrafficSelector.from_prefix("10.2.0.0/24"),)
CE, ECT0, ECT1, EF = 3, 2, 1, 46 << 2


class World:
    """Three nodes without their control channels. Ports are the kernel's choice, so tests never collide."""

    def __init__(self, stack: ExitStack) -> None:
        self.vtep = stack.enter_context(station("127.41.0.5"))
        self.peer = stack.enter_context(station("127.21.0.7"))
        gmn = Node("gmn-1", "gmn", "127.11.0.1")
        gin = Node("gin-1", "gin", GIN, Ports(ike=0, natt=0, fabric=0))
        cluster = Cluster("test", Path("cluster.toml"), (VIP,), Path("pki"), Path("state"), (gmn, gin), ())
        self.gin = GinPlane(cluster, gin, Mux(), stack)
        self.gen = GenPlane(Node("gen-1", "gen", GEN, Ports(vxlan=0)), Mux(), stack)
        registry = Registry(("test", algorithm) for algorithm in ALGORITHMS)
        self.gpn = GpnPlane(Node("gpn-1", "gpn", GPN, Ports(esp=0, vxlan=0)), registry, stack)

        tenant = Tenant("acme", VNI, GATEWAY_MAC, (Vtep("10.1.0.0/24", *self.vtep.address, VTEP_MAC),))
        ports = self.gpn.esp.address[1], self.gpn.vxlan.address[1]
        self.gin.welcome(Welcome(1, bytes(32)))
        self.gin.put(Neighbour("gpn-1", "gpn", GPN, *ports, GIN_KEY))
        self.gin.put(Steer(SPI_IN, "gpn-1", *self.peer.address))
        self.gen.put(Neighbour("gpn-1", "gpn", GPN, *ports, GEN_KEY))
        self.gen.put(tenant)
        self.gen.put(Route("acme/hq", VNI, ("10.2.0.0/24",), "gpn-1"))
        self.gpn.put(Neighbour("gin-1", "gin", GIN, 0, 0, GIN_KEY))
        self.gpn.put(Neighbour("gen-1", "gen", GEN, 0, self.gen.vxlan.address[1], GEN_KEY))
        self.gpn.put(tenant)
        self.seal_with(None)
        self.gpn.put(Rule("acme/hq", SPI_IN))

    def seal_with(self, dscp: int | None) -> None:
        self.gpn.put(
            Sa(
                spi_in=SPI_IN,
                spi_out=SPI_OUT,
                tunnel="acme/hq",
                vni=VNI,
                encryption="aes256gcm16",
                key_in=KEY_IN,
                key_out=KEY_OUT,
                local_ts=LOCAL,
                remote_ts=REMOTE,
                vip=VIP,
                peer=self.peer.address[0],
                peer_port=self.peer.address[1],
                seal_lo=1,
                seal_hi=1 << 30,
                dscp=dscp,
            )
        )

    async def counted(self, counter: str, count: int) -> None:
        """Wait until the GPN has counted so many."""
        with trio.fail_after(10):
            while self.gpn.counters[counter] < count:
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert self.gpn.counters[counter] == count


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with ExitStack() as stack:
        world = World(stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.gin.serve, lambda: None)
            nursery.start_soon(world.gen.serve, lambda: None)
            nursery.start_soon(world.gpn.serve, lambda _: None)
            yield world
            nursery.cancel_scope.cancel()


def inward(tos: int, number: int) -> bytes:
    return summed(ipv4("10.2.0.9", "10.1.0.5", number.to_bytes(4), tos=tos))


def outward(tos: int, number: int) -> bytes:
    return summed(ipv4("10.1.0.5", "10.2.0.9", number.to_bytes(4), tos=tos))


async def test_from_the_peer_to_the_vtep(world: World) -> None:
    number = 0
    for outer, inner, outgoing in (
        (0, 0, 0),
        (EF | ECT0, ECT0, ECT0),
        (EF | CE, 8 | ECT0, 8 | CE),
        (ECT1, ECT0, ECT1),
        (CE, CE, CE),
        (0, EF, EF),
    ):
        numbers = range(number + 1, number + 9)
        number += 8
        packets = [seal(KEY_IN, SPI_IN, n, padded(inward(inner, n), 4)) for n in numbers]
        world.peer.say_batch(world.gin.natt[0].address, *packets, tos=outer)
        for n in numbers:
            frame, source, tos = await world.vtep.hear_all()
            assert source == world.gpn.vxlan.address
            assert (unpassed(frame[22:]), tos) == (inward(outgoing, n), outgoing)
    packet = seal(KEY_IN, SPI_IN, number + 1, padded(inward(EF, 0), 4))
    world.peer.say(world.gin.natt[0].address, packet, tos=CE)
    await world.counted("gpn_drop_ecn_in", 1)


async def test_from_a_peer_whose_address_has_changed(world: World) -> None:
    """Such packets cross the fabric in tags."""
    with station("127.21.0.8") as elsewhere:
        packets = [seal(KEY_IN, SPI_IN, n, padded(inward(EF | ECT0, n), 4)) for n in (1, 2)]
        elsewhere.say_batch(world.gin.natt[0].address, *packets, tos=CE)
        for n in (1, 2):
            frame, _, tos = await world.vtep.hear_all()
            assert (unpassed(frame[22:]), tos) == (inward(EF | CE, n), EF | CE)
        header = build_frame_header(VNI, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
        world.vtep.say(world.gen.vxlan.address, header + outward(ECT1, 3), tos=ECT1)
        packet, _, tos = await elsewhere.hear_all()
        assert (unpassed(unseal(KEY_OUT, packet)[:24]), tos) == (outward(ECT1, 3), ECT1)


async def test_from_the_vtep_to_the_peer(world: World) -> None:
    header = build_frame_header(VNI, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
    number = 0
    for dscp, outer, inner, outgoing, sealed in (
        (None, 0, 0, 0, 0),
        (None, EF | ECT0, EF | ECT0, EF | ECT0, EF | ECT0),
        (None, CE, EF | ECT0, EF | CE, EF | CE),
        (0, EF | CE, EF | ECT1, EF | CE, CE),
        (10, 0, EF | ECT1, EF | ECT1, 10 << 2 | ECT1),
        (None, 0, 0, 0, 0),
    ):
        world.seal_with(dscp)
        numbers = range(number + 1, number + 9)
        number += 8
        frames = [header + outward(inner, n) for n in numbers]
        world.vtep.say_batch(world.gen.vxlan.address, *frames, tos=outer)
        for n in numbers:
            packet, source, tos = await world.peer.hear_all()
            assert source == (VIP, world.gpn.esp.address[1])
            text = unseal(KEY_OUT, packet)
            assert (unpassed(text[: -2 - text[-2]]), tos) == (outward(outgoing, n), sealed)
    world.vtep.say(world.gen.vxlan.address, header + outward(0, 0), tos=CE)
    await world.counted("gpn_drop_ecn_out", 1)
