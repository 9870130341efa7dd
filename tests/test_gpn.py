"""A whole GPN but its control channel, on loopback addresses: a GIN, a GEN, a VTEP and a peer around it."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any
from unittest.mock import Mock

import pytest
import trio
import trio.testing

from protego_cli.config.model import Node, Ports
from protego_cli.control.channel.desired import put
from protego_cli.control.channel.desired_records import Neighbour, Park, Rule, Sa, Tenant, Vtep
from protego_cli.control.channel.node_messages import FirstPacket, Notice, PeerAddress, RangeLow
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import EnvironmentFault, Refused
from protego_cli.esp.outbox import Buffer, Port
from protego_cli.net.gso import segments
from protego_cli.net.raw import RawSocket
from protego_cli.net.udp import Address, Batch, UdpSocket
from protego_cli.roles import gpn
from protego_cli.roles.gpn import GpnPlane
from protego_cli.wire.tags import Tag, TagKind, open_tag, seal_tag
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from tests.support.datagrams import bundle, counted, station
from tests.support.esp_packets import passed
from tests.support.esp_reference import padded, seal
from tests.support.gpn_packets import (
    FRAME_IN,
    GATEWAY_MAC,
    IN,
    LOCAL,
    OUT,
    REMOTE,
    SPI_IN,
    SPI_OUT,
    VNI,
    VTEP_MAC,
)

KEY_IN, KEY_OUT, TAG_KEY = bytes(range(36)), bytes(range(100, 136)), bytes(range(32))
VIP = "127.30.0.10"
FRAME_OUT = build_frame_header(VNI, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4) + OUT


def esp(number: int) -> bytes:
    return seal(KEY_IN, SPI_IN, number, padded(IN, 4))


class World:
    """The GPN and everything it talks to. Ports are the kernel's choice, so tests never collide."""

    def __init__(self, stack: ExitStack) -> None:
        self.gin = stack.enter_context(station("127.10.0.11"))
        self.gen = stack.enter_context(station("127.10.0.12"))
        self.vtep = stack.enter_context(station("127.40.0.5"))
        self.peer = stack.enter_context(station("127.20.0.7"))
        registry = Registry(("test", algorithm) for algorithm in ALGORITHMS)
        self.plane = GpnPlane(Node("gpn-1", "gpn", "127.10.0.21", Ports(esp=0, vxlan=0)), registry, stack)
        self.esp, self.vxlan = self.plane.esp.address, self.plane.vxlan.address
        self.notices: list[Notice] = []
        self.plane.put(Neighbour("gin-1", "gin", self.gin.address[0], 0, 0, TAG_KEY))
        self.plane.put(Neighbour("gen-1", "gen", self.gen.address[0], 0, self.gen.address[1], TAG_KEY))
        vtep = Vtep("10.1.0.0/24", *self.vtep.address, VTEP_MAC)
        self.plane.put(Tenant("acme", VNI, GATEWAY_MAC, (vtep,)))

    def sa(self, **changes: object) -> Sa:
        fields: dict[str, object] = {
            "spi_in": SPI_IN,
            "spi_out": SPI_OUT,
            "tunnel": "acme/hq",
            "vni": VNI,
            "encryption": "aes256gcm16",
            "key_in": KEY_IN,
            "key_out": KEY_OUT,
            "local_ts": LOCAL,
            "remote_ts": REMOTE,
            "vip": VIP,
            "peer": self.peer.address[0],
            "peer_port": self.peer.address[1],
            "seal_lo": 1,
            "seal_hi": 1 << 30,
        }
        return Sa(**{**fields, **changes})  # type: ignore[arg-type]

    def establish(self) -> None:
        self.plane.put(self.sa())
        self.plane.put(Rule("acme/hq", SPI_IN))

    async def until(self, **expected: int) -> None:
        await counted(self.plane, expected)


@pytest.fixture
def bound() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


