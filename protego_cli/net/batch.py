"""What sockets hand out: one or more datagrams of one sender, side by side."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

Address = tuple[str, int]
Buffer = bytes | bytearray | memoryview

LONG = 8  # packets: with more of them there is nothing to gain by working on several batches together


class Batch(NamedTuple):
    """What one receive returned; `view` is valid until the next receive on the same socket."""

    view: memoryview  # segments of `size` bytes, the last perhaps shorter
    size: int  # len(view) for a single datagram
    source: Address
    tos: int = 0


new_batch = partial(tuple.__new__, Batch)  # half of what `Batch` takes, which looks at names
