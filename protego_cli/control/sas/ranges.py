"""Sealing ranges: the outbound sequence numbers that one GPN process, and no other ever, may use of an SA.

An SA's numbers are cut into ranges of 2^30, granted in order: [1, 2^30), [2^30, 2^31), and so on. Every
placement of the SA, and every restart of the process that holds it, gets the next one, so a zombie's packets
fall left of the peer's window and no nonce is ever used twice. The last range ends a window before 2^32:
no jump between ranges is one that a peer could take for a wrap (RFC 4303 3.4.3).

With extended sequence numbers ranges are of 2^31 and go on past 2^32. A peer tells the high half by what it
received last, which must be less than 2^32 less a window behind (appendix A2). So a range is only granted if
that much of those before it is known to have been used; else the SA must be rekeyed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SIZE: Final = 1 << 30
EXTENDED_SIZE: Final = 1 << 31
WINDOW: Final = 1024  # of the peer's replay check, at most
END: Final = (1 << 32) - WINDOW


class SealingRange(NamedTuple):
    """Numbers lo, lo + 1, ..., hi - 1."""

    lo: int
    hi: int


EXHAUSTED: Final = SealingRange(END, END)
"""No number at all: the SA can open, and must be rekeyed before its tunnel seals again."""


class SealingRanges:
    """What was granted of each SA, by its inbound SPI."""

    def __init__(self) -> None:
        self._granted: dict[int, int] = {}

    def grant(self, spi_in: int, *, esn: bool = False, used: int = 0) -> SealingRange:
        """The next range of an SA, or EXHAUSTED. `used`: the highest number known to be used, for `esn`."""
        place = self._granted.get(spi_in, 0)
        size = EXTENDED_SIZE if esn else SIZE
        lo = max(1, place * size)
        if lo >= (used + END if esn else END):
            return EXHAUSTED
        self._granted[spi_in] = place + 1
        hi = (place + 1) * size
        return SealingRange(lo, hi if esn else min(hi, END))

    def granted(self, spi_in: int) -> int:
        """How many ranges were granted of an SA."""
        return self._granted.get(spi_in, 0)

    def restore(self, spi_in: int, granted: int) -> None:
        """What an earlier life has granted."""
        self._granted[spi_in] = granted

    def forget(self, spi_in: int) -> None:
        """The SA is gone, and its keys with it."""
        self._granted.pop(spi_in, None)
