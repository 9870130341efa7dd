"""SAs that their peers know no more: GPNs open what is still on its way on them, for a while.

One task serves all of them. When the time of some has come, the GINs stop passing their packets on,
acknowledged; then they are forgotten, and one Update tells each GPN of all of its that end by then.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

import trio

from protego_cli.control.sas.distribution import Distribution
from protego_cli.control.sas.tunnel import Placed, Tunnel

TOGETHER: Final = 0.05  # seconds for which an SA may linger longer, so that one Update serves several


class Lingering:
    def __init__(
        self, nodes: Distribution, forget: Callable[[Tunnel, Placed], None], tasks: trio.Nursery
    ) -> None:
        """`forget` takes an SA from every node; it may have been called before the SA's time comes."""
        self._nodes = nodes
        self._forget = forget
        self._tasks = tasks
        self._heap: list[tuple[float, int, Tunnel, Placed]] = []  # by when they are forgotten

    def add(self, tunnel: Tunnel, placed: Placed, seconds: float) -> None:
        if not self._heap:
            self._tasks.start_soon(self._forget_in_time)
        heapq.heappush(self._heap, (trio.current_time() + seconds, placed.spi, tunnel, placed))

    async def _forget_in_time(self) -> None:
        while self._heap:
            await trio.sleep_until(self._heap[0][0] + TOGETHER)
            now, gpns = trio.current_time(), set[str]()
            for when, spi, _, _ in self._heap:
                if when <= now:
                    self._nodes.unsteer(spi)
            await self._nodes.steered()  # a GIN that got no CPU may have had some of their packets still
            while self._heap and self._heap[0][0] <= now:
                _, _, tunnel, placed = heapq.heappop(self._heap)
                self._forget(tunnel, placed)
                gpns.add(placed.gpn)
            self._nodes.gone(gpns)
