"""A bounded reader over bytes from the network: running out of them raises `Malformed`, nothing else.

Numbers are unsigned and in network order. What is read is copied; a structure inside another one is copied
once for each it lies in, and these are few.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from protego_cli.errors import Malformed


class Reader:
    """Reads `data` from front to back; never past its end."""

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = data if type(data) is bytes else bytes(data)
        self._end = len(self._data)
        self._position = 0

    @property
    def remaining(self) -> int:
        return self._end - self._position

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self._position
        end = start + count
        if count < 0 or end > self._end:
            raise self._short(count)
        self._position = end
        return self._data[start:end]

    def sub(self, count: int) -> Reader:
        """A reader of the next `count` bytes alone, for a structure that states its own length."""
        return Reader(self.take(count))

    def rest(self) -> bytes:
        """Everything that is left, perhaps nothing."""
        start, self._position = self._position, self._end
        return self._data[start:]

    def uint(self, count: int) -> int:
        """A number of `count` bytes."""
        return int.from_bytes(self.take(count), "big")

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The next fields of a fixed layout, in one call."""
        start = self._position
        end = start + layout.size
        if end > self._end:
            raise self._short(layout.size)
        self._position = end
        return layout.unpack_from(self._data, start)

    def u8(self) -> int:
        return self.uint(1)

    def u16(self) -> int:
        return self.uint(2)

    def finish(self) -> None:
        """Raises Malformed unless everything has been read."""
        if self._position < self._end:
            raise Malformed(f"{self.remaining} bytes too many")

    def _short(self, count: int) -> Malformed:
        return Malformed(f"{count} bytes wanted, {self.remaining} left")
