"""What a GPN sends, gathered into buffers that one segmented send can carry.

Packets for one destination leave in the order in which they came in; equal sizes of one TOS are put side by
side, and a shorter one may end a buffer. Splitting by the kernel's limits is the socket's business.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def __init__(self, way: Way, size: int, part: Buffer, packets: int) -> None:
        self.way = way
        self.size = size
        self.parts = [part]
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
        self._open[way.dest] = _Run(way, size, data, packets)

    def add_row(self, way: Way, packets: Sequence[Buffer]) -> None:
        """Packets of any sizes, in order."""
        run = self._open.get(way.dest)
        if run is not None and run.way != way:
            self._close(self._open.pop(way.dest))
            run = None
        for packet in packets:
            size = len(packet)
            if run is not None:
                if size == run.size:
                    run.parts.append(packet)
                    run.packets += 1
                    continue
                if size < run.size:
                    run.parts.append(packet)
                    run.packets += 1
                    self._close(run)
                    run = None
                    continue
                self._close(run)
            run = _Run(way, size, packet, 1)
        if run is not None:
            self._open[way.dest] = run
        else:
            self._open.pop(way.dest, None)

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
        data = run.parts[0] if len(run.parts) == 1 else b"".join(run.parts)
        self._sends.append(_send((run.way, data, run.size, run.packets)))
