"""What a GPN spends on packets under each suite, in each direction, beside the floor of the same packets.

The role's own plane with its own sockets: peers seal towards it, or a GEN sends VXLAN; what leaves is a
VTEP's, or a peer's. Forged packets are measured beside good ones of the same role.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import cycle, groupby

from benchmarks import loads
from benchmarks.bench import Case, Cost, Effort, Side, compare
from benchmarks.floor import Cipher, Step, floor, opening, sealing
from benchmarks.loads import Buffer, Load
from protego_cli.config.model import Node, Ports
from protego_cli.control.channel.desired_records import Neighbour, Rule, Sa, Tenant, Vtep
from protego_cli.crypto.algorithms import EspSuite, Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.esp.packet import trailer
from protego_cli.esp.sa import OutboundSa
from protego_cli.net.pump import drain_trains
from protego_cli.net.udp import Address, UdpSocket
from protego_cli.roles.gpn import GpnPlane
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from protego_cli.wire.vxlan import FRAME_LENGTH as FRAME

TARGETS = {"aes256gcm16": 1.6, "chacha20poly1305": 1.4, "aes256-sha1": 1.6, "aes256-sha256": 1.6}
TARGET_IMIX, TARGET_SINGLE, TARGET_FORGED = 1.8, 1.6, 1.0
REGISTRY = Registry(("bench", algorithm) for algorithm in ALGORITHMS)
SUITES = [
    *(
        REGISTRY.esp_suite(aead, None, esn=False)
        for aead in ("aes256gcm16", "aes128gcm16", "chacha20poly1305")
    ),
    REGISTRY.esp_suite("aes256gcm16", None, esn=True),
    *(REGISTRY.esp_suite("aes256", mac, esn=False) for mac in ("sha1", "sha256", "sha384", "sha512")),
    REGISTRY.esp_suite("aes128", "sha1", esn=False),
    REGISTRY.esp_suite("aes256", "sha256", esn=True),
]
VNI = 1001  # of the first SA; each SA has a tenant of its own
SPI_IN, SPI_OUT = 0xC0000000, 0xD0000000
GATEWAY_MAC, VTEP_MAC = bytes.fromhex("025000001001"), bytes.fromhex("020000000005")
LOCAL = (TrafficSelector.from_prefix("10.1.0.0/24"),)
INWARD, OUTWARD = "peer to tenant", "tenant to peer"


def tenant() -> bytes:
    return bytes((10, 1, 0, 5))


def remote(sa: int) -> bytes:
    """The inner address behind a peer."""
    return bytes((10, 2, sa >> 8, sa & 255))


def inner(source: bytes, destination: bytes, size: int) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, 17, 0) + source + destination
    return head + struct.pack("!HHHH", 7, 7, size - 20, 0xFFFF) + bytes(size - 28)


class _World:
    """A GPN, and the sockets of the nodes, peers and VTEP around it."""

    def __init__(self, stack: ExitStack, suite: EspSuite, sas: int) -> None:
        def bind(address: str) -> UdpSocket:
            return stack.enter_context(closing(UdpSocket.bind(address, 0)))

        self.gin, self.gen, self.sink = bind("127.0.0.11"), bind("127.0.0.12"), bind("0.0.0.0")
        self.suite = suite
        self.vtep = "127.0.0.7", self.sink.address[1]
        self.plane = GpnPlane(Node("gpn-1", "gpn", "127.0.0.21", Ports(esp=0, vxlan=0)), REGISTRY, stack)
        address, port = self.gen.address
        self.plane.put(Neighbour("gen-1", "gen", address, 0, port, bytes(32)))
        self.plane.put(Neighbour("gin-1", "gin", self.gin.address[0], 0, 0, bytes([1]) * 32))
        self.peers = [self._connect(sa) for sa in range(sas)]

    def peer(self, sa: int) -> tuple[str, int]:
        """Where a peer lives."""
        return f"127.1.{sa >> 8}.{sa & 255}", self.vtep[1]

    def keys(self, sa: int) -> tuple[bytes, bytes]:
        length = self.suite.keymat_length
        return (sa.to_bytes(4) * length)[:length], ((sa + 1).to_bytes(4, "little") * length)[:length]

    def _connect(self, sa: int) -> OutboundSa:
        suite, (key_in, key_out) = self.suite, self.keys(sa)
        there = (TrafficSelector.from_prefix(".".join(map(str, remote(sa))) + "/32"),)
        name = f"t{sa}"
        self.plane.put(Tenant(name, VNI + sa, GATEWAY_MAC, (Vtep("10.1.0.0/24", *self.vtep, VTEP_MAC),)))
        self.plane.put(
            Sa(
                spi_in=SPI_IN + sa,
                spi_out=SPI_OUT + sa,
                tunnel=f"{name}/hq",
                vni=VNI + sa,
                encryption=suite.encryption.keyword,
                key_in=key_in,
                key_out=key_out,
                local_ts=LOCAL,
                remote_ts=there,
                vip="127.0.0.10",
                peer=self.peer(sa)[0],
                peer_port=self.peer(sa)[1],
                seal_lo=1,
                seal_hi=1 << 31,
                integrity=suite.integrity.keyword if suite.integrity else None,
                esn=suite.esn,
            )
        )
        self.plane.put(Rule(f"{name}/hq", SPI_IN + sa))
        return self.sealer(sa, key_in)

    def sealer(self, sa: int, key: bytes, lo: int = 1) -> OutboundSa:
        """A peer's half of an SA."""
        return OutboundSa(
            *(SPI_IN + sa, self.suite, key, os.urandom), local_ts=LOCAL, remote_ts=LOCAL, lo=lo, hi=1 << 31
        )

    def seal(self, buffer: Buffer) -> list[bytes]:
        """What peers send, each packet once: parts of one size and SA."""
        sealed = []
        for packet, row in groupby(buffer):
            sa = self.peers[packet.sa]
            sealed.append(sa.seal([_text(sa, packet.sa, packet.size)] * len(list(row))))
        return sealed

    def empty_esp(self) -> None:
        while drain_trains(self.plane.esp, self.plane.receive_esp):
            pass

    def empty_vxlan(self) -> None:
        while drain_trains(self.plane.vxlan, self.plane.receive_vxlan):
            pass


