"""What a GPN spends on a packet of 1,400 bytes under each suite, in each direction, beside its floor.

The role's own plane with its own sockets: a peer seals towards it, or a GEN sends VXLAN; what leaves is a
VTEP's, or a peer's.
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack, closing

from benchmarks.bench import PACKETS, ROUNDS, Cost, Row, Side, compare
from benchmarks.floor import floor, opening, sealing
from protego_cli.config.model import Node, Ports
from protego_cli.control.messages import Neighbour, Rule, Sa, Tenant, Vtep
from protego_cli.crypto.algorithms import EspSuite, Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.esp.peer import PeerTunnel
from protego_cli.net.pump import drain
from protego_cli.net.udp import UdpSocket
from protego_cli.roles.gpn import GpnPlane
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header

SIZE = 1400  # of an inner packet
TARGET = 2.5
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
VNI = 1001
SPI_IN, SPI_OUT = 0xC0FFEE01, 0xC0FFEE02
GATEWAY_MAC, VTEP_MAC = bytes.fromhex("025000001001"), bytes.fromhex("020000000005")
LOCAL = (TrafficSelector.from_prefix("10.1.0.0/24"),)
REMOTE = (TrafficSelector.from_prefix("10.2.0.0/24"),)
TENANT_ADDRESS, PEER_ADDRESS = bytes((10, 1, 0, 5)), bytes((10, 2, 0, 9))


def _inner(source: bytes, destination: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, SIZE, 0, 0, 64, 17, 0) + source + destination
    return head + struct.pack("!HHHH", 7, 7, SIZE - 20, 0xFFFF) + bytes(SIZE - 28)


class _World:
    """A GPN, and the sockets of the nodes, peer and VTEP around it."""

    def __init__(self, stack: ExitStack, suite: EspSuite) -> None:
        def bind(host: int) -> UdpSocket:
            return stack.enter_context(closing(UdpSocket.bind(f"127.0.0.{host}", 0)))

        self.gin, self.gen, self.sink = bind(11), bind(12), bind(7)
        self.plane = GpnPlane(Node("gpn-1", "gpn", "127.0.0.21", Ports(esp=0, vxlan=0)), REGISTRY, stack)
        address, port = self.gen.address
        self.plane.put(Neighbour("gen-1", "gen", address, 0, port, bytes(32)))
        vtep = Vtep("10.1.0.0/24", *self.sink.address, VTEP_MAC)
        self.plane.put(Tenant("acme", VNI, GATEWAY_MAC, (vtep,)))
        peer, peer_port = self.sink.address
        self.key_in, self.key_out = bytes(suite.keymat_length), bytes([1]) * suite.keymat_length
        integrity = suite.integrity.keyword if suite.integrity else None
        self.plane.put(
            Sa(
                *(SPI_IN, SPI_OUT, "acme/hq", VNI, suite.encryption.keyword, self.key_in, self.key_out),
                *(LOCAL, REMOTE, "127.0.0.10", peer, peer_port, 1, 1 << 31),
                integrity=integrity,
                esn=suite.esn,
            )
        )
        self.plane.put(Rule("acme/hq", SPI_IN))
        self.peer = PeerTunnel(os.urandom)
        self.peer.install(SPI_OUT, SPI_IN, suite, self.key_out, self.key_in, REMOTE, LOCAL)
        self.peer.select(SPI_OUT)


def inbound(suite: EspSuite, rounds: int = ROUNDS) -> Cost:
    """From the peer to the tenant: open and put into VXLAN."""
    with ExitStack() as stack:
        world = _World(stack, suite)
        plane, packets = world.plane, [_inner(PEER_ADDRESS, TENANT_ADDRESS)] * PACKETS

        def fill() -> None:
            sealed = world.peer.seal(packets)
            world.gin.send(b"".join(sealed), len(sealed[0]), plane.esp.address)

        def empty() -> None:
            while drain(plane.esp, plane.receive_esp):
                pass

        sealed = world.peer.seal(packets)
        frame = 22 + SIZE
        address, bare = floor(
            *(stack, world.sink.address, frame),
            data=bytes(frame * PACKETS),
            cipher=opening(suite, world.key_in, sealed),
        )
        batch = b"".join(sealed)

        def bare_fill() -> None:
            world.gin.send(batch, len(sealed[0]), address)

        return compare(Side(fill, empty), Side(bare_fill, bare), world.sink, rounds)


def outbound(suite: EspSuite, rounds: int = ROUNDS) -> Cost:
    """From the tenant to the peer: take out of VXLAN and seal."""
    with ExitStack() as stack:
        world = _World(stack, suite)
        plane = world.plane
        header = build_frame_header(VNI, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
        frame = header + _inner(TENANT_ADDRESS, PEER_ADDRESS)
        batch = frame * PACKETS

        def empty() -> None:
            while drain(plane.vxlan, plane.receive_vxlan):
                pass

        (packet,) = world.peer.seal([_inner(PEER_ADDRESS, TENANT_ADDRESS)])  # of the same size
        address, bare = floor(
            *(stack, world.sink.address, len(packet)),
            data=bytes(len(packet) * PACKETS),
            cipher=sealing(suite, world.key_out, [packet] * PACKETS),
        )

        def fill(dest: tuple[str, int]) -> None:
            world.gen.send(batch, len(frame), dest)

        return compare(
            Side(lambda: fill(plane.vxlan.address), empty),
            Side(lambda: fill(address), bare),
            world.sink,
            rounds,
        )


def rows(rounds: int = ROUNDS) -> list[Row]:
    """This role's lines of the table."""
    return [
        Row(f"GPN, {direction}, {suite}", SIZE, TARGET, measure(suite, rounds))
        for suite in SUITES
        for direction, measure in (("peer to tenant", inbound), ("tenant to peer", outbound))
    ]
