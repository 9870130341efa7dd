"""The inner IP packet of a tunnel: just the fields that selectors and delivery need.

`parse` reads what every packet is judged by: version, length, addresses. `parse_transport` reads protocol
and ports, for the selectors that ask for them; it walks IPv6 extension headers, a bounded number.

RFC 791, RFC 8200 4; RFC 4301 4.4.1.1 (ports that are not available are OPAQUE: fragments but the first, and
protocols without ports; ICMP's type and code stand in for a port).
"""

from __future__ import annotations

from typing import NamedTuple

from protego_cli.errors import Malformed

IPV4, IPV6 = 4, 41  # IP protocol numbers of the tunnelled packet (ESP's next header)
IPV4_LENGTH, IPV6_LENGTH = 20, 40
MAX_EXTENSIONS = 8

HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS = 0, 43, 44, 51, 60
ICMP, TCP, UDP, DCCP, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 33, 58, 132, 136
_WITH_PORTS = frozenset((TCP, UDP, DCCP, SCTP, UDPLITE))

Buffer = bytes | bytearray | memoryview


class Inner(NamedTuple):
    """`addresses` is source and destination side by side: 8 bytes of IPv4, 32 of IPv6."""

    version: int
    length: int  # of the whole packet by its own header; what lies behind is padding
    addresses: bytes


class Transport(NamedTuple):
    """What selectors match beside addresses; ports are None where they are OPAQUE."""

    protocol: int
    source_port: int | None
    dest_port: int | None


def parse(data: Buffer) -> Inner:
    """The IP header's fields. Raises Malformed when lengths disagree."""
    size = len(data)
    version = data[0] >> 4 if size else 0
    if version == 4 and size >= IPV4_LENGTH:
        header = (data[0] & 15) * 4
        length = int.from_bytes(data[2:4])
        if not IPV4_LENGTH <= header <= length <= size:
            raise Malformed("IPv4 packet whose lengths disagree")
        return Inner(4, length, bytes(data[12:20]))
    if version == 6 and size >= IPV6_LENGTH:
        payload = int.from_bytes(data[4:6])
        if IPV6_LENGTH + payload > size or (not payload and data[6] == HOP_BY_HOP):  # RFC 2675: no jumbograms
            raise Malformed("IPv6 packet whose lengths disagree")
        return Inner(6, IPV6_LENGTH + payload, bytes(data[8:40]))
    raise Malformed("neither an IPv4 nor an IPv6 packet")


def parse_transport(data: Buffer, inner: Inner) -> Transport:
    """Protocol and ports of a packet that `parse` accepted. Raises Malformed for a broken header chain."""
    if inner.version == 4:
        offset = int.from_bytes(data[6:8]) & 0x1FFF
        return _ports(data[: inner.length], data[9], (data[0] & 15) * 4, first=not offset)
    return _walk(data[: inner.length])


def _walk(data: Buffer) -> Transport:
    """Follow the extension headers (RFC 8200 4) to the upper protocol."""
    protocol, at, first = data[6], IPV6_LENGTH, True
    for _ in range(MAX_EXTENSIONS):
        if protocol not in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS) or not first:
            return _ports(data, protocol, at, first=first)
        if len(data) < at + 8:
            raise Malformed("IPv6 extension header beyond the packet")
        if protocol == FRAGMENT:
            first = not int.from_bytes(data[at + 2 : at + 4]) >> 3
            length = 8
        elif protocol == AUTHENTICATION:
            length = (data[at + 1] + 2) * 4  # RFC 4302 2.2
        else:
            length = (data[at + 1] + 1) * 8
        protocol, at = data[at], at + length
        if at > len(data):
            raise Malformed("IPv6 extension header longer than the packet")
    raise Malformed("more IPv6 extension headers than anyone needs")


def _ports(data: Buffer, protocol: int, at: int, *, first: bool) -> Transport:
    if first and protocol in _WITH_PORTS and len(data) >= at + 4:
        return Transport(protocol, int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 2 : at + 4]))
    if first and protocol in (ICMP, ICMPV6) and len(data) >= at + 2:
        kind = int.from_bytes(data[at : at + 2])  # type and code, RFC 7296 3.13.1
        return Transport(protocol, kind, kind)
    return Transport(protocol, None, None)
