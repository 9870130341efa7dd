"""The last negotiations that were no tunnel's: who dialled, and what they wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protego_cli.ike.record import Negotiation

REMEMBERED: Final = 32


class Strangers:
    """One entry for whoever dials again and again for the same reason; of more than fit, the newest."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str, str], tuple[float, Negotiation]] = {}  # oldest first

    def add(self, at: float, record: Negotiation) -> None:
        reason = record.failure.detail if record.failure else ""
        key = record.path.remote, record.exchange, reason
        self._last.pop(key, None)
        self._last[key] = at, record
        if len(self._last) > REMEMBERED:
            del self._last[next(iter(self._last))]

    def __iter__(self) -> Iterator[tuple[float, Negotiation]]:
        """With wall time, the newest first."""
        return reversed(list(self._last.values()))
