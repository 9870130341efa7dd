"""What an operator does to one tunnel: up, down, rekey.

- `down`: the tunnel is held, stored, and the peer that dials is refused; every IKE_SA is closed by DELETE.
  When the peer does not confirm it in `CLOSING` seconds the SAs go all the same.
- `up`: nothing is held any more, and Protego dials where it knows the peer's address.
- `rekey`: the CHILD_SA where it is, or the IKE_SA.
"""

from __future__ import annotations

from typing import Final

import trio

from protego_cli.control.operating.held import Held
from protego_cli.control.procedures.driver import Driver, ExchangeError
from protego_cli.control.procedures.keeper import Keeper
from protego_cli.control.procedures.migration import Migrations
from protego_cli.control.procedures.rekeying import RETRIES, tell_ike_rekeyed
from protego_cli.control.sas.naming import find_tunnel
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Tunnel
from protego_cli.errors import Refused, TemporaryFailure
from protego_cli.ike.view import IkeSaView

CLOSING: Final = 5.0  # seconds for the peer's answer to the DELETE
SETTLING: Final = 5.0  # seconds for an IKE_SA to get its CHILD_SA, or to be closed


class Commands:
    def __init__(self, sad: Sad, driver: Driver, keeper: Keeper, migrations: Migrations, held: Held) -> None:
        """Holds down again what the operator has taken down in an earlier life of this GMN."""
        self._sad = sad
        self._driver = driver
        self._keeper = keeper
        self._migrations = migrations
        self._held = held
        for name in held:
            driver.bar(name, True)
            if (tunnel := sad.tunnels.get(name)) is not None:
                self.hold_again(tunnel)

    def hold_again(self, tunnel: Tunnel) -> None:
        """A tunnel that has been made anew is held as the one before it was."""
        tunnel.held = tunnel.id in self._held

    async def up(self, name: str) -> str | None:
        """Bring a tunnel up, or let its peer do so; a note on what is left to be done. Raises NotFound, and
        Refused, saying why it is not up.
        """
        tunnel = find_tunnel(self._sad.tunnels, name)
        self._release(tunnel)
        if tunnel.standing:
            return "it is up already"
        if tunnel.ikes:
            with trio.move_on_after(SETTLING):
                await tunnel.until(lambda: tunnel.standing or not tunnel.ikes)
        if tunnel.standing:
            return None
        if tunnel.config.peer is None:
            return "it may come up: its peer has to dial, for its address is not known here"
        await self._keeper.dial(tunnel)
        return None

    async def down(self, name: str) -> str | None:
        """Take a tunnel down and keep it so. Raises NotFound."""
        tunnel = find_tunnel(self._sad.tunnels, name)
        was_held = tunnel.held
        self._held.add(name)
        self._driver.bar(name, True)
        tunnel.held, tunnel.error = True, None
        tunnel.changed()
        if not was_held:
            self._sad.events.emit("tunnel held", tunnel=name, reason="closed by operator")
        with trio.move_on_after(CLOSING):
            async with trio.open_nursery() as nursery:
                for ike in tunnel.ikes:
                    nursery.start_soon(self._driver.close, ike)
        confirmed = not tunnel.ikes
        leaving = [sa for sa in tunnel.sas.values() if not sa.retiring]
        for placed in leaving:
            self._sad.retire(tunnel, placed)
        if leaving:
            await self._sad.leave(tunnel, *leaving)
        if not confirmed:
            return f"the peer has not confirmed it within {CLOSING:g} s; nothing is sent to it any more"
        return "it was down by operator already" if was_held else None

    def ike_sas(self, tunnel: Tunnel) -> tuple[IkeSaView, ...]:
        """Its IKE_SAs as they are now."""
        return self._driver.describe(tunnel.id)

    async def rekey(self, name: str, *, ike: bool) -> None:
        """Raises NotFound, or Refused, saying why."""
        tunnel = find_tunnel(self._sad.tunnels, name)
        if not ike:
            await self._migrations.rekey(tunnel)
            return
        sealing = tunnel.sealing
        if sealing is None or sealing.retiring:
            raise Refused(f"{name} is not up, so there is no IKE_SA to rekey")
        for pause in (*RETRIES, None):
            try:
                rekeyed = await self._driver.rekey_ike(sealing.ike)
            except ExchangeError as error:  # the peer may be at an exchange of its own (RFC 7296 2.25)
                if pause is None or error.notify != TemporaryFailure.notify:
                    raise
                await trio.sleep(pause)
            else:
                tell_ike_rekeyed(self._sad.events, rekeyed)
                return

    def _release(self, tunnel: Tunnel) -> None:
        if not tunnel.held:
            return
        self._held.discard(tunnel.id)
        self._driver.bar(tunnel.id, False)
        tunnel.held, tunnel.error = False, None
        tunnel.changed()
        self._sad.events.emit("tunnel released", tunnel=tunnel.id, reason="the operator lets it up again")
