"""Bundles: short batches of packets in one datagram, from a GIN or GEN to a GPN.

A bundle begins with a reserved SPI like a tag (`tags.py`), so it is neither ESP nor VXLAN. In network order:

     0          4           6                            6 + 4 * batches
     | kind (7) | batches   | size, length of each (2+2) | their packets | 0 to 3 bytes of zero

A batch is packets of `size` bytes, the last perhaps shorter, `length` bytes in all. What is within a bundle
means what it would mean by itself, in that order; but a bundle within a bundle means nothing. There is no
MAC, as there is none on the packets: what it takes to send one is an address of the fabric.

A bundle's length is one more than a multiple of four. No ESP has such a length, so among datagrams that a
card has merged, bundles need not be looked for as long as all have others.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from protego_cli.errors import Malformed

KIND = 7  # beside those of `tags.TagKind`
WORD = KIND.to_bytes(4)
FIXED_LENGTH = 6
BATCH_LENGTH = 4  # what each batch takes in the header
LEAST_LENGTH = FIXED_LENGTH + BATCH_LENGTH  # of a header
MAX_BATCHES = 64
MAX_PACKETS = 8  # of a batch: a longer one goes by itself
PADDING = 3  # at most

_PADDING = (b"\0", b"", b"\0\0\0", b"\0\0")  # by the length before it, modulo four


def could_be(length: int) -> bool:
    """Whether a datagram of this length could be a bundle."""
    return length % 4 == 1


def build(shapes: Sequence[int], length: int) -> tuple[bytes, bytes]:
    """What goes before and behind the packets: `shapes` is size, length, size, length, ... of the batches,
    `length` that of all of them together.
    """
    header = _header(len(shapes)).pack(KIND, len(shapes) // 2, *shapes)
    return header, _PADDING[(len(header) + length) % 4]


def parse(view: memoryview) -> list[tuple[memoryview, int]]:
    """The batches, and the size of each one's packets. Raises Malformed."""
    if len(view) < LEAST_LENGTH:
        raise Malformed("bundle shorter than the least")
    batches = int.from_bytes(view[4:6])
    start = FIXED_LENGTH + BATCH_LENGTH * batches
    if not 0 < batches <= MAX_BATCHES or len(view) < start:
        raise Malformed("bundle with an impossible number of batches")
    shapes: tuple[int, ...] = _header(2 * batches).unpack_from(view)[2:]
    found = []
    for size, length in zip(shapes[::2], shapes[1::2], strict=True):
        if not 0 < size <= length <= size * MAX_PACKETS:
            raise Malformed("bundle with an impossible batch")
        found.append((view[start : start + length], size))
        start += length
    if not 0 <= len(view) - start <= PADDING:
        raise Malformed("bundle whose batches are not as long as it says")
    return found


@lru_cache(maxsize=2 * MAX_BATCHES)
def _header(shapes: int) -> struct.Struct:
    return struct.Struct(f"!IH{shapes}H")
