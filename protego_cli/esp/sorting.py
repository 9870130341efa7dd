"""Short batches worked on together, and their packets sorted by size: what is mixed becomes rows of columns.

A row of packets of one size takes a few C calls for each thing that is done about it; where sizes are mixed,
each packet takes a dozen steps of its own. Most of what the Internet carries is of a few sizes, and the order
matters only to what is sent.

1. `sort` puts packets of one size side by side, and remembers the order in which they came.
2. Whoever works on them works on a row for each size.
3. `runs` puts frames of all sizes into that order again: each is what one segmented send can carry, as its
   batch was, or several that go with one. `restored` does so packet by packet.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from protego_cli.esp.joining import Batch
from protego_cli.esp.outbox import MANY
from protego_cli.esp.slices import MAX_BUFFERS

SHORT = 8  # packets in a batch, on average, up to which batches are worked on together
ENOUGH = 16  # packets of each size, on average, from which it pays to sort them
MAX_SIZES: Final = MAX_BUFFERS  # each row's frames have a buffer of their own

T = TypeVar("T")

Joined = bytes | bytearray
Run = tuple[Joined, int, int]
"""Segments of a size, the last perhaps shorter; the size; how many."""


class Sorted(NamedTuple):
    """Packets of several batches."""

    order: list[tuple[int, int]]  # a size, and how many packets of it came one behind another
    rows: dict[int, bytes]  # packets of each size, side by side
    packets: int

    def restored(self, of: Mapping[int, Sequence[T]]) -> list[T]:
        """What has become of the packets of each size, in the order in which these came."""
        following = {size: iter(row) for size, row in of.items()}
        found: list[T] = []
        for size, count in self.order:
            found += islice(following[size], count)
        return found

    def allotted(self, to: Sequence[T]) -> dict[int, list[T]]:
        """What belongs to the packets in the order in which they came, by their size."""
        found: dict[int, list[T]] = {size: [] for size in self.rows}
        start = 0
        for size, count in self.order:
            stop = start + count
            found[size] += to[start:stop]
            start = stop
        return found

    def runs(self, frames: Mapping[int, tuple[Joined, int]]) -> list[Run]:
        """The frames of each size, and their length, one behind another; a shorter one ends a run."""
        found: list[Run] = []
        starts = dict.fromkeys(frames, 0)
        size = 0  # of the last run, while it may go on
        for came, count in self.order:
            data, length = frames[came]
            start = starts[came]
            starts[came] = stop = start + count * length
            part = data[start:stop]
            if length == size or (count == 1 and length < size):
                run, _, packets = found[-1]
                run += part
                found[-1] = run, size, packets + count
                size = size if length == size and len(run) < MANY else 0
            else:
                found.append((part, length, count))
                size = length if len(part) < MANY else 0
        return found


def short(batches: Sequence[Batch]) -> bool:
    """Whether several batches had better be worked on together."""
    if len(batches) == 1 or not all(size for _, size in batches):
        return False
    return sum([len(view) // size for view, size in batches]) <= SHORT * len(batches)


def packets(batches: Sequence[Batch]) -> list[bytes]:
    """The packets of short batches, in order."""
    found: list[bytes] = []
    for view, size in batches:
        found += _split(size, len(view)).unpack(view)
    return found


def sort(batches: Sequence[Batch]) -> Sorted | None:
    """Whole packets by their size; None where that gains nothing: with many sizes, or few packets of each."""
    parts: defaultdict[int, list[memoryview]] = defaultdict(list)
    order: list[tuple[int, int]] = []
    whole = 0
    for view, size in batches:
        count, tail = divmod(len(view), size)
        if not count or len(parts) > MAX_SIZES:
            return None
        whole += count
        parts[size].append(view[:-tail] if tail else view)
        order.append((size, count))
        if tail:
            whole += 1
            parts[tail].append(view[-tail:])
            order.append((tail, 1))
    if len(parts) > MAX_SIZES or whole < ENOUGH * len(parts):
        return None
    return Sorted(order, {size: b"".join(part) for size, part in parts.items()}, whole)


@lru_cache(maxsize=4096)
def _split(size: int, length: int) -> struct.Struct:
    """The packets of a batch of so many bytes."""
    count, rest = divmod(length, size)
    return struct.Struct(f"{size}s" * count + (f"{rest}s" if rest else ""))