def _text(sa: OutboundSa, number: int, size: int) -> bytes:
    return inner(remote(number), tenant(), size) + trailer(size, 4, sa.block)


def _rows(buffer: Buffer) -> list[tuple[int, Buffer]]:
    """Packets of one SA, in a row."""
    return [(sa, list(row)) for sa, row in groupby(buffer, key=lambda packet: packet.sa)]


def inbound(suite: EspSuite, load: Load, effort: Effort) -> Cost:
    """From the peer to the tenant: open and put into VXLAN."""
    with ExitStack() as stack:
        world = _World(stack, suite, load.sas)
        count = sum(map(len, load.stretches[0]))
        overhead = world.peers[0].overhead
        ready = [
            [(_wire(overhead, buffer, world), world.seal(buffer)) for buffer in s] for s in load.stretches
        ]
        turns = cycle(load.stretches)

        def fill() -> None:
            for buffer in next(turns):
                data = b"".join(world.seal(buffer))
                world.gin.send(data, _wire(overhead, buffer, world), world.plane.esp.address)

        def steps() -> Iterator[Step]:
            for stretch in load.stretches:
                for buffer in stretch:
                    ciphers = [
                        opening(suite, world.keys(sa)[0], _singly(world, row)) for sa, row in _rows(buffer)
                    ]
                    yield Step(ciphers, [([FRAME + packet.size for packet in buffer], world.vtep)])

        address, bare = floor(stack, list(steps()))
        bare_turns = cycle(ready)

        def bare_fill() -> None:
            for size, parts in next(bare_turns):
                world.gin.send(b"".join(parts), size, address)

        return compare(
            Side(fill, world.empty_esp, count, count),
            Side(bare_fill, bare, count, count),
            world.sink,
            effort,
        )


def _wire(overhead: int, buffer: Buffer, world: _World) -> int:
    """How long the first ESP packet of a buffer is."""
    size = buffer[0].size
    return overhead + size + len(trailer(size, 4, world.peers[0].block))


def _singly(world: _World, row: Buffer) -> list[bytes]:
    sa = world.peers[row[0].sa]
    return [sa.seal([_text(sa, packet.sa, packet.size)]) for packet in row]


