"""Tags: what nodes of the fabric say to one another beside packets.

A tag is a UDP datagram on a GPN's ESP port, or on the VXLAN port of a GPN or GEN, whose first four bytes
are an SPI of 1-255 (reserved, RFC 4303 2.1, so never ESP; and a VXLAN header without its I flag, so never
VXLAN). Layout, network order:

     0        4         12       14     16         32
     | kind   | nonce   | length | port | MAC (16) | address (length) | packet

`length` is that of the address (0, 4 or 16); `port` and address are the outer source for ORIGIN and RETURN,
else 0.
The MAC is HMAC-SHA-256 under the pair's key, truncated to 16 bytes, over the header without the MAC, the
address and the first 16 bytes of the packet (its ESP header: the rest is authenticated by ESP itself).

Kinds: PROBE and PROBE_ECHO (the heartbeat), BARRIER and BARRIER_ECHO (all before it has been sent on),
ORIGIN (a packet follows whose outer source differs from the one steered), RETURN (a packet follows that a
GIN's kernel passed on by another packet's SPI; again with its outer source). What begins with a 7 is no tag,
but a bundle (`bundle.py`).

This layer has no cryptography: the callers pass `mac` in, which is `crypto.mac.hmac_sha256`.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from protego_cli.errors import Malformed

Mac = Callable[[bytes, bytes], bytes]
"""(key, data) -> at least 16 bytes that only a holder of the key can compute."""

MAC_LENGTH = 16
TAG_LENGTH = 32  # of the header, MAC included
ORIGIN_LENGTH = TAG_LENGTH + 4  # what an ORIGIN tag with an IPv4 source puts before its packet
COVERED = 16  # bytes of the packet under the MAC
MAX_RESERVED_SPI = 255

_HEADER = struct.Struct("!IQHH")


class TagKind(IntEnum):
    PROBE = 1
    PROBE_ECHO = 2
    BARRIER = 3
    BARRIER_ECHO = 4
    ORIGIN = 5
    RETURN = 6


class Tag(NamedTuple):
    kind: TagKind
    nonce: int  # 64 bits; an echo bears that of the tag it answers
    address: bytes = b""
    port: int = 0
    packet: bytes = b""

    def echo(self) -> Tag:
        """The answer to a PROBE or BARRIER."""
        kind = TagKind.PROBE_ECHO if self.kind is TagKind.PROBE else TagKind.BARRIER_ECHO
        return Tag(kind, self.nonce)


def is_tag(first4: bytes | bytearray | memoryview) -> bool:
    """Whether a datagram that begins so is a tag: an SPI of 1-255."""
    return len(first4) >= 4 and 1 <= int.from_bytes(first4[:4]) <= MAX_RESERVED_SPI


def seal_tag(key: bytes, tag: Tag, mac: Mac) -> bytes:
    """The datagram of `tag`."""
    header = _HEADER.pack(tag.kind, tag.nonce, len(tag.address), tag.port)
    code = mac(key, b"".join((header, tag.address, tag.packet[:COVERED])))[:MAC_LENGTH]
    return b"".join((header, code, tag.address, tag.packet))


def open_tag(key: bytes, data: bytes | bytearray | memoryview, mac: Mac) -> Tag:
    """The tag in a datagram. Raises Malformed, for a wrong MAC as well."""
    if len(data) < TAG_LENGTH:
        raise Malformed("tag shorter than its header")
    number, nonce, length, port = _HEADER.unpack_from(data)
    body = TAG_LENGTH + length
    if length not in (0, 4, 16) or len(data) < body:
        raise Malformed("tag with an impossible address length")
    address = bytes(data[TAG_LENGTH:body])
    covered = b"".join((data[: _HEADER.size], address, data[body : body + COVERED]))
    if not hmac.compare_digest(mac(key, covered)[:MAC_LENGTH], data[_HEADER.size : TAG_LENGTH]):
        raise Malformed("tag with a wrong MAC")
    try:
        kind = TagKind(number)
    except ValueError:
        raise Malformed("tag of an unknown kind") from None
    if kind in (TagKind.ORIGIN, TagKind.RETURN):
        if not length or len(data) < body + COVERED:
            raise Malformed(f"{kind.name} tag without address or packet")
    elif length or port or len(data) != body:
        raise Malformed("tag with an address or packet that its kind does not bear")
    return Tag(kind, nonce, address, port, bytes(data[body:]))
