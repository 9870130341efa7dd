"""Tunnels with `start = "auto"`: Protego dials, and dials again.

1. Wait until the tunnel has no IKE_SA and nobody is at making one, and a GIN and a GPN are there.
2. The inbound SPI is steered to its GPN, which parks its packets: a peer may use the CHILD_SA at once.
3. IKE_SA_INIT and IKE_AUTH; then the SA is installed and the tunnel routed.
4. After a failure, pause: twice as long each time, up to a minute, and never quite the same.

A peer that dials first is as good. When both dial at once the later IKE_SA replaces the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from protego_cli.control.procedures.driver import Driver, ExchangeError
from protego_cli.control.procedures.tunnels import Tunnels
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Placed, Tunnel
from protego_cli.control.waiting import passed
from protego_cli.crypto.algorithms import RandomSource
from protego_cli.errors import ProtegoError, Refused
from protego_cli.ike.events import ChildEstablished

FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 60.0
DIALLING: Final = 64  # handshakes of ours side by side


class Keeper:
    def __init__(self, sad: Sad, tunnels: Tunnels, driver: Driver, random: RandomSource) -> None:
        self._sad = sad
        self._tunnels = tunnels
        self._driver = driver
        self._random = random
        self._limit = trio.CapacityLimiter(DIALLING)
        self._tasks: trio.Nursery | None = None
        self._tended: set[Tunnel] = set()

    async def run(self) -> None:
        """Keep all such tunnels up, for ever."""
        await passed(self._sad.gathered)
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            for tunnel in self._sad.tunnels.values():
                self.tend(tunnel)
            await trio.sleep_forever()

    def tend(self, tunnel: Tunnel) -> None:
        """Keep a tunnel up from now on, if it is one of those."""
        if self._tasks is not None and tunnel not in self._tended and _kept(tunnel):
            self._tended.add(tunnel)
            self._tasks.start_soon(self._keep, tunnel)

    async def _keep(self, tunnel: Tunnel) -> None:
        pause = FIRST_PAUSE
        while True:
            await tunnel.until(lambda: not _kept(tunnel) or self._lacks(tunnel))
            peer = tunnel.config.peer
            if peer is None or not _kept(tunnel):
                self._tended.discard(tunnel)
                return
            try:
                async with self._limit:
                    if _kept(tunnel) and self._lacks(tunnel):
                        await self._attempt(tunnel, partial(self._dial, tunnel, peer))
                pause = FIRST_PAUSE
            except ProtegoError:
                await trio.sleep(pause * (0.75 + self._random(1)[0] / 512))
                pause = min(pause * 2, LAST_PAUSE)

    async def dial(self, tunnel: Tunnel) -> None:
        """Dial now, as the operator asks, or wait for what is under way. Raises ProtegoError, saying why the
        tunnel is not up.
        """
        if tunnel.config.peer is None:
            raise Refused(f"{tunnel.id} has no address of its peer")
        if tunnel.dialling or tunnel.offers:
            await tunnel.until(lambda: not (tunnel.dialling or tunnel.offers))
            if not tunnel.standing:
                raise Refused(tunnel.error or f"{tunnel.id} did not come up")
            return
        for role in ("gin", "gpn"):
            if not self._sad.fabric.connected(role):
                raise Refused(f"no {role.upper()} is connected, so there is no way to the peer")
        await self._attempt(tunnel, partial(self._dial, tunnel, tunnel.config.peer))

    async def _attempt(self, tunnel: Tunnel, step: Callable[[], Awaitable[None]]) -> None:
        tunnel.dialling = True
        try:
            await step()
        except ProtegoError as error:
            if not tunnel.standing:  # else its peer has dialled meanwhile, with more luck
                tunnel.error = str(error)
                peer = tunnel.config.peer or "any"
                self._sad.events.emit("tunnel not up", tunnel=tunnel.id, peer=peer, reason=error)
            raise
        finally:
            tunnel.dialling = False
            tunnel.changed()

    def _lacks(self, tunnel: Tunnel) -> bool:
        """Whether nothing of the tunnel is there, or being made, and it could be."""
        fabric = self._sad.fabric
        reachable = bool(fabric.connected("gin")) and bool(fabric.connected("gpn"))
        return reachable and not (tunnel.ikes or tunnel.offers or tunnel.dialling or tunnel.held)

    async def _dial(self, tunnel: Tunnel, peer: str) -> None:
        sad = self._sad
        gpn = sad.seat(tunnel)
        if gpn is None:
            raise Refused("no GPN could take the tunnel")
        path = self._driver.path_to(tunnel.config.vip, peer)
        spi = sad.spis.allocate()
        sad.ask(tunnel, spi, gpn, (peer, path.remote_port))

        async def dial() -> ChildEstablished:
            await sad.nodes.placed(gpn, ("park", spi))
            return await self._driver.initiate(tunnel.id, path, spi)

        await self._answered(tunnel, spi, gpn, dial)

    async def resume(
        self, tunnel: Tunnel, spi: int, gpn: str, outcome: Callable[[], Awaitable[ChildEstablished]]
    ) -> None:
        """Go on with a handshake that an earlier life of the GMN has begun; `dialling` is set already."""
        with contextlib.suppress(ProtegoError):
            await self._attempt(tunnel, partial(self._answered, tunnel, spi, gpn, outcome))

    async def finish(self, tunnel: Tunnel, placed: Placed) -> None:
        """The same, where the SA was placed already."""
        with contextlib.suppress(ProtegoError):
            await self._attempt(tunnel, partial(self._install, tunnel, placed))

    async def _answered(
        self, tunnel: Tunnel, spi: int, gpn: str, outcome: Callable[[], Awaitable[ChildEstablished]]
    ) -> None:
        sad = self._sad
        try:
            event = await outcome()
            if event.ike not in tunnel.ikes:
                await self._driver.close(event.ike)  # there is still one, when the tunnel was withdrawn
                raise Refused("the IKE_SA was closed at once")
        except ProtegoError as error:
            sad.unask(spi)
            await sad.nodes.cleared(gpn)
            if isinstance(error, ExchangeError) and error.ike is not None:
                await self._driver.close(error.ike)
            raise
        await self._install(tunnel, sad.place(tunnel, event.child, event.ike, gpn))

    async def _install(self, tunnel: Tunnel, placed: Placed) -> None:
        """The peer has the SA: let it stand and seal."""
        sad = self._sad
        await passed(sad.gathered)
        first = placed.strand.sealing in (None, placed)
        try:
            await (sad.install_first(tunnel, placed) if first else sad.installed(placed))
        except ProtegoError:
            await self._driver.close(placed.ike)  # dialling anew finds another GPN
            raise
        self._tunnels.stand(tunnel, placed)
        if not first:
            placed.strand.successor = placed
            await self._tunnels.succeed(tunnel, placed)


def _kept(tunnel: Tunnel) -> bool:
    config = tunnel.config
    return config.start == "auto" and config.peer is not None and not tunnel.withdrawn