def outbound(suite: EspSuite, load: Load, effort: Effort) -> Cost:
    """From the tenant to the peer: take out of VXLAN and seal."""
    with ExitStack() as stack:
        world = _World(stack, suite, load.sas)
        count = sum(map(len, load.stretches[0]))
        headers = [
            build_frame_header(VNI + sa, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4) for sa in range(load.sas)
        ]
        ready = [
            [
                (
                    FRAME + buffer[0].size,
                    b"".join(headers[sa] + inner(tenant(), remote(sa), size) for sa, size in buffer),
                )
                for buffer in stretch
            ]
            for stretch in load.stretches
        ]

        def steps() -> Iterator[Step]:
            for stretch in load.stretches:
                for buffer in stretch:
                    ciphers: list[Cipher] = []
                    sends: list[tuple[list[int], Address]] = []
                    for sa, row in _rows(buffer):
                        packets = _singly(world, row)
                        ciphers.append(sealing(suite, world.keys(sa)[1], packets))
                        sends.append((list(map(len, packets)), world.peer(sa)))
                    yield Step(ciphers, sends)

        address, bare = floor(stack, list(steps()))

        def filler(dest: tuple[str, int]) -> Callable[[], None]:
            turns = cycle(ready)

            def fill() -> None:
                for size, data in next(turns):
                    world.gen.send(data, size, dest)

            return fill

        return compare(
            Side(filler(world.plane.vxlan.address), world.empty_vxlan, count, count),
            Side(filler(address), bare, count, count),
            world.sink,
            effort,
        )


def forged(suite: EspSuite, load: Load, order: Sequence[int], share: int, effort: Effort) -> Cost:
    """A flood of packets that do not open, each `share`-th excepted, beside good ones; `order` is that of
    their numbers, within a buffer, ahead of all that was opened.
    """
    with ExitStack() as stack:
        world = _World(stack, suite, 1)
        (stretch,) = load.stretches
        count = sum(map(len, stretch))
        liar = world.sealer(0, bytes(suite.keymat_length - 1) + b"\1", 1 << 30)
        size = _wire(liar.overhead, stretch[0], world)
        lies = [liar.seal([_text(liar, 0, packet.size)]) for packet in stretch[0]]
        lies = [lies[place % len(lies)] for place in order][: len(lies)]
        good = sum(-(-len(buffer) // share) for buffer in stretch) if share else 0

        def fill() -> None:
            for buffer in stretch:
                packets = lies[: len(buffer)]
                if share:
                    packets[::share] = [part for p in buffer[::share] for part in world.seal([p])]
                world.gin.send(b"".join(packets), size, world.plane.esp.address)

        def truth() -> None:
            for buffer in stretch:
                world.gin.send(b"".join(world.seal(buffer)), size, world.plane.esp.address)

        return compare(
            Side(fill, world.empty_esp, count, good),
            Side(truth, world.empty_esp, count, count),
            world.sink,
            effort,
        )


def cases(sas: int = loads.SAS) -> Iterator[Case]:
    """This role's lines of the table; `sas` is how many make many."""

    def both(suite: EspSuite, load: Load, target: float | None) -> Iterator[Case]:
        for direction, measure in ((INWARD, inbound), (OUTWARD, outbound)):
            run = partial(measure, suite, load)
            yield Case("GPN", direction, str(suite), load.name, load.size, target, run)

    for suite in SUITES:
        target = TARGETS.get(str(suite))
        for size in loads.SIZES:
            yield from both(suite, loads.full(size), target if size == max(loads.SIZES) else None)
        yield from both(suite, loads.imix(), target and TARGET_IMIX)
    for suite in (suite for suite in SUITES if str(suite) in TARGETS):
        for load in (*map(loads.single, loads.SIZES), loads.imix_single()):
            yield from both(suite, load, TARGET_SINGLE)
    yield from both(SUITES[0], loads.many(512, sas), None)
    for suite in (suite for suite in SUITES if str(suite) in TARGETS):
        for load in (loads.full(64), loads.full(1400), loads.single(64)):
            for name, order, share in (
                ("all forged", range(64), 0),
                ("all but each fourth forged", range(64), 4),
                ("all forged, numbers falling", range(63, -1, -1), 0),
            ):
                run = partial(forged, suite, load, order, share)
                yield Case(
                    *("GPN", INWARD, str(suite), f"{load.name}, {name}", load.size, TARGET_FORGED, run)
                )
