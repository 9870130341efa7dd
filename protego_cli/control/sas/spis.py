"""The SPIs we choose: random, above 255, unique in the whole cluster, not reused for a lifetime.

1. `allocate` draws one and sets it aside: it may be on its way to a peer from then on.
2. `hold` says that an SA with it exists; `release`, that the SA is gone.
3. What was released is in the journal, `CHUNK` SPIs to a record.
4. What is not held is quarantined for `QUARANTINE` seconds since it was drawn or released, so that a late
   packet never meets another tunnel's SA. The quarantine is bounded: where a storm of failing handshakes
   would overflow it, the oldest go free first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from protego_cli.control.state.journal import Journal
from protego_cli.crypto.algorithms import RandomSource
from protego_cli.wire.tags import MAX_RESERVED_SPI

QUARANTINE: Final = 8 * 3600.0  # seconds; as long as the longest usual lifetime of a CHILD_SA
QUARANTINED: Final = 1 << 18  # SPIs at most, about 30 MB
CHUNK: Final = 64
ASIDE: Final = "aside"  # kind of record: a number -> a `_Chunk`


class _Chunk(msgspec.Struct, array_like=True):
    """SPIs that were released one after another, the last of them at `since`."""

    since: float
    spis: list[int]


class SpiAllocator:
    """Every inbound SPI of the cluster comes from the GMN's one allocator."""

    def __init__(
        self,
        random: RandomSource,
        clock: Callable[[], float],
        *,
        quarantine: float = QUARANTINE,
        quarantined: int = QUARANTINED,
        journal: Journal | None = None,
    ) -> None:
        """`clock` gives wall-clock time."""
        self._random = random
        self._clock = clock
        self._quarantine = quarantine
        self._limit = quarantined
        self._held: set[int] = set()
        self._aside: dict[int, float] = {}  # SPI -> since when; oldest first
        self._journal = journal
        self._chunks: dict[int, _Chunk] = {}  # oldest first
        if journal is not None:
            self._take_up(journal)

    def allocate(self) -> int:
        """A fresh SPI, set aside for whoever asked."""
        self._free()
        while True:
            spi = int.from_bytes(self._random(4))
            if spi > MAX_RESERVED_SPI and spi not in self._held and spi not in self._aside:
                self._aside[spi] = self._clock()
                return spi

    def hold(self, spi: int) -> None:
        """An SA with this SPI is being installed."""
        self._aside.pop(spi, None)
        self._held.add(spi)

    def release(self, spi: int) -> None:
        """No node knows the SPI any more; it is quarantined from now on."""
        self._held.discard(spi)
        self._aside.pop(spi, None)
        self._aside[spi] = now = self._clock()
        if self._journal is not None:
            number = next(reversed(self._chunks), 0)
            if number not in self._chunks or len(self._chunks[number].spis) >= CHUNK:
                number += 1
                self._chunks[number] = _Chunk(now, [])
            self._chunks[number].since = now
            self._chunks[number].spis.append(spi)
            self._store(self._journal, number)

    def _take_up(self, journal: Journal) -> None:
        """What an earlier life has released."""
        for number, data in sorted(journal.found(ASIDE)):
            chunk = self._chunks[int.from_bytes(number)] = msgspec.msgpack.decode(data, type=_Chunk)
            self._aside.update(dict.fromkeys(chunk.spis, chunk.since))

    def _store(self, journal: Journal, number: int) -> None:
        def worth() -> bytes | None:
            chunk = self._chunks.get(number)
            return None if chunk is None else msgspec.msgpack.encode(chunk)

        journal.mark(ASIDE, number.to_bytes(8), worth)

    def _free(self) -> None:
        """Let go what was aside for long enough, and the oldest beyond the bound."""
        horizon = self._clock() - self._quarantine
        while self._aside:
            oldest = next(iter(self._aside))
            since = self._aside[oldest]
            if since > horizon and len(self._aside) < self._limit:
                break
            del self._aside[oldest]
            horizon = max(horizon, since)
        while self._chunks:
            number, chunk = next(iter(self._chunks.items()))
            if chunk.since > horizon:
                break
            del self._chunks[number]
            if self._journal is not None:
                self._store(self._journal, number)
