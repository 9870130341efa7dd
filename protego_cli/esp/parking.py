"""Packets of SPIs whose keys will follow: held for a moment, in order, in bounded memory.

A peer may use a new SA the instant it answers, before its keys are here; without this, every migration would
lose those packets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from protego_cli.counters import Counters
from protego_cli.esp.outbox import Address

PER_SPI = 4 << 20  # bytes
OVERALL = 64 << 20
MAX_AGE = 10.0  # seconds
OVERHEAD = 128  # what holding a packet costs beside its bytes


class Parked(NamedTuple):
    packet: bytes
    origin: Address | None  # the outer source, where the GIN told it
    since: float
    tos: int  # of the outer header


class _Lot:
    __slots__ = ("packets", "size")

    def __init__(self) -> None:
        self.packets: deque[Parked] = deque()
        self.size = 0


class Parking:
    """Lots by SPI; opening and closing one is the control plane's doing, so their number is bounded by it."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._lots: dict[int, _Lot] = {}
        self._size = 0

    def __contains__(self, spi: int) -> bool:
        return spi in self._lots

    def open(self, spi: int) -> None:
        """Park packets of this SPI from now on."""
        self._lots.setdefault(spi, _Lot())

    def close(self, spi: int) -> None:
        """The keys will not come: what is parked is dropped."""
        self._counters["gpn_drop_park_expired"] += len(self.release(spi))
        self._lots.pop(spi, None)

    def park(
        self, spi: int, packets: Iterable[bytes], origin: Address | None, now: float, tos: int = 0
    ) -> None:
        """Hold packets of an SPI that is parked, as far as there is room."""
        lot = self._lots[spi]
        self._expire(lot, now)
        for packet in packets:
            cost = len(packet) + OVERHEAD
            if lot.size + cost > PER_SPI or self._size + cost > OVERALL:
                self._counters["gpn_drop_park_full"] += 1
                continue
            lot.packets.append(Parked(packet, origin, now, tos))
            lot.size += cost
            self._size += cost
            self._counters["gpn_parked"] += 1

    def release(self, spi: int) -> list[Parked]:
        """What is parked for this SPI, oldest first; the lot stays open, empty."""
        lot = self._lots.get(spi)
        if lot is None:
            return []
        self._size -= lot.size
        self._lots[spi] = _Lot()
        return list(lot.packets)

    def expire(self, now: float) -> None:
        """Drop what has waited too long, in all lots; to be called now and then."""
        for lot in self._lots.values():
            self._expire(lot, now)

    def _expire(self, lot: _Lot, now: float) -> None:
        oldest = now - MAX_AGE
        while lot.packets and lot.packets[0].since < oldest:
            cost = len(lot.packets.popleft().packet) + OVERHEAD
            lot.size -= cost
            self._size -= cost
            self._counters["gpn_drop_park_expired"] += 1