@pytest.fixture
async def world(bound: World) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bound.plane.serve, bound.notices.append)
        yield bound
        nursery.cancel_scope.cancel()


async def test_a_peers_packets_reach_the_vtep(world: World) -> None:
    world.establish()
    world.gin.say_batch(world.esp, *[esp(number) for number in range(1, 45)])
    for _ in range(44):
        assert await world.vtep.hear() == (FRAME_IN, world.vxlan)
    await world.until(gpn_opened=44)
    assert world.notices == [FirstPacket(SPI_IN)]


async def test_a_tenants_packets_reach_the_peer_from_the_vip(world: World) -> None:
    world.establish()
    world.gen.say_batch(world.vxlan, *[FRAME_OUT] * 44)
    for number in range(1, 45):
        expected = seal(KEY_OUT, SPI_OUT, number, padded(passed(OUT), 4))
        assert await world.peer.hear() == (expected, (VIP, world.esp[1]))
    await world.until(gpn_sealed=44)


async def test_bundles_are_what_is_in_them(world: World) -> None:
    """In their order, with what came before and comes behind; a malformed one stops nothing."""
    world.establish()
    probe = seal_tag(TAG_KEY, Tag(TagKind.PROBE, 7), hmac_sha256)
    sizes = len(esp(1)), len(probe)
    world.gin.say(
        world.esp,
        esp(1),
        bundle((sizes[0], esp(2) + esp(3)), (sizes[0], esp(4)), (sizes[1], probe)),
        bundle((sizes[0], esp(5)))[:-9],
        esp(6),
    )
    for _ in range(5):
        assert await world.vtep.hear() == (FRAME_IN, world.vxlan)
    data, source = await world.gin.hear()
    assert (open_tag(TAG_KEY, data, hmac_sha256), source) == (Tag(TagKind.PROBE_ECHO, 7), world.esp)
    size = len(FRAME_OUT)
    world.gen.say(world.vxlan, bundle((size, FRAME_OUT * 2), (size, FRAME_OUT)))
    for number in range(1, 4):
        expected = seal(KEY_OUT, SPI_OUT, number, padded(passed(OUT), 4))
        assert await world.peer.hear() == (expected, (VIP, world.esp[1]))
    world.vtep.say(world.vxlan, bundle((size, FRAME_OUT * 2), (size, FRAME_OUT)))  # it is no neighbour
    await world.until(gpn_opened=5, gpn_sealed=3, gpn_drop_tag=2)


async def test_parked_packets_leave_the_moment_the_keys_arrive(world: World) -> None:
    world.plane.put(Park(SPI_IN))
    world.gin.say(world.esp, esp(1), esp(2))
    await world.until(gpn_parked=2)
    world.establish()
    assert [await world.vtep.hear() for _ in range(2)] == [(FRAME_IN, world.vxlan)] * 2
    world.plane.drop(("park", SPI_IN))
    await world.until(gpn_parked=2, gpn_opened=2)


async def test_a_barrier_comes_back_behind_what_was_sent_before_it(world: World) -> None:
    world.establish()
    world.gen.say(world.vxlan, FRAME_OUT, seal_tag(TAG_KEY, Tag(TagKind.BARRIER, 9), hmac_sha256))
    data, source = await world.gen.hear()
    assert source == world.vxlan
    assert open_tag(TAG_KEY, data, hmac_sha256) == Tag(TagKind.BARRIER_ECHO, 9)
    await world.until(gpn_sealed=1)


async def test_a_vteps_arp_goes_to_the_gen(world: World) -> None:
    world.establish()
    question = FRAME_OUT[:20] + b"\x08\x06" + bytes(28)
    world.vtep.say(world.vxlan, question)
    assert await world.gen.hear() == (question, world.vxlan)
    world.gen.say(world.vxlan, question)  # from there it would go in circles
    await world.until(gpn_returned=1, gpn_drop_inner=1)


async def test_without_its_rule_a_vteps_packet_goes_to_the_gen(world: World) -> None:
    world.establish()
    world.plane.drop(("rule", "acme/hq"))
    world.vtep.say(world.vxlan, FRAME_OUT)
    assert await world.gen.hear() == (FRAME_OUT, world.vxlan)
    await world.until(gpn_returned=1)


async def test_the_gmn_hears_of_a_moved_peer_and_of_a_range_that_runs_low(world: World) -> None:
    world.plane.put(world.sa(seal_hi=5))
    world.plane.put(Rule("acme/hq", SPI_IN))
    elsewhere = bytes((127, 20, 0, 7))
    tag = Tag(TagKind.ORIGIN, 0, elsewhere, 60000, esp(1))
    world.gin.say(world.esp, seal_tag(TAG_KEY, tag, hmac_sha256))
    await world.until(gpn_opened=1)
    world.gen.say_batch(world.vxlan, *[FRAME_OUT] * 3)
    await world.until(gpn_opened=1, gpn_sealed=3)
    assert world.notices == [
        FirstPacket(SPI_IN),
        PeerAddress(SPI_IN, "127.20.0.7", 60000),
        RangeLow(SPI_IN),
    ]


@pytest.mark.root
async def test_a_peer_without_udp_gets_raw_esp_from_the_vip(world: World) -> None:
    with closing(RawSocket.bind(world.peer.address[0])) as peer:
        world.plane.put(world.sa(peer_port=0))
        world.plane.put(Rule("acme/hq", SPI_IN))
        world.gen.say_batch(world.vxlan, *[FRAME_OUT] * 3)
        with trio.fail_after(10):
            await peer.wait_readable()
        await world.until(gpn_sealed=3)
        batch = peer.receive()
        assert batch is not None
        assert batch.source == (VIP, 0)
        sealed = b"".join(seal(KEY_OUT, SPI_OUT, number, padded(passed(OUT), 4)) for number in (1, 2, 3))
        assert bytes(batch.view) == sealed


async def test_without_a_raw_socket_a_peer_without_udp_is_served_through_a_gin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = "a raw socket needs privilege"
    monkeypatch.setattr(RawSocket, "bind", Mock(side_effect=EnvironmentFault(fault)))
    with ExitStack() as stack:
        world = World(stack)
        assert world.plane.lacks == fault
        world.plane.put(world.sa(peer_port=0))
        world.plane.put(Rule("acme/hq", SPI_IN))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.plane.serve, world.notices.append)
            world.gin.say(world.esp, seal_tag(TAG_KEY, Tag(TagKind.PROBE, 1), hmac_sha256))
            await world.gin.hear()
            world.gen.say(world.vxlan, FRAME_OUT)
            header = SPI_IN.to_bytes(4) + bytes(map(int, VIP.split(".")))
            sealed = seal(KEY_OUT, SPI_OUT, 1, padded(passed(OUT), 4))
            assert await world.gin.hear() == (header + sealed, world.esp)
            nursery.cancel_scope.cancel()


async def test_what_the_kernel_refuses_is_counted(world: World) -> None:
    world.plane.put(world.sa(vip="192.0.2.1"))  # no address of this machine
    world.plane.put(Rule("acme/hq", SPI_IN))
    world.gen.say_batch(world.vxlan, *[FRAME_OUT] * 3)
    await world.until(gpn_drop_send=3)


class Reluctant:
    """A socket that takes what it is to send only later: until then it holds on to the very buffers."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.waiting: list[tuple[Buffer, int]] = []

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        self.waiting.append((data, size))
        return self.takes

    def sent(self) -> list[bytes]:
        return [bytes(part) for data, size in self.waiting for part in segments(memoryview(data), size)]


@pytest.mark.parametrize("takes", [True, False])
def test_what_waits_to_be_sent_or_was_refused_stays_as_it_is(bound: World, takes: bool) -> None:
    bound.establish()
    outward, inward = Reluctant(takes=takes), Reluctant(takes=takes)
    bound.plane._sockets.update({Port.ESP: outward, Port.VXLAN: inward})
    for batch in range(12):
        numbers = range(44 * batch + 1, 44 * batch + 45)
        view = memoryview(bytearray(b"".join(map(esp, numbers))))
        bound.plane.receive_esp([Batch(view, len(view) // 44, bound.gin.address)])
        view[:] = bytes(len(view))  # the socket's own buffer is used again at once
        view = memoryview(bytearray(FRAME_OUT * 44))
        bound.plane.receive_vxlan([Batch(view, len(FRAME_OUT), bound.gen.address)])
        view[:] = bytes(len(view))
    assert inward.sent() == [FRAME_IN] * 12 * 44
    sealed = [seal(KEY_OUT, SPI_OUT, number, padded(passed(OUT), 4)) for number in range(1, 1 + 12 * 44)]
    assert outward.sent() == sealed
    kept = [type(data) for data, _ in inward.waiting + outward.waiting]
    assert memoryview in kept, "some are lent"
    assert bytes in kept, "and then there is nothing left to lend"
    counted = ("gpn_opened", "gpn_sealed") if takes else ("gpn_drop_send",)
    assert sum(bound.plane.counters[name] for name in counted) == 2 * 12 * 44


@pytest.mark.parametrize("fault", [errno.EAGAIN, errno.EIO, errno.EMSGSIZE])
async def test_what_is_sent_at_the_second_try_or_in_parts_arrives_as_it_is(world: World, fault: int) -> None:
    world.establish()

    def grudging(sock: UdpSocket) -> None:
        send, refusals = sock._sendmsg, itertools.cycle([True, False])

        def sendmsg(buffers: Sequence[Buffer], *arguments: Any) -> int:
            if len(buffers[0]) > 1000 and next(refusals):
                raise OSError(fault, "refused")
            return send(buffers, *arguments)

        sock._sendmsg = sendmsg

    grudging(world.plane.vxlan)
    grudging(world.plane.esp)
    for batch in range(6):
        numbers = range(40 * batch + 1, 40 * batch + 41)
        world.gin.say_batch(world.esp, *map(esp, numbers))
        world.gen.say_batch(world.vxlan, *[FRAME_OUT] * 40)
        for _ in numbers:
            assert await world.vtep.hear() == (FRAME_IN, world.vxlan)
        for number in numbers:
            expected = seal(KEY_OUT, SPI_OUT, number, padded(passed(OUT), 4))
            assert await world.peer.hear() == (expected, (VIP, world.esp[1]))
    await world.until(gpn_opened=240, gpn_sealed=240)


async def test_what_comes_before_the_first_sync_waits(bound: World) -> None:
    bound.gin.say(bound.esp, esp(1))
    bound.establish()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bound.plane.serve, bound.notices.append)
        assert await bound.vtep.hear() == (FRAME_IN, bound.vxlan)
        nursery.cancel_scope.cancel()


async def test_what_came_before_an_sa_or_its_rule_goes_is_opened_and_sealed_by_it(bound: World) -> None:
    """A process that got no CPU may hear that they go before it comes to what waits in its sockets."""
    bound.establish()
    bound.gin.say(bound.esp, esp(1))
    bound.gen.say(bound.vxlan, FRAME_OUT)
    bound.plane.drop(("rule", "acme/hq"))
    bound.plane.drop(("sa", SPI_IN))
    assert (await bound.vtep.hear())[0] == FRAME_IN
    assert int.from_bytes((await bound.peer.hear())[0][:4]) == SPI_OUT
    assert bound.plane.counters.nonzero() == {"gpn_opened": 1, "gpn_sealed": 1}


async def test_a_report_says_what_each_sa_carried(world: World) -> None:
    world.establish()
    world.gin.say_batch(world.esp, esp(1), esp(2))
    world.gen.say(world.vxlan, FRAME_OUT)
    await world.until(gpn_opened=2, gpn_sealed=1)
    report = world.plane.report()
    (usage,) = report.usage
    assert (usage.spi_in, usage.packets_in, usage.packets_out) == (SPI_IN, 2, 1)
    assert (usage.bytes_in, usage.bytes_out, usage.highest_in, usage.next_out) == (240, 120, 2, 2)
    assert report.counters == {"gpn_opened": 2, "gpn_sealed": 1}
    world.plane.drop(("sa", SPI_IN))
    assert world.plane.report().usage == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encryption": "rot13"}, "no plugin here provides 'rot13'"),
        ({"key_in": b"short"}, "wrong length"),
        ({"seal_hi": 0}, "no range"),
    ],
)
def test_a_record_it_cannot_act_on_is_refused(bound: World, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(Refused, match=reason) as caught:
        put(bound.plane, bound.sa(**changes))
    assert KEY_OUT.hex() not in str(caught.value)


async def test_only_its_own_business(bound: World) -> None:
    assert bound.plane.marks((SPI_IN,)) == {}
    with pytest.raises(Refused, match="no barriers"):
        await bound.plane.barrier("gpn-2")


def test_an_occupied_port_is_one_clear_sentence(bound: World) -> None:
    node = Node("gpn-2", "gpn", "127.10.0.21", Ports(esp=bound.esp[1], vxlan=0))
    with (
        ExitStack() as stack,
        pytest.raises(EnvironmentFault, match=r"UDP port \d+ is in use"),
    ):
        GpnPlane(node, Registry(()), stack)


async def test_a_flood_of_garbage_is_counted_and_stops_nothing(world: World) -> None:
    """100,000 random and mutated datagrams, a bounded number of them in flight."""
    world.establish()
    chaos = random.Random(20261122)
    valid = {world.esp: esp(1), world.vxlan: FRAME_OUT}
    sent = 0
    while sent < 100_000:
        for dest, example in valid.items():
            batch = [_garbage(chaos, example) for _ in range(40)]
            source = world.gin if dest == world.esp else world.gen
            source.say_batch(dest, *batch)
            sent += len(batch)
        with trio.fail_after(10):
            while sum(world.plane.counters.values()) < sent:
                await trio.lowlevel.checkpoint()
    assert sum(world.plane.counters.values()) == sent
    assert world.plane.counters["gpn_opened"] <= 1
    before = world.plane.counters["gpn_opened"]
    world.gin.say(world.esp, esp(1_000_000))
    with trio.fail_after(10):
        while world.plane.counters["gpn_opened"] == before:
            await trio.lowlevel.checkpoint()


def _garbage(chaos: random.Random, example: bytes) -> bytes:
    """As long as the example, so that they travel as one batch: random, or the example with bytes changed."""
    if chaos.random() < 0.5:
        return chaos.randbytes(len(example))
    data = bytearray(example)
    for _ in range(chaos.randint(1, 4)):
        data[chaos.randrange(len(data))] = chaos.randrange(256)
    return bytes(data)


async def test_it_measures_each_suite_that_it_has_sas_of_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpn, "TEND_INTERVAL", 0.01)
    assert world.plane.report().costs == ()
    world.establish()
    assert world.plane.report().costs == (), "it serves first"
    with trio.fail_after(10):
        while not world.plane.report().costs:  # noqa: ASYNC110
            await trio.sleep(0.005)
    (cost,) = world.plane.report().costs
    assert cost.suite == "aes256gcm16"
    assert 0.0 < cost.seal_packet + 1000 * cost.seal_byte < 1e-3
    world.plane.put(world.sa(spi_in=SPI_IN + 1))
    await trio.sleep(0.05)  # some turns of the task that would measure
    assert world.plane.report().costs == (cost,)
