"""How much of all demand the GPNs could not serve lately, as far as their loads say: feedback for policies
that steer by it.

What is offered to a GPN beyond its capacity is not served. A look is taken every second or so; the mean of a
minute's looks is that minute's share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from protego_cli.control.packing.packing_view import GpnView

MINUTES: Final = 60
_MINUTE: Final = 60.0


class Shortfall:
    def __init__(self) -> None:
        self._minutes: deque[float] = deque(maxlen=MINUTES)
        self._minute = 0
        self._looks: list[float] = []  # of the present minute

    def look(self, gpns: Iterable[GpnView], now: float) -> None:
        """What the loads are at this moment."""
        if (minute := int(now // _MINUTE)) != self._minute:
            if self._looks:
                self._minutes.append(sum(self._looks) / len(self._looks))
                self._looks.clear()
            self._minute = minute
        loads = [(gpn.load, gpn.capacity) for gpn in gpns]
        demand = sum(load for load, _ in loads)
        beyond = sum(max(0.0, load - capacity) for load, capacity in loads)
        self._looks.append(beyond / demand if demand > 0 else 0.0)

    @property
    def minutes(self) -> tuple[float, ...]:
        """The share of each whole minute of the last hour that was looked at, oldest first."""
        return tuple(self._minutes)
