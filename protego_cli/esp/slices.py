"""Buffers whose slices are kept from batch to batch.

To slice a `memoryview` costs a fifth of a microsecond, more than to copy the packet. So what a C function is
to read or write for each packet of a row lies in a buffer of ours, which lives on and is sliced once for each
layout: where the first slice begins, how long each is, how far apart they are. What is received is copied
into `received`, a whole row at once: a batch, or several (`joining.py`).

1. `cut` returns the slices of a layout, from its second batch on: traffic of which no two batches are laid
   out alike pays for no slices.
2. What is to be sent is written into a buffer of a `Pool`, and its beginning is lent. Nothing is written
   there again while anybody holds what was lent, whether it has been sent, waits or was refused: `take`
   looks for another buffer, and has none to give when `MAX_BUFFERS` are lent.

Whoever passes on what was lent passes on that very object, not a slice of it: it is what is watched.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Sequence
from typing import Final

from protego_cli.wire.inner import Buffer

FEW: Final = 12  # packets of a batch, below which slices gain nothing
MAX_ROWS: Final = 512  # packets of a row: eight batches as long as the kernel merges them
MAX_BYTES: Final = 1 << 19  # the same in bytes
MAX_LAYOUTS: Final = 128  # remembered for a buffer
MAX_SLICES: Final = 8192  # of all these; they take 1.5 MB
MAX_BUFFERS: Final = 4  # of a pool
ROOM: Final = MAX_BYTES + (1 << 14)  # bytes: a whole row, and what is written around its packets


def _nobody() -> None:
    return None


class Sliced:
    """One buffer with its slices."""

    def __init__(self) -> None:
        self.data = bytearray(ROOM)
        self.view = memoryview(self.data)
        self.words = self.view.cast("I")  # by fours, to move the same field of all packets in one go
        self.halves = self.view.cast("H")  # by twos
        self.written: object = None  # what lies ready between slices, in the words of who has put it there
        self.rows = 0  # for how many packets it does
        self._kept: dict[tuple[int, int, int], list[memoryview]] = {}
        self._slices = 0  # in all of these
        self._joined: memoryview | None = None  # what lies at the beginning, from where it was received
        self.lent: Callable[[], memoryview | None] = _nobody  # what somebody holds of it

    def cut(self, start: int, length: int, step: int, count: int) -> Sequence[memoryview] | None:
        """`count` slices of `length` bytes, the first at `start`, a `step` apart; None where none are."""
        layout = start, length, step
        kept = self._kept.get(layout)
        if kept is None:
            if len(self._kept) >= MAX_LAYOUTS:
                self._keep_only({})
            self._kept[layout] = []
            return None
        if len(kept) < count:
            if count > MAX_ROWS or start + (count - 1) * step + length > ROOM:
                return None
            if self._slices + count > MAX_SLICES:
                self._keep_only({layout: kept})
            self._slices += count - len(kept)
            view = self.view
            for at in range(start + len(kept) * step, start + count * step, step):
                kept.append(view[at : at + length])
        return kept if len(kept) == count else kept[:count]

    def _keep_only(self, kept: dict[tuple[int, int, int], list[memoryview]]) -> None:
        self._kept, self._slices = kept, sum(map(len, kept.values()))

    def join(self, row: Sequence[memoryview]) -> memoryview:
        """These side by side at the beginning, until something else is put there."""
        start = 0
        for part in row:
            stop = start + len(part)
            self.view[start:stop] = part
            start = stop
        self._joined = self.view[:start]
        return self._joined

    def put(self, data: Buffer, length: int) -> None:
        """Have so many bytes of this at the beginning."""
        if data is not self._joined:
            self._joined = None
            self.view[:length] = data[:length]

    def lend(self, length: int) -> memoryview:
        """The first `length` bytes, to be sent; nobody writes to this buffer while they are held."""
        lent = self.view[:length]
        self.lent = weakref.ref(lent)
        return lent


received: Final = Sliced()  # what is worked on now


class Pool:
    """Buffers that are lent. One that is free serves again, the earliest first: it is likely in the cache."""

    def __init__(self) -> None:
        self._buffers: list[Sliced] = []

    def take(self, besides: Container[Sliced] = ()) -> Sliced | None:
        """One that is neither lent nor among `besides`, for whoever asks first; None where all are."""
        for buffer in self._buffers:
            if buffer.lent() is None and buffer not in besides:
                return buffer
        if len(self._buffers) == MAX_BUFFERS:
            return None
        self._buffers.append(Sliced())
        return self._buffers[-1]
