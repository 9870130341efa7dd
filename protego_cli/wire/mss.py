"""TCP's maximum segment size, lowered in passing: no end of a connection sends more than fits a tunnel.

Only a SYN says it (RFC 9293 3.7.1), in option 2; the checksum follows the change alone (RFC 1624), so one
that was wrong stays wrong. A SYN without the option means 536 or 1,220 bytes, and passes as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from protego_cli.wire.checksum import checksum
from protego_cli.wire.inner import IPV6_LENGTH, TCP, Buffer

SYN: Final = 0x02
FLAGS, CHECKSUM, OPTIONS = 13, 16, 20  # offsets in the TCP header
END, NO_OPERATION, MAXIMUM_SEGMENT_SIZE = 0, 1, 2
HEADERS4, HEADERS6 = 40, 60  # IP and TCP without options (RFC 6691)
_NO_SYN: Final = bytes(flags for flags in range(256) if not flags & SYN)


class Ceiling(NamedTuple):
    """The largest MSS, by IP version."""

    v4: int
    v6: int


def flags_at(packet: Buffer) -> int:
    """The offset of the TCP flags in an IP packet that `inner.parse` accepts; 0 where there are none."""
    if packet[0] >> 4 == 4:
        length = int.from_bytes(packet[2:4])
        start = (packet[0] & 15) * 4 if packet[9] == TCP and not int.from_bytes(packet[6:8]) & 0x1FFF else 0
    else:
        length = IPV6_LENGTH + int.from_bytes(packet[4:6])
        start = IPV6_LENGTH if packet[6] == TCP else 0
    return start + FLAGS if start and length >= start + OPTIONS else 0


def any_syn(flags: bytes) -> bool:
    """Whether one of these bytes of TCP flags has SYN set."""
    return bool(flags.translate(None, _NO_SYN))


def clamp_row(packets: Sequence[bytes], ceiling: Ceiling) -> Sequence[bytes]:
    """`clamp` for packets of one length, which `inner.parse` accepts: one look at all their flags."""
    first = packets[0][0]
    at = (first & 15) * 4 + FLAGS if first >> 4 == 4 else IPV6_LENGTH + FLAGS
    alike = at < len(packets[0]) and len({packet[0] for packet in packets}) == 1
    if alike and not any_syn(bytes([packet[at] for packet in packets])):
        return packets
    return [clamp(packet, ceiling) for packet in packets]


def clamp(packet: bytes, ceiling: Ceiling) -> bytes:
    """The packet, with an MSS no larger than the ceiling if it is a SYN that has one."""
    if packet[9 if packet[0] >> 4 == 4 else 6] != TCP:  # soon enough for most that are none
        return packet
    flags = flags_at(packet)
    if not flags or not packet[flags] & SYN:
        return packet
    v4 = packet[0] >> 4 == 4
    start, most = flags - FLAGS, ceiling.v4 if v4 else ceiling.v6
    length = int.from_bytes(packet[2:4]) if v4 else IPV6_LENGTH + int.from_bytes(packet[4:6])
    at = _option(packet[start : min(start + (packet[start + 12] >> 4) * 4, length)])
    if not at or int.from_bytes(packet[start + at : start + at + 2]) <= most:
        return packet
    changed = bytearray(packet)
    changed[start + at : start + at + 2] = most.to_bytes(2)
    words = slice(start + at - (at & 1), start + at + 2 + (at & 1))  # whole words of the checksum
    place = slice(start + CHECKSUM, start + CHECKSUM + 2)
    before = bytes(255 - byte for byte in packet[place] + packet[words])
    changed[place] = checksum(before, changed[words])
    return bytes(changed)


def _option(header: bytes) -> int:
    """The offset of the MSS in a TCP header; 0 where it has none, or options that make no sense."""
    at = OPTIONS
    while at + 1 < len(header) and header[at] != END:
        if header[at] == NO_OPERATION:
            at += 1
            continue
        size = header[at + 1]
        if header[at] == MAXIMUM_SEGMENT_SIZE:
            return at + 2 if size == 4 and at + 4 <= len(header) else 0
        if size < 2:
            return 0
        at += size
    return 0
