"""Whose IKE messages a GIN passes on to the GMN, and how many: known peers' before those of strangers.

Anybody may send, from any address that he makes up, and each message costs the GMN time, if only to drop it.
1. Known are the addresses that tunnels name as their peer's, and those that packets of steered SPIs are
   expected from. What comes from one is passed on within an allowance of its own; beyond it, as a stranger's.
2. First messages of strangers share one allowance, all their other messages another. Who has come through and
   is told to begin again, with a cookie as a rule (RFC 7296 2.6), comes through once more.

So a flood from everywhere leaves a new stranger to chance, and a peer that is expected all that it needs. One
under the address of a known peer delays that peer, and no other.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from protego_cli.ike.rations import Allowance

KNOWN: Final = 100.0  # messages a second of one known address
KNOWN_BURST: Final = 1000.0  # several tunnels may have their peers behind one address
FIRST: Final = 1000.0  # strangers' first messages a second, which is more than a GMN has time for
LATER: Final = 4000.0  # their others, which it drops in a tenth of that time
BURST: Final = 4096.0  # of either at once, for peers that dial together
ANSWERED: Final = 4096  # strangers that have been told to begin again: some seconds of a flood


class Callers:
    def __init__(self, now: float) -> None:
        self._now = now
        self._first = Allowance(BURST, FIRST, now)
        self._later = Allowance(BURST, LATER, now)
        self._known: dict[str, Allowance] = {}
        self._reasons: Counter[str] = Counter()  # why an address is known: how many
        self._steered: dict[int, str] = {}  # by SPI
        self._answered: dict[tuple[str, bytes], bool] = {}  # whether the second try is still to come

    def expect(self, address: str) -> None:
        """A tunnel names this address, or one more thing does."""
        self._reasons[address] += 1
        if address not in self._known:
            self._known[address] = Allowance(KNOWN_BURST, KNOWN, self._now)

    def forget(self, address: str) -> None:
        self._reasons[address] -= 1
        if not self._reasons[address]:
            del self._reasons[address], self._known[address]

    def steer(self, spi: int, address: str) -> None:
        """Packets with this SPI are expected from there."""
        before = self._steered.get(spi)
        if before != address:
            self._steered[spi] = address
            self.expect(address)
            if before is not None:
                self.forget(before)

    def unsteer(self, spi: int) -> None:
        address = self._steered.pop(spi, None)
        if address is not None:
            self.forget(address)

    def begin_again(self, address: str, spi: bytes) -> None:
        """Who sent a first message from there with this SPI of his is told to send another one. It comes
        through once, so that this gives a flood no more than it has had.
        """
        if (address, spi) not in self._answered:
            if len(self._answered) >= ANSWERED:
                del self._answered[next(iter(self._answered))]
            self._answered[address, spi] = True

    def admits(self, address: str, now: float, first: bytes | None = None) -> bool:
        """Whether a message may be passed on; `first`: the sender's SPI, where it begins a handshake."""
        self._now = now
        known = self._known.get(address)
        if known is not None and known.allow(now):
            return True
        if first is None:
            return self._later.allow(now)
        if self._answered.get((address, first)):
            self._answered[address, first] = False
            return True
        return self._first.allow(now)
