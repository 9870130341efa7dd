"""Cutting an IPv4 packet into fragments (RFC 791 3.2), itself perhaps a fragment.

All but the last carry a multiple of 8 bytes. Fragments after the first keep only the options whose "copied"
flag is set (RFC 791 3.1). IPv6 packets are cut by their senders alone (RFC 8200 4.5).
"""

from __future__ import annotations

from protego_cli.errors import Malformed
from protego_cli.wire.checksum import checksum, intact
from protego_cli.wire.inner import IPV4_LENGTH, Buffer, parse

DONT_FRAGMENT, MORE, OFFSET = 0x4000, 0x2000, 0x1FFF
END, NO_OPERATION, COPIED = 0, 1, 0x80


def may_be_cut(packet: Buffer) -> bool:
    """Whether an IP packet's sender lets routers fragment it."""
    return packet[0] >> 4 == 4 and not int.from_bytes(packet[6:8]) & DONT_FRAGMENT


def fragment(packet: Buffer, mtu: int) -> list[bytes]:
    """The fragments, none longer than `mtu`. Raises Malformed for what must not be sent on: a header whose
    checksum or options are wrong, or an offset beyond what IP can carry.
    """
    length = parse(packet).length
    header_end = (packet[0] & 15) * 4
    if not intact(packet[:header_end]):
        raise Malformed("IPv4 header with a wrong checksum")
    if length <= mtu:
        return [bytes(packet[:length])]
    field = int.from_bytes(packet[6:8])
    offset, last_more = (field & OFFSET) * 8, field & MORE
    if offset + length - header_end > 0xFFFF:
        raise Malformed("IPv4 fragment beyond the end of any packet")
    head = bytes(packet[:header_end])
    later = head[:IPV4_LENGTH] + _copied(head[IPV4_LENGTH:])
    made, at = [], header_end
    while at < length:
        room = mtu - len(head)
        end = length if length - at <= room else at + room // 8 * 8
        if end <= at:
            raise Malformed(f"no room for fragments in {mtu} bytes")
        more = MORE if end < length else last_more
        made.append(_build(head, packet[at:end], (offset + at - header_end) // 8 | more))
        head, at = later, end
    return made


def _build(head: bytes, data: Buffer, field: int) -> bytes:
    start = b"".join(
        (
            *(bytes((0x40 | len(head) // 4,)), head[1:2], (len(head) + len(data)).to_bytes(2), head[4:6]),
            *(field.to_bytes(2), head[8:10]),
        )
    )
    return b"".join((start, checksum(start, b"\0\0", head[12:]), head[12:], data))


def _copied(options: bytes) -> bytes:
    """Those that every fragment bears."""
    kept, at = b"", 0
    while at < len(options) and options[at] != END:
        if options[at] == NO_OPERATION:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            raise Malformed("IPv4 option without a length, or beyond the header")
        if options[at] & COPIED:
            kept += options[at : at + size]
        at += size
    return kept + bytes(-len(kept) % 4)
