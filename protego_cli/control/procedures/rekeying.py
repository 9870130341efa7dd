"""A new CHILD_SA with the peer in the place of one that seals: steps 1 and 2 of a migration.

1. The request is made and stored. Meanwhile every GIN steers a new SPI to the GPN that is to hold the SA,
   and that parks its packets: a peer may use the SA the instant it answers. When both are acknowledged, the
   request leaves.
2. CREATE_CHILD_SA with REKEY_SA (RFC 7296 1.3.3); the peer's answer.

When the peer rekeys at the same moment (2.8.1), this waits until what it began is settled, and starts again
from the SA that seals then. A peer that cannot do it now (2.25) is asked again. Of a rekey that failed only
the new SPI's steering and parking are there, for the caller to undo.
"""

from __future__ import annotations

from typing import Final

import trio

from protego_cli.control.operating.events import EventLog
from protego_cli.control.procedures.driver import Driver, ExchangeError, HeldRequest
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Placed, Strand, Tunnel
from protego_cli.control.state.crash import crash_point
from protego_cli.errors import ChildSaNotFound, ProtegoError, Refused, TemporaryFailure
from protego_cli.ike.events import ChildEstablished, IkeRekeyed

RETRIES: Final = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between rekeys that the peer cannot do now (2.25)
SETTLING: Final = 15.0  # seconds for what the peer began; above `tunnels.OVERDUE`


class Rekeying:
    def __init__(self, sad: Sad, driver: Driver) -> None:
        self._sad = sad
        self._driver = driver

    async def rekey(
        self, tunnel: Tunnel, first: Placed, to: str, spi: int, anew: bool
    ) -> tuple[Placed, ChildEstablished | None]:
        """Steps 1 and 2, of the SA that seals now or what the peer puts in its place: the SA that is
        replaced, and what replaces it; None when a rekey of the peer has put the strand on `to`.
        """
        strand = first.strand
        delays = iter(RETRIES)
        missing = False  # at the peer, which may be about to say DELETE
        while True:
            old = await self.settled(tunnel, strand)
            if old is not first and old.gpn == to:
                return first, None
            request = await self._prepare(tunnel, spi, to, old, anew)
            if not old.seals or not tunnel.settled:
                request.withdraw()
                continue
            request.let_go()
            try:
                return old, await request.outcome()
            except ExchangeError as error:
                if error.notify == ChildSaNotFound.notify and missing and old.seals:
                    return old, await self._create(tunnel, old, spi)
                missing = error.notify == ChildSaNotFound.notify
                delay = next(delays, None)
                if delay is None or not _passes(error, tunnel):
                    raise Refused(f"{tunnel.id} cannot be rekeyed: {error}") from error
            with trio.move_on_after(delay):
                await tunnel.until(lambda old=old: not old.seals)  # type: ignore[misc]

    async def _create(self, tunnel: Tunnel, old: Placed, spi: int) -> ChildEstablished:
        """The peer has lost the SA without a word: make one from scratch (2.25). Raises Refused."""
        try:
            child = old.child
            selectors = (child.local_ts, child.remote_ts) if tunnel.several else None
            return await self._driver.create_child(old.ike, spi, selectors)
        except ExchangeError as error:
            raise Refused(f"{tunnel.id} has lost its CHILD_SA and gets no other: {error}") from error

    async def settled(self, tunnel: Tunnel, strand: Strand | None = None) -> Placed:
        """The sealing SA, of this strand or of any, when nothing that the peer began is open any more. Raises
        Refused.
        """
        if not tunnel.settled:
            with trio.move_on_after(SETTLING):
                await tunnel.until(lambda: tunnel.settled)
        sealing = tunnel.sealing if strand is None else strand.sealing
        if sealing is None or sealing.retiring:
            raise Refused(f"{tunnel.id} went down meanwhile")
        return sealing

    async def _prepare(
        self, tunnel: Tunnel, spi: int, to: str, old: Placed, anew: bool
    ) -> HeldRequest[ChildEstablished]:
        """Step 1, and the request of step 2, which has not left. Raises NodeDown; then there is none."""
        self._sad.ask(tunnel, spi, to, old.peer, old.spi)
        self._sad.nodes.announce(to)
        request = self._driver.prepare_rekey(old.spi, spi, anew=anew)
        try:
            await self._sad.nodes.placed(to, ("park", spi))
        except ProtegoError:
            request.withdraw()
            raise
        crash_point("migration.steered")
        return request

    async def undo(self, spi: int, to: str) -> None:
        """The new SPI was never used, or became an SA: then there is nothing to undo."""
        self._sad.unask(spi)
        await self._sad.nodes.cleared(to)


def tell_ike_rekeyed(events: EventLog, event: IkeRekeyed) -> None:
    events.emit(
        "IKE_SA rekeyed",
        tunnel=event.tunnel,
        suite=event.suite,
        initiator="gateway" if event.initiator else "peer",
    )


def _passes(error: ExchangeError, tunnel: Tunnel) -> bool:
    """Whether the reason is one that goes by: the peer is rekeying or deleting by itself (RFC 7296 2.25)."""
    if error.notify in (TemporaryFailure.notify, ChildSaNotFound.notify):
        return True
    return error.notify is None and bool(tunnel.ikes) and not tunnel.settled
