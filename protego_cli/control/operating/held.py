"""The tunnels that the operator has taken down: they stay down until he says otherwise, whatever restarts.

Each is a record in the journal, stored before the operator hears that it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protego_cli.control.state.journal import Journal

HELD: Final = "held"
"""The kind of their records: a tunnel's id, and nothing more."""


class Held:
    """A set of ids that survives."""

    def __init__(self, journal: Journal) -> None:
        self._ids = {identifier.decode() for identifier, _ in journal.found(HELD)}
        self._journal = journal

    def __contains__(self, tunnel: str) -> bool:
        return tunnel in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._ids))

    def add(self, tunnel: str) -> None:
        if tunnel not in self._ids:
            self._ids.add(tunnel)
            self._journal.put(HELD, tunnel.encode(), True)

    def discard(self, tunnel: str) -> None:
        if tunnel in self._ids:
            self._ids.discard(tunnel)
            self._journal.put(HELD, tunnel.encode(), None)
