"""Which of its neighbours a GPN passes on to what it does not send itself.

- A GIN: what goes to peers, where that must not go straight (`return = "gin"`). A tunnel's packets leave by
  the GIN that the peer's come by, or else by the first.
- A GEN: what VTEPs sent straight here, and no tunnel here takes.

A neighbour counts as there while its probes come, several a second; each is authentic, and comes from the
socket that takes packets. One that is silent is forgotten as soon as another is there, without a word from
the control plane. Where all are silent none is forgotten: it is this node that got no CPU, and their probes
wait in its socket; or else nothing is lost by trying.
"""

from __future__ import annotations

from protego_cli.esp.outbox import Address

SILENCE = 1.5  # seconds without a probe


class Doors:
    """The neighbours of one kind that are there. `now` is wall-clock time, which may be set back."""

    def __init__(self) -> None:
        self._heard: dict[Address, float] = {}

    def __contains__(self, door: Address) -> bool:
        return door in self._heard

    def hear(self, door: Address, now: float) -> bool:
        """A probe came; whether this neighbour is new."""
        new = door not in self._heard
        self._heard[door] = now
        return new

    def expire(self, now: float) -> bool:
        """Whether one has gone."""
        silent = [door for door, heard in self._heard.items() if not heard - SILENCE < now < heard + SILENCE]
        if len(silent) == len(self._heard):
            return False
        for door in silent:
            del self._heard[door]
        return bool(silent)

    def keep(self, addresses: frozenset[str]) -> bool:
        """Forget those that are at none of these; whether one was."""
        gone = [door for door in self._heard if door[0] not in addresses]
        for door in gone:
            del self._heard[door]
        return bool(gone)

    def choose(self, preferred: Address | None) -> Address | None:
        if preferred in self._heard:
            return preferred
        return next(iter(self._heard), None)
