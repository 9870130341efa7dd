"""Inner packets for ESP tests, built from RFC 791 and RFC 8200 with nothing of the gateway's own."""

from __future__ import annotations

import ipaddress
import struct

UDP = 17


def ipv4(
    source: str, destination: str, payload: bytes, *, protocol: int = UDP, fragment: int = 0, tos: int = 0
) -> bytes:
    """An IPv4 packet; `fragment` is the flags-and-offset field. The header checksum is left 0."""
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
    return (
        struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(payload), 1, fragment, 64, protocol, 0)
        + addresses
        + payload
    )


def summed(packet: bytes) -> bytes:
    """An IPv4 packet without options, with its header checksum."""
    header = packet[:10] + bytes(2) + packet[12:20]
    total = sum(struct.unpack("!10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + (total ^ 0xFFFF).to_bytes(2) + packet[12:]


def ipv6(source: str, destination: str, payload: bytes, *, protocol: int = UDP, tos: int = 0) -> bytes:
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed
    return struct.pack("!IHBB", 6 << 28 | tos << 20, len(payload), protocol, 64) + addresses + payload


def ports(source: int, destination: int, payload: bytes = b"") -> bytes:
    """A UDP datagram."""
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload
