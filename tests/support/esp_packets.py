"""Inner packets for ESP tests, built from RFC 791 and RFC 8200 with nothing of the gateway's own."""

from __future__ import annotations

import ipaddress
import struct

UDP = 17


def ipv4(
    source: str,
    destination: str,
    payload: bytes,
    *,
    protocol: int = UDP,
    fragment: int = 0,
    tos: int = 0,
    ttl: int = 64,
) -> bytes:
    """An IPv4 packet; `fragment` is the flags-and-offset field. The header checksum is left 0."""
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
    return (
        struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(payload), 1, fragment, ttl, protocol, 0)
        + addresses
        + payload
    )


def checksum(data: bytes) -> int:
    """RFC 1071, in its words."""
    data += bytes(len(data) % 2)
    return _folded(sum(struct.unpack(f"!{len(data) // 2}H", data))) ^ 0xFFFF


def _folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def summed(packet: bytes) -> bytes:
    """An IPv4 packet without options, with its header checksum."""
    header = packet[:10] + bytes(2) + packet[12:20]
    return header[:10] + checksum(header).to_bytes(2) + packet[12:]


def intact(packet: bytes) -> bool:
    """Whether a router may answer to it: a broken IPv4 header is anybody's (RFC 1812 5.2.2)."""
    return packet[0] >> 4 != 4 or checksum(packet[: packet[0] % 16 * 4]) == 0


def with_checksum(packet: bytes, code: int) -> bytes:
    """An IPv4 packet without options, with the identification by which this is its header checksum."""
    blank = packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:20]
    ident = _folded(checksum(blank) + (code ^ 0xFFFF))
    return summed(packet[:4] + ident.to_bytes(2) + packet[6:])


def passed(packet: bytes) -> bytes:
    """A packet that has a hop left, as a router passes it on."""
    return _with_hops(packet, -1)


def unpassed(packet: bytes) -> bytes:
    """The packet that came, of one that a router has passed on."""
    return _with_hops(packet, 1)


def _with_hops(packet: bytes, more: int) -> bytes:
    """RFC 1624 3, equation 3, in its words: HC' = ~(~HC + ~m + m'), m being the word that has the TTL."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes((packet[7] + more,)) + packet[8:]
    before, code = int.from_bytes(packet[8:10]), int.from_bytes(packet[10:12])
    after = before + more * 0x0100
    code = _folded((code ^ 0xFFFF) + (before ^ 0xFFFF) + after) ^ 0xFFFF
    return packet[:8] + after.to_bytes(2) + code.to_bytes(2) + packet[12:]


def ipv6(
    source: str, destination: str, payload: bytes, *, protocol: int = UDP, tos: int = 0, ttl: int = 64
) -> bytes:
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(destination).packed
    return struct.pack("!IHBB", 6 << 28 | tos << 20, len(payload), protocol, ttl) + addresses + payload


def ports(source: int, destination: int, payload: bytes = b"") -> bytes:
    """A UDP datagram."""
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def time_exceeded(packet: bytes) -> bytes:
    """What a router without an address says of a packet that has no hop left: RFC 792, RFC 4443 3.3."""
    if packet[0] >> 4 == 4:
        message = bytes((11, 0, 0, 0)) + bytes(4) + packet[: 576 - 28]
        message = message[:2] + checksum(message).to_bytes(2) + message[4:]
        head = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(message), 0, 0x4000, 64, 1, 0)
        return summed(head + packet[16:20] + packet[12:16] + message)
    message = bytes((3, 0, 0, 0)) + bytes(4) + packet[: 1280 - 48]
    ends = packet[24:40] + packet[8:24]
    code = checksum(ends + struct.pack("!IHBB", len(message), 0, 0, 58) + message)
    return (
        struct.pack("!IHBB", 6 << 28, len(message), 58, 64)
        + ends
        + message[:2]
        + code.to_bytes(2)
        + message[4:]
    )


def partial(frame: bytes) -> bytes:
    """The same as a kernel hands it to a card: the checksum field holds the pseudo-header's sum."""
    packet = bytearray(frame)
    v4 = frame[22] >> 4 == 4
    start = 42 if v4 else 62
    protocol = frame[31] if v4 else frame[28]
    at = start + (16 if protocol == 6 else 6)
    addresses = frame[34:42] if v4 else frame[30:62]
    words = addresses + bytes((0, protocol)) + (len(frame) - start).to_bytes(4, "big")
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[at : at + 2] = total.to_bytes(2, "big")
    return bytes(packet)
