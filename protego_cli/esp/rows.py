"""Rows of packets of one size: what takes them apart and puts them together, in one C call."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from operator import add
from typing import Final, NamedTuple

from protego_cli.wire.inner import Buffer

HEADER_LENGTH: Final = 8  # of an ESP packet: SPI, sequence number


Opened = tuple[list[bytes], Sequence[int]]
"""The plaintexts, trailer included, in order; the places in the row of those packets."""


class SizedRow(NamedTuple):
    """Packets of one size, what they bear as sequence numbers, and where their plaintexts are to go."""

    sequence: Sequence[int]
    data: Buffer
    size: int
    slots: Sequence[memoryview]


def split(data: Buffer, size: int, count: int) -> tuple[bytes, ...]:
    """So many packets of one size."""
    return layout(f"{size}s", count).unpack_from(data)


def padded(data: Buffer, size: int, count: int, start: int, length: int, trailer: bytes) -> list[bytes]:
    """The `length` bytes at `start` of each of so many rows of `size` bytes, with this trailer."""
    inners = layout(f"{start}x{length}s{size - start - length}x", count).unpack_from(data)
    return list(map(add, inners, repeat(trailer)))


@lru_cache(maxsize=1024)
def layout(packet: str, count: int) -> struct.Struct:
    """`count` times the same fields, in network order; what an argument has beyond its field is cut off."""
    return struct.Struct("!" + packet * count)
