"""Which GIN a GPN's packets to peers go through, where they must not go straight (`return = "gin"`).

A GIN counts as there while its probes come, several a second; each is authentic, and comes from the socket
that takes packets back. A tunnel's packets leave by the GIN that the peer's come by, or else by the first.
This needs no word from the control plane: when a GIN falls silent, its tunnels leave by another.
"""

from __future__ import annotations

from protego_cli.esp.outbox import Address

SILENCE = 1.5  # seconds without a probe


class Doors:
    """The GINs that are there. `now` is wall-clock time, which may be set back."""

    def __init__(self) -> None:
        self._heard: dict[Address, float] = {}

    def __contains__(self, gin: Address) -> bool:
        return gin in self._heard

    def hear(self, gin: Address, now: float) -> bool:
        """A probe came; whether this GIN is new."""
        new = gin not in self._heard
        self._heard[gin] = now
        return new

    def expire(self, now: float) -> bool:
        """Whether a GIN has gone."""
        silent = [gin for gin, heard in self._heard.items() if not heard - SILENCE < now < heard + SILENCE]
        for gin in silent:
            del self._heard[gin]
        return bool(silent)

    def keep(self, addresses: frozenset[str]) -> bool:
        """Forget those that are at none of these; whether one was."""
        gone = [gin for gin in self._heard if gin[0] not in addresses]
        for gin in gone:
            del self._heard[gin]
        return bool(gone)

    def choose(self, came_by: Address | None) -> Address | None:
        if came_by in self._heard:
            return came_by
        return next(iter(self._heard), None)
