"""A GPN with one tenant and one tunnel, as its tenant and its peer see it; packets by scapy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from protego_cli.crypto.algorithms import EspSuite
from protego_cli.esp.tenants import Vtep
from protego_cli.wire.vxlan import FRAME_LENGTH
from tests.support.esp_packets import unpassed
from tests.support.esp_reference import padded, seal
from tests.support.esp_scapy import scapy_open
from tests.support.esp_suites import key
from tests.support.esp_world import (
    ACME,
    GATEWAY_MAC,
    GCM,
    VTEP,
    VTEP_MAC,
    VTEPS,
    World,
    datagrams,
    entry,
    world,
)

GATEWAY, GATEWAY6 = "10.1.0.1", "fd00:1::1"
V4, DF = IP(src="10.1.0.5", dst="10.2.0.9", id=9), IP(src="10.1.0.5", dst="10.2.0.9", flags="DF")
V6 = IPv6(src="fd00:1::5", dst="fd00:2::9")
ETHER = Ether(src=VTEP_MAC.hex(":"), dst=GATEWAY_MAC.hex(":"))


def site(suite: EspSuite = GCM, *, gateway: Sequence[str] = (GATEWAY, GATEWAY6), **changes: Any) -> World:
    made = world(suite=suite)
    vteps = [Vtep(prefix, *address, mac) for prefix, address, mac in VTEPS[ACME]]
    made.gateway.put_tenant(ACME, GATEWAY_MAC, vteps, gateway)
    made.gateway.put_sa(replace(entry(made.sa(), suite), **changes))
    return made


def inner(network: Packet, length: int) -> bytes:
    """A UDP packet of that length."""
    headers = 28 if isinstance(network, IP) else 48
    return bytes(network / UDP(sport=7, dport=9) / Raw(bytes(length - headers)))


def frame(packet: bytes) -> bytes:
    """In VXLAN."""
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return bytes(VXLAN(vni=ACME) / Ether(src=ETHER.src, dst=ETHER.dst, type=kind)) + packet


def opened(made: World, sent: list[tuple[tuple[str, int], bytes]], suite: EspSuite = GCM) -> list[bytes]:
    """The inner packets that the peer gets, as they came: with the hop that the gateway took."""
    sa = made.sa()
    inners = [
        scapy_open(suite, key(suite, 3), sa.spi_out, packet, 0)[1] for to, packet in sent if to == sa.peer
    ]
    return [unpassed(inner) for inner in inners]


def told(sent: list[tuple[tuple[str, int], bytes]]) -> list[Any]:
    """The packets that go back to the tenant, read by scapy."""
    errors = [VXLAN(datagram) for to, datagram in sent if to == VTEP]
    assert all(error.vni == ACME and error[Ether].dst == VTEP_MAC.hex(":") for error in errors)
    assert all(error[Ether].src == GATEWAY_MAC.hex(":") for error in errors)
    return [error[Ether].payload for error in errors]


def delivered(made: World, *packets: bytes) -> list[bytes]:
    """What the tenant gets of packets that the peer seals, as they came."""
    sa = made.sa()
    first = 1 + next(used.highest_in for used in made.gateway.usage() if used.spi_in == sa.spi_in)
    sealed = [
        seal(sa.key_in, sa.spi_in, first + n, padded(packet, 4 if packet[0] >> 4 == 4 else 41))
        for n, packet in enumerate(packets)
    ]
    sent = datagrams(made.receive_esp(*sealed))
    return [unpassed(datagram[FRAME_LENGTH:]) for to, datagram in sent if to == VTEP]
