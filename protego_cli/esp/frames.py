"""The frames of a batch, written while it is opened: most batches are what the one before was.

    | header | inner packet | header | inner packet | ...
                            └ where first the trailer of the packet before comes to lie

1. `guess` has a free buffer with the header that packets of this length got lately in all places, and behind
   each a slot for a plaintext, into which the cipher writes.
2. `verdict` tells whether that was right: what decides about the first packet has been judged before, to this
   header and this length, and columns tell that all others agree with it, or what decides about them has been
   judged the same, as of several flows to one VTEP. A batch that looks like one of these, and was guessed to
   be the same, is known by that alone. Then `mend` puts the headers right.
3. `frames` are what is sent; the buffer rests until that has happened.
4. Where it was wrong, or some packets are forged, `texts` are the plaintexts, as if nothing had been guessed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Iterable, Sequence
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

from protego_cli.esp.pairs import Pair, Usual
from protego_cli.esp.rows import layout
from protego_cli.esp.slices import Pool, Sliced
from protego_cli.esp.tenants import Delivery
from protego_cli.wire.columns import Spans, alike, likeness
from protego_cli.wire.inner import Buffer
from protego_cli.wire.strides import fill

MAX_FAMILIAR = 2048  # looks that are remembered of all SAs together, each some kilobytes
MISSES = 8  # batches that look otherwise, after which looks are learned anew


class Familiar:
    """How a batch looked of which all that was guessed was right."""

    __slots__ = ("alike", "count", "missed", "verdict")

    def __init__(self, count: int, alike: Callable[[Buffer], bool], verdict: tuple[Delivery, int]) -> None:
        self.count = count
        self.alike = alike
        self.verdict = verdict
        self.missed = 0  # batches in a row that looked otherwise


class Guess(NamedTuple):
    """A row of packets of which each is to be opened into its slot."""

    usual: Usual
    buffer: Sliced
    slots: Sequence[memoryview]
    looks: dict[Usual, Familiar]  # of batches that were guessed to be the very same: laid out so, of the SA

    def verdict(self, pair: Pair) -> tuple[Delivery, int] | None:
        """What all packets of the row are judged to be, if their frames are right; all must have opened."""
        usual, view, count = self.usual, self.buffer.view, len(self.slots)
        familiar = self.looks.get(usual)
        if familiar is not None:
            if familiar.count == count and familiar.alike(view):
                familiar.missed = 0
                return familiar.verdict
            familiar.missed += 1
        header, length, tail, version = usual.header, usual.length, usual.tail, usual.version
        start = len(header)
        decisive = row(length + tail, tail, version)
        if decisive is None:
            return None
        step = start + length
        judged = pair.verdicts.get
        verdict = judged((length + tail, decisive.unpack_from(view, start)))
        if verdict is None or isinstance(verdict, str) or verdict[0].header != header or verdict[1] != length:
            return None
        spans = _decisive(start, version, step, tail)
        if alike(view, step, count, spans):
            if familiar is None or familiar.missed > MISSES:
                if len(self.looks) >= MAX_FAMILIAR:
                    self.looks.clear()
                self.looks[usual] = Familiar(count, likeness(view, step, count, spans), verdict)
        else:
            rows = set(map(decisive.unpack_from, repeat(view), range(start, count * step, step)))
            if any(judged((length + tail, each)) != verdict for each in rows):
                return None
        return verdict

    def mend(self) -> None:
        """Put headers where trailers have come to lie. There are no `texts` any more."""
        header = self.usual.header
        step = len(header) + self.usual.length
        fill(self.buffer.data, step, len(self.slots), step, header[: self.usual.tail])
        self.buffer.written = header, step

    def frames(self, count: int) -> memoryview:
        """The first `count` of them."""
        return self.buffer.lend(count * (len(self.usual.header) + self.usual.length))

    def texts(self, places: Iterable[int]) -> list[bytes]:
        slots = self.slots
        return [bytes(slots[place]) for place in places]


class Frames:
    def __init__(self) -> None:
        self._pool = Pool()
        self._looks: dict[Usual, Familiar] = {}

    def guess(self, usual: Usual, count: int, besides: Container[Sliced] = ()) -> Guess | None:
        """For a row of so many packets, in none of the buffers `besides`; None where it had better be opened
        otherwise.
        """
        buffer = self._pool.take(besides)
        if buffer is None:
            return None
        header, length = usual.header, usual.length
        step = len(header) + length
        slots = buffer.cut(len(header), length + usual.tail, step, count)
        if slots is None:
            return None
        if buffer.rows < count or buffer.written != (header, step):
            _headers(len(header), length, count).pack_into(buffer.view, 0, *[header] * count)
            buffer.rows = count
        buffer.written = None  # until trailers have been there
        return Guess(usual, buffer, slots, self._looks)


def framed(verdict: tuple[Delivery, int], plaintexts: Sequence[bytes]) -> bytearray:
    """The frames of opened packets of one verdict, side by side."""
    (_, header), length = verdict
    fields = [header] * (2 * len(plaintexts))
    fields[1::2] = plaintexts
    frame = layout(f"{len(header)}s{length}s", len(plaintexts))  # which cuts the trailers off
    frames = bytearray(frame.size)
    frame.pack_into(frames, 0, *fields)
    return frames


@lru_cache(maxsize=64)
def judged(header: int, version: int) -> Spans:
    """Where in a frame that lies which a verdict follows from; and the hop limit of IPv6, between it."""
    head, addresses = ((0, 4), (12, 20)) if version == 4 else ((0, 8), (8, 40))
    return tuple((header + start, header + stop) for start, stop in (head, addresses))


@lru_cache(maxsize=1024)
def _decisive(header: int, version: int, size: int, tail: int) -> Spans:
    """The same, and the trailer behind a frame of this size."""
    return *judged(header, version), (size, size + tail)


@lru_cache(maxsize=1024)
def row(size: int, tail: int, version: int) -> struct.Struct | None:
    """What decides about an opened packet of this size; None when it is too short."""
    head, skip, addresses = (4, 8, 8) if version == 4 else (7, 1, 32)
    rest = size - head - skip - addresses - tail
    if rest < 0 or not tail:
        return None
    return struct.Struct(f"{head}s{skip}x{addresses}s{rest}x{tail}s")


@lru_cache(maxsize=256)
def _headers(header: int, length: int, count: int) -> struct.Struct:
    """A header for each packet, with nothing behind."""
    return struct.Struct(f"{header}s{length}x" * count)
