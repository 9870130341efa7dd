"""The little of ICMP that a gateway's own address needs: neighbour discovery and ping.

RFC 4861 4.3, 4.4, 7.1.1 (solicitation, advertisement, what makes one valid), RFC 4443 4 and RFC 792 (echo).
All take and give whole IP packets; everything from the network is checked, checksums included.
"""

from __future__ import annotations

from typing import NamedTuple

from protego_cli.errors import Malformed
from protego_cli.wire.checksum import checksum, intact
from protego_cli.wire.inner import ICMP, ICMPV6, IPV4_LENGTH, IPV6_LENGTH, Buffer, parse

SOLICITATION, ADVERTISEMENT = 135, 136
ECHO4, ECHO4_REPLY = 8, 0
ECHO6, ECHO6_REPLY = 128, 129
SOURCE_LINK, TARGET_LINK = 1, 2  # options
ROUTER, SOLICITED, OVERRIDE = 0x80, 0x40, 0x20
HOP_LIMIT = 255  # of neighbour discovery: none that was forwarded has it
ECHO_HOPS = 64
UNSPECIFIED = bytes(16)
ALL_NODES = b"\xff\x02" + bytes(13) + b"\x01"
_SOLICITED_NODE = b"\xff\x02" + bytes(9) + b"\x01\xff"
_MAX_OPTIONS = 16


class Solicitation(NamedTuple):
    source: bytes  # all zeros when the address is tried out (RFC 4862 5.4)
    target: bytes
    mac: bytes | None  # of the source, where it says so


def solicited_node(address: bytes) -> bytes:
    """The multicast group of an IPv6 address (RFC 4291 2.7.1)."""
    return _SOLICITED_NODE + address[13:]


def is_solicitation(packet: Buffer) -> bool:
    """Whether it claims to be one."""
    return len(packet) > IPV6_LENGTH and packet[6] == ICMPV6 and packet[IPV6_LENGTH] == SOLICITATION


def parse_solicitation(packet: Buffer) -> Solicitation:
    """Raises Malformed unless RFC 4861 7.1.1 holds."""
    message = _icmp6(packet)
    if packet[7] != HOP_LIMIT or message[0] != SOLICITATION or message[1] or len(message) < 24:
        raise Malformed("not a neighbour solicitation")
    source, destination, target = bytes(packet[8:24]), bytes(packet[24:40]), bytes(message[8:24])
    mac = _source_link(message[24:])
    if target[0] == 0xFF or destination not in (target, solicited_node(target)):
        raise Malformed("neighbour solicitation for another address than it was sent to")
    if source[0] == 0xFF or (source == UNSPECIFIED and (mac is not None or destination == target)):
        raise Malformed("neighbour solicitation from no machine's address")
    return Solicitation(source, target, mac)


def build_advertisement(mac: bytes, asked: Solicitation) -> bytes:
    """`mac`, a router, has the target. An address that was only tried out is answered to all nodes."""
    tried = asked.source == UNSPECIFIED
    destination = ALL_NODES if tried else asked.source
    flags = ROUTER | OVERRIDE | (0 if tried else SOLICITED)
    body = bytes((flags, 0, 0, 0)) + asked.target + bytes((TARGET_LINK, 1)) + mac
    head = bytes((ADVERTISEMENT, 0))
    pseudo = pseudo6(asked.target + destination, 4 + len(body))
    return b"".join(
        (
            *(b"\x60\0\0\0", (4 + len(body)).to_bytes(2), bytes((ICMPV6, HOP_LIMIT))),
            *(asked.target, destination, head, checksum(pseudo, head, b"\0\0", body), body),
        )
    )


def echo_reply(packet: Buffer) -> bytes:
    """The answer to an echo request. Raises Malformed for anything else, and for a fragment of one."""
    if packet and packet[0] >> 4 == 6:
        return _echo6(packet)
    length = parse(packet).length
    if packet[0] != 0x45 or not intact(packet[:IPV4_LENGTH]):
        raise Malformed("IPv4 header with options, or with a wrong checksum")
    message = packet[IPV4_LENGTH:length]
    whole = not int.from_bytes(packet[6:8]) & 0x3FFF
    if packet[9] != ICMP or not whole or len(message) < 8 or not intact(message):
        raise Malformed("not a whole ICMP message")
    if message[0] != ECHO4 or message[1] or not 0 < packet[12] < 224:
        raise Malformed("not an echo request of one machine")
    rest = bytes(message[4:])
    head = bytes(packet[:8]) + bytes((ECHO_HOPS, ICMP, 0, 0)) + bytes(packet[16:20]) + bytes(packet[12:16])
    return b"".join(
        (head[:10], checksum(head), head[12:], bytes((ECHO4_REPLY, 0)), checksum(b"\0\0", rest), rest)
    )


def _echo6(packet: Buffer) -> bytes:
    message = _icmp6(packet)
    if message[0] != ECHO6 or message[1] or packet[8] == 0xFF or packet[8:24] == UNSPECIFIED:
        raise Malformed("not an echo request of one machine")
    head, rest = bytes((ECHO6_REPLY, 0)), bytes(message[4:])
    addresses = bytes(packet[24:40]) + bytes(packet[8:24])
    pseudo = pseudo6(addresses, len(message))
    return b"".join(
        (bytes(packet[:7]), bytes((ECHO_HOPS,)), addresses, head, checksum(pseudo, head, b"\0\0", rest), rest)
    )


def _icmp6(packet: Buffer) -> Buffer:
    """The ICMPv6 message right behind the IPv6 header, its checksum verified (RFC 4443 2.3)."""
    inner = parse(packet)
    if inner.version != 6 or packet[6] != ICMPV6 or inner.length < IPV6_LENGTH + 8:
        raise Malformed("not an ICMPv6 message")
    message = packet[IPV6_LENGTH : inner.length]
    if not intact(pseudo6(inner.addresses, len(message)), message):
        raise Malformed("ICMPv6 checksum wrong")
    return message


def pseudo6(addresses: bytes, length: int) -> bytes:
    """The pseudo-header of an ICMPv6 message of that length (RFC 8200 8.1), for its checksum."""
    return addresses + length.to_bytes(4) + bytes((0, 0, 0, ICMPV6))


def _source_link(options: Buffer) -> bytes | None:
    """The source's MAC from the options (RFC 4861 4.6). Raises Malformed where one has no length."""
    found: bytes | None = None
    for _ in range(_MAX_OPTIONS):
        if not options:
            return found
        length = options[1] * 8 if len(options) > 1 else 0
        if not 0 < length <= len(options):
            raise Malformed("neighbour discovery option without a length, or beyond the message")
        if options[0] == SOURCE_LINK and found is None:
            found = bytes(options[2:8])
        options = options[length:]
    raise Malformed("more neighbour discovery options than anyone needs")
