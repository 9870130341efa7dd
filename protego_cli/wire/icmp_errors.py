"""The ICMP errors that a router owes the sender of a packet that goes no further.

Too big for the next hop: "fragmentation needed" with the MTU (RFC 792, RFC 1191 4) for IPv4, "packet too big"
(RFC 4443 3.2) for IPv6. Out of hops: "time exceeded" (RFC 1812 5.3.1, RFC 4443 3.3). Each quotes as much of
the packet as it may. None answers a packet that RFC 1812 4.3.2.7 and RFC 4443 2.4 exempt: one with a wrong
header checksum, another ICMP error, a fragment but the first, one that no single machine sent or was to get.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from protego_cli.errors import Malformed
from protego_cli.wire.checksum import checksum, intact
from protego_cli.wire.icmp import pseudo6
from protego_cli.wire.inner import ICMP, ICMPV6, IPV4_LENGTH, IPV6_LENGTH, Buffer, parse, parse_transport

LONGEST4, LONGEST6 = 576, 1280  # of a whole error (RFC 1812 4.3.2.3, RFC 4443 2.4)
HOPS = 64
CONTROL = 0xC0  # TOS of what routers say (RFC 1812 4.3.2.5)
DONT_FRAGMENT = b"\x40\x00"
_ERRORS4 = frozenset((3, 4, 5, 11, 12))  # and redirects, which are treated like them
_QUERIES6 = 128  # ICMPv6 types below are errors
_REDIRECT6 = 137


class Fault(NamedTuple):
    """What is wrong: type and code in ICMP and in ICMPv6, and the number that goes with them."""

    v4: tuple[int, int]
    v6: tuple[int, int]
    number: int = 0


TIME_EXCEEDED: Final = Fault((11, 0), (3, 0))


def too_big(mtu: int) -> Fault:
    """More than fits the next hop."""
    return Fault((3, 4), (2, 0), mtu)


def error_about(packet: Buffer, fault: Fault, source: bytes | None) -> bytes | None:
    """The IP packet to its sender, from `source`, or as if from its destination where that is None.

    `packet` is one that `inner.parse` accepts; None where no error may be sent.
    """
    inner = parse(packet)
    half = len(inner.addresses) // 2
    sender, destination = inner.addresses[:half], inner.addresses[half:]
    if not (_one_machine(sender) and _one_machine(destination)) or not _may_be_answered(packet):
        return None
    source = source or destination
    if inner.version == 4:
        quote = bytes(packet[: min(inner.length, LONGEST4 - IPV4_LENGTH - 8)])
        message = _message(b"", fault.v4, fault.number, quote)
        head = b"".join(
            (
                *(bytes((0x45, CONTROL)), (IPV4_LENGTH + len(message)).to_bytes(2), b"\0\0", DONT_FRAGMENT),
                *(bytes((HOPS, ICMP)), b"\0\0", source, sender),
            )
        )
        return b"".join((head[:10], checksum(head), head[12:], message))
    quote = bytes(packet[: min(inner.length, LONGEST6 - IPV6_LENGTH - 8)])
    length = 8 + len(quote)
    message = _message(pseudo6(source + sender, length), fault.v6, fault.number, quote)
    return b"".join((b"\x60\0\0\0", length.to_bytes(2), bytes((ICMPV6, HOPS)), source, sender, message))


def _message(pseudo: bytes, kind: tuple[int, int], number: int, quote: bytes) -> bytes:
    head, rest = bytes(kind), number.to_bytes(4) + quote
    return head + checksum(pseudo, head, b"\0\0", rest) + rest


def _one_machine(address: bytes) -> bool:
    if len(address) == 4:
        return 0 < address[0] < 224 and address[0] != 127
    return address[0] != 0xFF and any(address[:15])


def _may_be_answered(packet: Buffer) -> bool:
    inner = parse(packet)
    if inner.version == 4:
        later = int.from_bytes(packet[6:8]) & 0x1FFF
        if later or not intact(packet[: (packet[0] & 15) * 4]):
            return False
    try:
        transport = parse_transport(packet, inner)
    except Malformed:
        return False
    if transport.protocol not in (ICMP, ICMPV6):
        return True
    if transport.source_port is None:  # a later IPv6 fragment, or no whole message
        return False
    kind = transport.source_port >> 8
    if transport.protocol == ICMP:
        return kind not in _ERRORS4
    return kind >= _QUERIES6 and kind != _REDIRECT6
