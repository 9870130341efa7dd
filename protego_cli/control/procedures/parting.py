"""How SAs go that a rekey of ours replaces: what there is to it in a migration from step 3 on.

1. As the new GPN is told of its SA, the old one is told to pass on what VTEPs still send straight to it: a
   GEN sends that where the tunnel is, now and later. So behind the barriers of GENs it has nothing to seal.
2. An empty IKE round trip. What the old GPN sealed last goes to the peer by another path than DELETE, and
   some peers open nothing more on an SA once they have that: it gets the time of a round trip to arrive. The
   request is made ahead, and so is stored before it is due.
3. DELETE, and its answer. The Rule of the old GPN, which no packet meets any more, goes with the next Update
   there, at the latest when the SA has lingered.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from protego_cli.control.procedures.driver import Driver, ExchangeError, HeldRequest
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Placed, Tunnel
from protego_cli.control.state.crash import crash_point
from protego_cli.control.waiting import together
from protego_cli.errors import Refused
from protego_cli.ike.events import Alive

log = logging.getLogger(__name__)


class Parting:
    """`with` it the new SAs begin to seal, then `begin`; behind that, `end`."""

    def __init__(
        self, sad: Sad, driver: Driver, tunnel: Tunnel, news: Sequence[Placed], olds: Sequence[Placed]
    ) -> None:
        """`news` are about to seal in the place of `olds`."""
        self._sad = sad
        self._driver = driver
        self._tunnel = tunnel
        self._trips = {ike: driver.prepare_alive(ike) for ike in dict.fromkeys(new.ike for new in news)}
        self._olds = olds
        self._begun = False

    def __enter__(self) -> Self:
        for old in self._olds:
            self._sad.nodes.divert(old)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._begun:
            return
        for trip in self._trips.values():
            trip.withdraw()
        for old in self._olds:
            if old.seals:
                self._sad.nodes.divert(old, diverted=False)
        self._sad.nodes.tell(dict.fromkeys(old.gpn for old in self._olds))

    def begin(self) -> None:
        """None of the old SAs seals any more, and what they have sealed is on its way."""
        self._begun = True
        for trip in self._trips.values():  # before anything changes that would have to be stored first
            trip.let_go()
        for old in self._olds:
            self._sad.nodes.unrule(old, binding=False)

    async def end(self) -> None:
        """Return when the peer has answered each DELETE. Raises Refused when the tunnel goes down before."""
        await together(*(partial(self._travel, ike, trip) for ike, trip in self._trips.items()))
        crash_point("migration.round-trip")
        for old in self._olds:
            await delete(self._sad, self._driver, self._tunnel, old)

    async def _travel(self, ike: int, trip: HeldRequest[Alive]) -> None:
        try:
            await trip.outcome()
        except ExchangeError as error:
            if ike not in self._tunnel.ikes:
                raise Refused(f"{self._tunnel.id} went down meanwhile: {error}") from error
            log.warning("round trip failed tunnel=%s reason=%s", self._tunnel.id, error)


async def delete(sad: Sad, driver: Driver, tunnel: Tunnel, placed: Placed) -> None:
    """DELETE of an SA on which nothing seals any more, and its answer; from then on it lingers."""
    try:
        await driver.delete_child(placed.spi)
    except ExchangeError as error:
        log.warning("SA not deleted tunnel=%s spi=%08x reason=%s", tunnel.id, placed.spi, error)
    sad.retire(tunnel, placed)
