"""Strides through rows of datagrams, side by side in one buffer: whether a number in them counts up, and the
same bytes written into each.

As in `columns.py`, a strided `memoryview` is one column, which C reads, compares and writes at once.
"""

from __future__ import annotations

import struct
from functools import cache, lru_cache

from protego_cli.wire.columns import Buffer

_NUMBER = struct.Struct("!I")


def counting(data: Buffer, size: int, count: int, start: int) -> range | None:
    """The 32-bit numbers at `start`, which is even, of `count` datagrams of `size` bytes, if they count up by
    one, within one high half. None where they do not, or have not been looked at: rows of odd size.
    """
    (first,) = _NUMBER.unpack_from(data, start)
    low = first & 0xFFFF
    if size % 2:
        return None
    words, step, at = memoryview(data)[: size * count].cast("H"), size // 2, start // 2
    if words[at + 1 :: step] != all_halves()[low : low + count]:
        return None
    if words[at : at + (count - 1) * step : step] != words[at + step :: step]:
        return None
    return range(first, first + count)


@cache
def all_halves() -> memoryview:
    """Every number of 16 bits in network order, ascending; two bytes each."""
    return memoryview(struct.pack("!65536H", *range(1 << 16))).cast("H")


def fill(view: memoryview, size: int, count: int, start: int, value: bytes) -> None:
    """Write `value` at `start` of each of `count` datagrams of `size` bytes; it may reach into the next."""
    whole = not (size | start | len(value)) % 2
    words = view.cast("H") if whole else view
    for column, same in _filling(size, count, start, value, 2 if whole else 1):
        words[column] = same


@lru_cache(maxsize=1024)
def _filling(
    size: int, count: int, start: int, value: bytes, width: int
) -> tuple[tuple[slice, memoryview], ...]:
    """Columns of that width, and what each is filled with."""
    filling = []
    for place in range(0, len(value), width):
        at, step = (start + place) // width, size // width
        same = memoryview(value[place : place + width] * count)
        filling.append((slice(at, at + (count - 1) * step + 1, step), same.cast("H") if width == 2 else same))
    return tuple(filling)
