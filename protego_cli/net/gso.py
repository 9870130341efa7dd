"""Planning of segmented sends: pure functions, no system calls.

One `sendmsg` with UDP_SEGMENT carries a buffer that the kernel (or the card) cuts into datagrams of one
size, the last perhaps shorter: at most 64 of them and 65,507 bytes in all. One `recvmsg_into` with UDP_GRO
returns such a buffer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS of the kernels before 6.9, which are the strictest
MAX_BYTES = 65_507  # the largest UDP payload over IPv4

K = TypeVar("K", bound=Hashable)


def segments_per_send(size: int) -> int:
    """How many datagrams of `size` bytes one send may carry; at least one."""
    return max(1, min(MAX_SEGMENTS, MAX_BYTES // size)) if size > 0 else 1


def runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a row of datagrams into (start, stop) runs, each as long as one send can carry.

    Within a run all have one length, but for the last, which may be shorter. An empty datagram goes alone:
    as the tail of a segmented buffer it would vanish.
    """
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(lengths):
        size = lengths[start]
        full = start + segments_per_send(size)
        stop = start + 1
        while stop < min(len(lengths), full) and lengths[stop] == size and size:
            stop += 1
        if stop < min(len(lengths), start + MAX_SEGMENTS):
            room = MAX_BYTES - (stop - start) * size
            if 0 < lengths[stop] < size and lengths[stop] <= room:
                stop += 1
        found.append((start, stop))
        start = stop
    return found


def segments(view: memoryview, size: int) -> Iterator[memoryview]:
    """The datagrams of a received buffer, in order."""
    if len(view) <= size:
        yield view
    else:
        for start in range(0, len(view), size):
            yield view[start : start + size]


def grouped(view: memoryview, size: int, keys: Iterable[K]) -> Iterator[tuple[K, memoryview | bytes, int]]:
    """Sort the datagrams of a received buffer by `keys` (one per datagram): (key, buffer, count) of each key.

    The order within a key is kept, so each buffer is again segments of `size`, the last perhaps shorter: the
    only shorter one is the last of all. Datagrams that lie side by side are not copied.
    """
    places: dict[K, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    for key, found in places.items():
        first, count = found[0], len(found)
        if found[-1] - first + 1 == count:
            yield key, view[first * size : (first + count) * size], count
        else:
            yield key, b"".join([view[place * size : (place + 1) * size] for place in found]), count
