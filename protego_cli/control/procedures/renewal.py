"""Rekeys in place that the gateway needs: after a GPN's restart, for a range that runs low, for an SA's age,
and for new terms in the cluster file.

At most `AT_ONCE` run side by side, those SAs first that open nothing. One that fails is tried again, later
and later, for as long as its SA seals.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from protego_cli.control.procedures.migration import Migrations
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Placed, Terms, Tunnel
from protego_cli.errors import ProtegoError

AT_ONCE: Final = 50
FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 60.0


class Renewals:
    def __init__(self, sad: Sad, migrations: Migrations, tasks: trio.Nursery) -> None:
        self._sad = sad
        self._migrations = migrations
        self._tasks = tasks
        self._limit = trio.CapacityLimiter(AT_ONCE)
        sad.scattered = self.gather
        sad.closed = self.renew

    def gather(self, tunnel: Tunnel) -> None:
        """Bring a tunnel's strands to one GPN again, unless that is under way."""
        if not tunnel.gathering:
            tunnel.gathering = True
            self._tasks.start_soon(self._gather, tunnel)

    async def _gather(self, tunnel: Tunnel) -> None:
        pause = FIRST_PAUSE
        while tunnel.scattered:
            try:
                async with self._limit:
                    await self._migrations.gather(tunnel)
            except ProtegoError as error:
                self._sad.events.emit("rekey failed", tunnel=tunnel.id, reason=error)
                with trio.move_on_after(pause):
                    await tunnel.until(lambda: not tunnel.scattered)
                pause = min(pause * 2, LAST_PAUSE)
        tunnel.gathering = False

    def renew_all(self, gpn: str) -> None:
        """Rekey every SA that seals on a GPN."""
        found = [(tunnel, sa) for tunnel, sa in self._sad.on(gpn) if sa.seals]
        for tunnel, placed in sorted(found, key=lambda item: item[1].opens):
            self.renew(tunnel, placed)

    def renew(self, tunnel: Tunnel, placed: Placed) -> None:
        """Rekey this SA as long as it seals, unless that is under way."""
        if not placed.renewing:
            placed.renewing = True
            self._tasks.start_soon(self._renew, tunnel, placed)

    async def _renew(self, tunnel: Tunnel, placed: Placed) -> None:
        pause = FIRST_PAUSE
        while placed.seals and not placed.retiring:
            try:
                async with self._limit:
                    await self._migrations.renew(tunnel, placed)
            except ProtegoError as error:
                placed.refused = True
                self._sad.events.emit(
                    "rekey failed", tunnel=tunnel.id, node=placed.gpn, spi=placed.spi, reason=error
                )
                with trio.move_on_after(pause):
                    await tunnel.until(lambda: not placed.seals or placed.retiring)
                pause = min(pause * 2, LAST_PAUSE)

    def renegotiate(self, tunnel: Tunnel, terms: Iterable[Terms]) -> None:
        """Rekey what of a tunnel has new terms. Until its peer accepts them, the old ones hold."""
        begun = bool(tunnel.outdated)
        tunnel.outdated.update(terms)
        if _decided(tunnel) and tunnel.sealing is None:
            tunnel.outdated.clear()
        elif not begun:
            self._tasks.start_soon(self._renegotiate, tunnel)

    async def _renegotiate(self, tunnel: Tunnel) -> None:
        pause = FIRST_PAUSE
        while tunnel.outdated:
            await tunnel.until(lambda: _decided(tunnel))
            placed = tunnel.sealing
            if placed is None:  # the next IKE_SA begins with the new terms
                tunnel.outdated.clear()
                return
            try:
                async with self._limit:
                    await self._migrations.renegotiate(tunnel, placed)
            except ProtegoError as error:
                tunnel.error = f"goes on under its old terms: {error}"
                self._sad.events.emit(
                    "rekey failed", tunnel=tunnel.id, node=placed.gpn, spi=placed.spi, reason=error
                )
                await trio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)


def _decided(tunnel: Tunnel) -> bool:
    """Whether it is plain on which SA the tunnel seals, if on any."""
    sealing = tunnel.sealing
    return tunnel.settled and not tunnel.dialling and (sealing is None or not sealing.retiring)
