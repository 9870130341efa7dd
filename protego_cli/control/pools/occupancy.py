"""What lies on a GPN that is to leave, and how it is made to leave (`roster.Occupancy`)."""

from __future__ import annotations

from typing import Final

import trio

from protego_cli.control.packing.drains import Drains
from protego_cli.control.sas.sad import Sad
from protego_cli.errors import ProtegoError

AGAIN: Final = 10.0  # seconds between two attempts to empty a GPN whose tunnels did not go


class Occupied:
    def __init__(self, sad: Sad, drains: Drains) -> None:
        self._sad = sad
        self._drains = drains
        self._cleared: dict[str, tuple[float, str]] = {}  # when to try again, and what stood in the way

    def occupied(self, node: str) -> bool:
        """Whether an SA lies on it, also one that lingers, or one is on its way there."""
        sad = self._sad
        return (
            bool(sad.on(node))
            or any(asked.gpn == node for asked in sad.asked.values())
            or any(tunnel.target == node for tunnel in sad.tunnels.values())
        )

    def close(self, node: str) -> None:
        self._sad.seats.draining.add(node)

    def clear(self, node: str) -> str:
        """Drain it, unless that is under way or has just been tried; what stands in the way."""
        now = trio.current_time()
        again, why = self._cleared.get(node, (now, ""))
        if not any(tunnel.seat == node for tunnel in self._sad.tunnels.values()):
            return ""
        if now >= again:
            why = ""
            try:
                self._drains.drain(node)
            except ProtegoError as error:
                why = str(error)
            self._cleared[node] = now + AGAIN, why
        return why

    def forget(self, node: str) -> None:
        self._cleared.pop(node, None)
        self._drains.forget(node)
        self._sad.seats.loads.forget_gpn(node)
