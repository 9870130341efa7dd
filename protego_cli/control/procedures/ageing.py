"""Lifetimes of CHILD_SAs: rekeyed at the soft limit, deleted at the hard one (`ike/lifetimes.py`).

1. Time: every SA that is placed has its hard limit in wall time, which its GPN keeps to as well, so that it
   ends even when nobody is there to delete it. A heap holds the next limit of each.
2. Bytes and packets, of both directions together, come with the GPNs' reports. A report may be a second old,
   so an SA can be beyond its hard limit before a rekey had a chance: it is deleted when one has failed.

An SA that is deleted for its age and was the only one leaves its IKE_SA childless, which is closed then:
either side begins anew.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Final

import trio

from protego_cli.control.channel.node_messages import Report
from protego_cli.control.procedures.renewal import Renewals
from protego_cli.control.procedures.tunnels import Tunnels
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Placed, Tunnel
from protego_cli.crypto.algorithms import RandomSource
from protego_cli.ike.lifetimes import soft_limit

LOOK: Final = 60.0  # seconds after which the wall clock is looked at again, as it may have been set


def soft_time(tunnel: Tunnel, placed: Placed) -> float:
    """When an SA is to be rekeyed for its age, in wall time."""
    lifetimes = tunnel.config.lifetimes
    return placed.expires - lifetimes.child + soft_limit(lifetimes.child, lifetimes.jitter, placed.spread)


class Ageing:
    def __init__(
        self, sad: Sad, tunnels: Tunnels, renewals: Renewals, random: RandomSource, tasks: trio.Nursery
    ) -> None:
        """Has the SAD tell it of every SA. `tasks` runs what has to be waited for."""
        self._sad = sad
        self._tunnels = tunnels
        self._renewals = renewals
        self._random = random
        self._tasks = tasks
        self._limits: list[tuple[float, int, int]] = []  # heap of (wall time, number, inbound SPI)
        self._numbers = itertools.count()
        self._nearer = trio.Event()
        sad.ageing = self.begin

    def begin(self, tunnel: Tunnel, placed: Placed) -> None:
        """An SA has been placed, and its hard limit set."""
        placed.spread = placed.spread or int.from_bytes(self._random(4)) / 2**32
        self._watch(placed, soft_time(tunnel, placed))

    async def run(self) -> None:
        """Keep time, for ever."""
        while True:
            self._nearer = trio.Event()
            now = self._sad.events.clock()
            while self._limits and self._limits[0][0] <= now:
                self._due(heapq.heappop(self._limits)[2], now)
            pause = self._limits[0][0] - now if self._limits else math.inf
            with trio.move_on_after(min(pause, LOOK)):
                await self._nearer.wait()

    def reported(self, gpn: str, report: Report) -> None:
        """What has passed through a GPN's SAs, which have been metered by now."""
        for usage in report.usage:
            found = self._sad.find(usage.spi_in, gpn)
            if found is not None:
                self._metered(*found)

    def _watch(self, placed: Placed, limit: float) -> None:
        heapq.heappush(self._limits, (limit, next(self._numbers), placed.spi))
        if self._limits[0][0] == limit:
            self._nearer.set()

    def _due(self, spi: int, now: float) -> None:
        found = self._sad.find(spi)
        if found is None or found[1].retiring:
            return
        if now < found[1].expires:
            self._watch(found[1], found[1].expires)
            self._renew(*found)
        else:
            self._end(*found, "time")

    def _metered(self, tunnel: Tunnel, placed: Placed) -> None:
        lifetimes = tunnel.config.lifetimes
        total = placed.meter.total
        for what, hard, used in (
            ("bytes", lifetimes.bytes, total.bytes_in + total.bytes_out),
            ("packets", lifetimes.packets, total.packets_in + total.packets_out),
        ):
            if hard and used >= soft_limit(hard, lifetimes.jitter, placed.spread):
                self._renew(tunnel, placed)
                if used >= hard and placed.refused:
                    self._end(tunnel, placed, what)

    def _renew(self, tunnel: Tunnel, placed: Placed) -> None:
        if placed.seals:
            self._renewals.renew(tunnel, placed)

    def _end(self, tunnel: Tunnel, placed: Placed, limit: str) -> None:
        if not placed.ending and not placed.retiring:
            placed.ending = True
            self._tasks.start_soon(self._tunnels.expire, tunnel, placed, limit)
