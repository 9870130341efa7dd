"""One hop less: what a router does to a packet that it passes on (RFC 1812 5.3.1, RFC 8200 3).

The TTL, or hop limit, goes down by one. IPv4's checksum follows by what has changed alone (RFC 1624), so one
that was wrong stays wrong: the TTL is the upper half of its word, so the checksum grows by 0x0100, and what
is carried out of it comes in again below. 0xFFFF, which no sum gives, is 0.

A whole row goes by columns: hops and the upper bytes of all checksums, each through a table, and only those
checksums are looked at singly that may carry, one in 128. A column of a `bytearray` is taken out and put back
in a fourth of the time that one of a `memoryview` takes. A packet that has no hop left goes no further; where
a row has one, nothing is done to any.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from protego_cli.wire.inner import Buffer

TTL, HOP_LIMIT = 8, 7  # where they lie in a header
START, STOP = TTL, 12  # in an IPv4 header: TTL, protocol, checksum
_CHECKSUM: Final = 2  # behind the TTL
_LAST: Final = 1  # a TTL with which a packet may be delivered, but not passed on
_DOWN: Final = bytes((0, *range(255)))
_UP: Final = bytes((*range(1, 256), 0))


def spent(packet: Buffer) -> bool:
    """Whether an IP packet has no hop left."""
    return packet[TTL if packet[0] >> 4 == 4 else HOP_LIMIT] <= _LAST


def any_spent(data: bytearray, size: int, count: int, start: int) -> bool:
    """Whether one of `count` IP packets of one version, `size` bytes apart, has none left."""
    at = start + (TTL if data[start] >> 4 == 4 else HOP_LIMIT)
    return min(data[at : start + count * size : size]) <= _LAST


def forward(data: bytearray, size: int, count: int, start: int) -> bool:
    """Take a hop from each of `count` IP packets of one version, `size` bytes apart, the first at `start`.
    False, having done nothing, where one of them has none left.
    """
    if data[start] >> 4 == 4:
        return _forward4(data, size, count, start + TTL)
    at, stop = start + HOP_LIMIT, start + count * size
    left = data[at:stop:size].translate(_DOWN)
    if 0 in left:
        return False
    data[at:stop:size] = left
    return True


def forwarded(packet: bytes) -> bytes:
    """The same of one packet, which has a hop left."""
    data = bytearray(packet)
    forward(data, len(packet), 1, 0)
    return bytes(data)


def words(packets: Sequence[bytes], at: int = 0) -> Sequence[bytes] | None:
    """What `forward` makes of the bytes from `START` to `STOP` of IPv4 packets of any sizes, which begin at
    `at`; None where one has no hop left.
    """
    start, stop = at + START, at + STOP
    row = bytearray().join([packet[start:stop] for packet in packets])
    return _each(len(packets)).unpack(row) if _forward4(row, STOP - START, len(packets), 0) else None


def _forward4(data: bytearray, size: int, count: int, at: int) -> bool:
    """The first TTL lies at `at`."""
    sums, stop = at + _CHECKSUM, at + count * size
    left = data[at:stop:size].translate(_DOWN)
    if 0 in left:
        return False
    data[at:stop:size] = left
    uppers = data[sums:stop:size].translate(_UP)
    data[sums:stop:size] = uppers
    if 0 in uppers:
        _carry(data, size, sums, uppers)
    if 255 in uppers:
        _wrap(data, size, sums, uppers)
    return True


def _carry(data: bytearray, size: int, at: int, uppers: bytearray) -> None:
    """Of sums whose upper byte was 0xFF the lower one grows; both, where it was 0xFF, too."""
    place = uppers.find(0)
    while place >= 0:
        start = at + place * size
        data[start : start + 2] = (data[start + 1] + 1).to_bytes(2)
        place = uppers.find(0, place + 1)


def _wrap(data: bytearray, size: int, at: int, uppers: bytearray) -> None:
    """What has become 0xFFFF is 0."""
    place = uppers.find(255)
    while place >= 0:
        start = at + place * size
        if data[start + 1] == 255:
            data[start : start + 2] = b"\0\0"
        place = uppers.find(255, place + 1)


@lru_cache(maxsize=1024)
def _each(count: int) -> struct.Struct:
    return struct.Struct(f"{STOP - START}s" * count)
