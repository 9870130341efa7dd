"""ESP on its way from a GPN to a peer through a GIN (`return = "gin"`).

    | inbound SPI (4) | VIP (4) | ESP packet |

The inbound SPI is that of the same CHILD_SA: the GIN steers it, so it knows the peer's address. It is above
255, so this is no tag; a GIN takes it only from a GPN's own address.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from protego_cli.wire.inner import Buffer

HEADER_LENGTH = 8


def build_header(spi_in: int, vip: bytes) -> bytes:
    return spi_in.to_bytes(4) + vip


def add_header(header: bytes, data: Buffer, size: int, count: int) -> bytes:
    """The header before each of `count` packets of `size` bytes."""
    fields = [header] * (2 * count)
    fields[1::2] = _cut(size, count).unpack(data)
    return b"".join(fields)


@lru_cache(maxsize=256)
def _cut(size: int, count: int) -> struct.Struct:
    return struct.Struct(f"{size}s" * count)
