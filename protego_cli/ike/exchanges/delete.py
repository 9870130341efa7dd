"""DELETE of a CHILD_SA or of the IKE_SA, from either side (RFC 7296 1.4.1, 2.25).

    HDR, SK {D(ESP, our inbound SPI)}  -->   <--  HDR, SK {D(ESP, the peer's inbound SPI)}
    HDR, SK {D(IKE)}                   -->   <--  HDR, SK {}

When both sides delete one CHILD_SA at a time, neither answer names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from protego_cli.errors import ProtocolError
from protego_cli.ike.children import Child, spi_bytes
from protego_cli.ike.events import ChildDeleted, ChildDeleteOffered
from protego_cli.ike.exchanges.base import Exchange
from protego_cli.ike.message import Payloads
from protego_cli.ike.succession import hand_over, used
from protego_cli.ike.transitions import State, Trigger
from protego_cli.wire.payloads import Delete, ExchangeType, Payload
from protego_cli.wire.proposals import Protocol

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


class DeleteChild(Exchange):
    """Our DELETE of a CHILD_SA. The peer's may overtake it: then there is nothing left to send."""

    type = ExchangeType.INFORMATIONAL

    def __init__(self, token: int, child: Child) -> None:
        super().__init__(token)
        self._number = token
        self._child = child
        child.deleting = True

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:
        spi_in = self._child.sa.spi_in
        if spi_in not in sa.children:
            self._report(sa)
            return None
        return (Delete(Protocol.ESP, (spi_bytes(spi_in),)),)

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        sa.drop_child(self._child.sa.spi_in)
        self._report(sa)

    def concerns(self, child: Child) -> bool:
        return self._child is child

    def _report(self, sa: IkeSa) -> None:
        sa.context.emit(ChildDeleted(self._number, sa.name, self._child.sa.spi_in))


class Withdraw(Exchange):
    """DELETE of a CHILD_SA that the peer granted in a way we cannot take, so it never existed here."""

    type = ExchangeType.INFORMATIONAL

    def __init__(self, spi_in: int) -> None:
        super().__init__(None)
        self._spi_in = spi_in

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload]:
        return (Delete(Protocol.ESP, (spi_bytes(self._spi_in),)),)

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The peer has forgotten it too."""


class DeleteIke(Exchange):
    """Our DELETE of the IKE_SA; `reason` is what IkeClosed will say."""

    type = ExchangeType.INFORMATIONAL

    def __init__(self, reason: str) -> None:
        super().__init__(None)
        self._reason = reason

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload]:
        sa.move(Trigger.CLOSE)
        return (Delete(Protocol.IKE),)

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        sa.close(self._reason)


def closing(sa: IkeSa) -> bool:
    """Whether we have decided to delete the IKE_SA."""
    return sa.state is State.CLOSING or any(isinstance(exchange, DeleteIke) for exchange in sa.queue)


def answer(sa: IkeSa, deletes: Sequence[Delete], now: float) -> None:
    """The peer's DELETE payloads; the driver first moves traffic off the CHILD_SAs they name."""
    if any(delete.protocol == Protocol.IKE for delete in deletes):
        sa.respond(())
        hand_over(sa, now)
        sa.finish("the peer deleted it", now)
        return
    used(sa, now)
    named = dict.fromkeys(
        int.from_bytes(spi, "big")
        for delete in deletes
        if delete.protocol == Protocol.ESP
        for spi in delete.spis
    )
    found = [child for child in map(sa.home.child_towards, named) if child is not None]
    answer = _Answer(sa)
    for child in found:
        answer.take(child, now)
    answer.complete()


class _Answer:
    """The response to a DELETE: it goes out when the driver has let go of every CHILD_SA."""

    def __init__(self, sa: IkeSa) -> None:
        self._sa = sa
        self._spis: list[bytes] = []
        self._waiting = 0

    def take(self, child: Child, now: float) -> None:
        sa, spi_in = self._sa, child.sa.spi_in
        if child.deleting:
            # Traffic has left it already. If our DELETE is on its way, its answer completes the deletion.
            current = sa.home.current
            if not isinstance(current, DeleteChild) or not current.concerns(child):
                sa.home.drop_child(spi_in)
                self._spis.append(spi_bytes(spi_in))
            return
        self._waiting += 1

        def done(now: float) -> None:
            sa.home.drop_child(spi_in)
            self._spis.append(spi_bytes(spi_in))
            self._waiting -= 1
            self.complete()
            sa.pump(now)

        def reject(error: ProtocolError, now: float) -> None:
            done(now)  # the peer has closed it: there is nothing to refuse

        ticket = sa.offer(done, reject, now)
        handle = sa.home.handle
        if handle is not None:
            sa.context.emit(ChildDeleteOffered(ticket, handle, sa.name, spi_in))

    def complete(self) -> None:
        if not self._waiting:
            self._sa.respond((Delete(Protocol.ESP, tuple(self._spis)),) if self._spis else ())
