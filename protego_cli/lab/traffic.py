"""The numbered packets of `protego local`: how one is made, and what a received one proves.

Every packet is an inner IPv4 or IPv6 packet with UDP, as a host behind the gateway would send it. The UDP
payload names who sent it and where it belongs, so that whoever receives it can judge by itself:

    magic (4) | tenant (2) | tunnel (1) | direction (1) | number (4) | CRC-32 (4) | padding

The CRC covers the fields before it, the padding, and the inner addresses. All tenants use the same inner
addresses on purpose: only the payload tells them apart. Sizes run through all of 64 to 1350 bytes, four
packets of each in turn (equal neighbours let GSO and GRO merge), and two packets in eight are IPv6.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

SMALLEST, LARGEST = 64, 1350  # bytes of an inner packet
MAX_NUMBER = 1 << 28  # bounds the receiver's memory; days of traffic

_MAGIC = b"PLAB"
_FIELDS = struct.Struct("!4sHBBI")
_PAYLOAD = struct.Struct("!4sHBBII")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_UDP_PROTOCOL = 17
_PORT = 4242
_PADDING = bytes((7 * i) & 0xFF for i in range(256)) * 7


class Direction(IntEnum):
    """As the gateway sees it."""

    IN = 0  # peer to tenant
    OUT = 1  # tenant to peer


class Flow(NamedTuple):
    """One tunnel in one direction: what is numbered and counted."""

    tenant: int
    tunnel: int
    direction: Direction


class Numbered(NamedTuple):
    """What an intact packet says of itself."""

    flow: Flow
    number: int


TENANT_HOST = {4: ipaddress.ip_address("10.1.0.10").packed, 6: ipaddress.ip_address("fd00:1::10").packed}
REMOTE_HOST = {4: ipaddress.ip_address("10.2.0.10").packed, 6: ipaddress.ip_address("fd00:2::10").packed}


def addresses(direction: int, version: int) -> bytes:
    """Inner source and destination, joined, of a packet in that direction."""
    if direction == Direction.IN:
        return REMOTE_HOST[version] + TENANT_HOST[version]
    return TENANT_HOST[version] + REMOTE_HOST[version]


def size_of(number: int) -> int:
    """Bytes of inner packet `number`; 389 and the count of sizes are coprime, so every size has its turn."""
    return SMALLEST + (number // 4) * 389 % (LARGEST - SMALLEST + 1)


def version_of(number: int) -> int:
    return 6 if number % 8 >= 6 else 4


def build(flow: Flow, number: int) -> bytes:
    """Inner packet `number` of a flow."""
    version, size = version_of(number), size_of(number)
    pair = addresses(flow.direction, version)
    length = size - (20 if version == 4 else 40)  # of UDP, with its header
    fields = _FIELDS.pack(_MAGIC, flow.tenant, flow.tunnel, flow.direction, number)
    padding = _PADDING[number & 0xFF :][: length - _UDP.size - _PAYLOAD.size]
    payload = fields + _checksum(pair, fields, padding).to_bytes(4, "big") + padding
    pseudo = pair + struct.pack("!HH", _UDP_PROTOCOL, length) + struct.pack("!HHH", _PORT, _PORT, length)
    udp = _UDP.pack(_PORT, _PORT, length, _internet_checksum(pseudo + payload)) + payload
    half = len(pair) // 2
    if version == 6:
        return _IPV6.pack(6 << 28, length, _UDP_PROTOCOL, 64, pair[:half], pair[half:]) + udp
    ip = [0x45, 0, size, number & 0xFFFF, 0, 64, _UDP_PROTOCOL, 0, pair[:half], pair[half:]]
    ip[7] = _internet_checksum(_IPV4.pack(*ip))
    return _IPV4.pack(*ip) + udp


def parse(packet: bytes | memoryview) -> Numbered | None:
    """What a received inner packet says of itself; None when what it carries is not as it was sent."""
    data = bytes(packet)
    if len(data) < SMALLEST:
        return None
    version = data[0] >> 4
    if version == 4:
        total, start, pair = int.from_bytes(data[2:4], "big"), 20, data[12:20]
        if data[0] != 0x45 or data[9] != _UDP_PROTOCOL:
            return None
    elif version == 6:
        total, start, pair = int.from_bytes(data[4:6], "big") + 40, 40, data[8:40]
        if data[6] != _UDP_PROTOCOL:
            return None
    else:
        return None
    payload = start + _UDP.size
    if total != len(data) or total < payload + _PAYLOAD.size:
        return None
    if _UDP.unpack_from(data, start)[:3] != (_PORT, _PORT, total - start):
        return None
    magic, tenant, tunnel, direction, number, checksum = _PAYLOAD.unpack_from(data, payload)
    fields, padding = data[payload : payload + _FIELDS.size], data[payload + _PAYLOAD.size :]
    if magic != _MAGIC or direction > 1 or number >= MAX_NUMBER or size_of(number) != total:
        return None
    if checksum != _checksum(pair, fields, padding):
        return None
    return Numbered(Flow(tenant, tunnel, Direction(direction)), number)


def _checksum(pair: bytes, fields: bytes, padding: bytes) -> int:
    return zlib.crc32(padding, zlib.crc32(fields, zlib.crc32(pair)))


def _internet_checksum(data: bytes) -> int:
    """RFC 1071: 16-bit words summed modulo 0xFFFF are the big number modulo 0xFFFF. Never 0 (RFC 768)."""
    if len(data) % 2:
        data += b"\0"
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF
