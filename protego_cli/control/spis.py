"""The SPIs we choose: random, above 255, unique in the whole cluster, not reused for a lifetime.

1. `allocate` draws one and sets it aside: it may be on its way to a peer from then on.
2. `hold` says that an SA with it exists; `release`, that the SA is gone.
3. What is not held is quarantined for `QUARANTINE` seconds since it was drawn or released, so that a late
   packet never meets another tunnel's SA. The quarantine is bounded: where a storm of failing handshakes
   would overflow it, the oldest go free first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protego_cli.crypto.algorithms import RandomSource
from protego_cli.wire.tags import MAX_RESERVED_SPI

QUARANTINE: Final = 8 * 3600.0  # seconds; as long as the longest usual lifetime of a CHILD_SA
QUARANTINED: Final = 1 << 18  # SPIs at most, about 30 MB


class SpiAllocator:
    """Every inbound SPI of the cluster comes from the GMN's one allocator."""

    def __init__(
        self,
        random: RandomSource,
        clock: Callable[[], float],
        *,
        quarantine: float = QUARANTINE,
        quarantined: int = QUARANTINED,
    ) -> None:
        self._random = random
        self._clock = clock
        self._quarantine = quarantine
        self._limit = quarantined
        self._held: set[int] = set()
        self._aside: dict[int, float] = {}  # SPI -> since when; oldest first

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
        self._aside[spi] = self._clock()

    def _free(self) -> None:
        """Let go what was aside for long enough, and the oldest beyond the bound."""
        horizon = self._clock() - self._quarantine
        while self._aside:
            oldest = next(iter(self._aside))
            if self._aside[oldest] > horizon and len(self._aside) < self._limit:
                return
            del self._aside[oldest]
