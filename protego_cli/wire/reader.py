"""A bounded reader over bytes from the network: running out of them raises `Malformed`, nothing else.

Numbers are unsigned and in network order.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from protego_cli.errors import Malformed


class Reader:
    """Reads `data` from front to back; never past its end."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = (
            data if isinstance(data, memoryview) and data.format == "B" else memoryview(data).cast("B")
        )
        self._position = 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        return bytes(self._advance(count))

    def sub(self, count: int) -> Reader:
        """A reader of the next `count` bytes alone, for a structure that states its own length."""
        return Reader(self._advance(count))

    def rest(self) -> bytes:
        """Everything that is left, perhaps nothing."""
        return self.take(self.remaining)

    def uint(self, count: int) -> int:
        """A number of `count` bytes."""
        return int.from_bytes(self._advance(count), "big")

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The next fields of a fixed layout, in one call."""
        return layout.unpack(self._advance(layout.size))

    def u8(self) -> int:
        return self.uint(1)

    def u16(self) -> int:
        return self.uint(2)

    def finish(self) -> None:
        """Raises Malformed unless everything has been read."""
        if self.remaining:
            raise Malformed(f"{self.remaining} bytes too many")

    def _advance(self, count: int) -> memoryview:
        start = self._position
        end = start + count
        if count < 0 or end > len(self._data):
            raise Malformed(f"{count} bytes wanted, {self.remaining} left")
        self._position = end
        return self._data[start:end]
