"""What a GPN sends, gathered into buffers that one segmented send can carry.

Packets for one destination leave in the order in which they came in; equal sizes of one TOS are put side by
side, and a shorter one may end a buffer. Splitting by the kernel's limits is the socket's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import partial
from typing import NamedTuple

Address = tuple[str, int]
Buffer = bytes | bytearray | memoryview


class Port(IntEnum):
    """Which of the GPN's sockets."""

    ESP = 1
    VXLAN = 2
    RAW = 3  # for ESP without UDP


class Way(NamedTuple):
    """Where packets leave and where they go."""

    port: Port
    dest: Address
    source: str | None  # source address, where it is not the socket's own
    counter: str  # counts the packets that the kernel took; empty for tags
    tos: int = 0


class Send(NamedTuple):
    way: Way
    data: Buffer  # segments of `size` bytes, the last perhaps shorter
    size: int
    packets: int


MANY = 40_000  # bytes that are sent as they are: to put more beside them is to copy them

_send = partial(tuple.__new__, Send)  # half of what `Send` takes, which looks at names


class _Run:
    """Packets for one way that can still be joined by more."""

    __slots__ = ("packets", "parts", "size", "way")

    def __init__(self, way: Way, size: int, parts: list[Buffer], packets: int) -> None:
        self.way = way
        self.size = size
        self.parts = parts
        self.packets = packets


class Outbox:
    """Filled by packets of a batch, then emptied by `take`."""

    def __init__(self) -> None:
        self._open: dict[Address, _Run] = {}  # by destination
        self._sends: list[Send] = []

    def add(self, way: Way, size: int, data: Buffer, packets: int = 1) -> None:
        """`data` is `packets` packets of exactly `size` bytes each."""
        run = self._open.get(way.dest)
        if run is not None:
            fits = size == run.size or (packets == 1 and size < run.size)
            if fits and run.way == way and run.packets * run.size < MANY:
                run.parts.append(data)
                run.packets += packets
                if size < run.size:
                    self._close(self._open.pop(way.dest))
                return
            self._close(run)
        self._open[way.dest] = _Run(way, size, [data], packets)

    def add_row(self, way: Way, packets: Sequence[Buffer]) -> None:
        """Packets of any sizes, in order."""
        run = self._open.get(way.dest)
        if run is not None and run.way != way:
            self._close(self._open.pop(way.dest))
            run = None
        parts: list[Buffer] = [] if run is None else run.parts
        size, joined = (0, 0) if run is None else (run.size, run.packets)
        for packet in packets:
            length = len(packet)
            if joined and length <= size:
                parts.append(packet)
                joined += 1
                if length == size:
                    continue
                self._sends.append(_send((way, b"".join(parts), size, joined)))
                parts, joined = [], 0
                continue
            if joined:
                self._sends.append(_send((way, _whole(parts), size, joined)))
            parts, size, joined = [packet], length, 1
        self._open.pop(way.dest, None)
        if joined:
            self._open[way.dest] = _Run(way, size, parts, joined)

    def add_runs(self, way: Way, runs: Iterable[tuple[Buffer, int, int]]) -> None:
        """What segmented sends can carry, in order: data, size, packets of each."""
        run = self._open.pop(way.dest, None)
        if run is not None:
            self._close(run)
        self._sends += [_send((way, *run)) for run in runs]

    def put(self, way: Way, datagram: bytes) -> None:
        """A datagram that leaves behind everything added so far, and alone."""
        self._close_all()
        self._sends.append(Send(way, datagram, len(datagram), 1))

    def take(self) -> list[Send]:
        """All that was added; it is gone from here."""
        self._close_all()
        sends, self._sends = self._sends, []
        return sends

    def _close_all(self) -> None:
        for run in self._open.values():
            self._close(run)
        self._open.clear()

    def _close(self, run: _Run) -> None:
        self._sends.append(_send((run.way, _whole(run.parts), run.size, run.packets)))


def _whole(parts: list[Buffer]) -> Buffer:
    return parts[0] if len(parts) == 1 else b"".join(parts)
