"""What a row of ESP packets, side by side in one buffer, begin with: SPI and sequence number (RFC 4303 2).

What is asked about a row is told in C, by columns as in `columns.py`: whether all have one SPI, and which
number is the highest. Nearly always each number is one above that before it, as in whatever a sender sends at
once. Comparing their lower halves with a piece of 0, 1, 2, ... tells so, and then the highest is the last;
`counting` has them all.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from protego_cli.wire.columns import alike, column
from protego_cli.wire.inner import Buffer
from protego_cli.wire.strides import all_halves

HEAD_LENGTH = 8
FEW = 8  # packets: of fewer each one's head is read
MAX_NUMBER = (1 << 32) - 1
_HEAD = struct.Struct("!II")
_SPI = ((0, 4),)


def one_spi(data: Buffer, size: int, count: int) -> tuple[int, int] | None:
    """SPI and highest sequence number of `count` packets of `size` bytes; None where they have several SPIs.

    The last may be shorter, but must have a number.
    """
    spi, number = _HEAD.unpack_from(data)
    if count == 1:
        return spi, number
    if count < FEW:
        heads: tuple[int, ...] = column(size, count, 8).unpack_from(data)
        last = max(heads)
        return (spi, last & MAX_NUMBER) if min(heads) >> 32 == last >> 32 else None
    if size % 4:  # none that anybody has sealed
        return (spi, _highest(data, size, count)) if alike(data, size, count, _SPI) else None
    end, spis, following, upper, upper_following, lower = _columns(size, count)
    row = memoryview(data)[:end]
    words = row.cast("I")
    if words[spis] != words[following]:
        return None
    halves, start = row.cast("H"), number & 0xFFFF
    if halves[lower] == all_halves()[start : start + count] and halves[upper] == halves[upper_following]:
        return spi, number + count - 1
    return spi, _highest(data, size, count)


def counting(data: Buffer, size: int, count: int) -> tuple[int, range] | None:
    """SPI and numbers of whole packets that have one SPI, and of which each has the number after the one
    before, within one upper half. None where they have not, or have not been looked at: rows of odd size.
    """
    if size % 4:
        return None
    spi, number = _HEAD.unpack_from(data)
    end, spis, following, upper, upper_following, lower = _columns(size, count)
    row = memoryview(data)[:end]
    words, halves, start = row.cast("I"), row.cast("H"), number & 0xFFFF
    if halves[lower] != all_halves()[start : start + count] or words[spis] != words[following]:
        return None
    return (spi, range(number, number + count)) if halves[upper] == halves[upper_following] else None


@lru_cache(maxsize=4096)
def _columns(size: int, count: int) -> tuple[int, slice, slice, slice, slice, slice]:
    words, halves = size // 4, size // 2
    last = count - 1
    return (
        last * size + HEAD_LENGTH,
        slice(0, last * words, words),
        slice(words, None, words),
        slice(2, 2 + last * halves, halves),
        slice(2 + halves, None, halves),
        slice(3, None, halves),
    )


def _highest(data: Buffer, size: int, count: int) -> int:
    numbers: tuple[int, ...] = column(size, count, 4).unpack_from(data, 4)
    return max(numbers)
