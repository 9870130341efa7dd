"""DELETE of a CHILD_SA or of the IKE_SA, from either side (RFC 7296 1.4.1, 2.25).

    HDR, SK {D(ESP, our inbound SPI)}  -->   <--  HDR, SK {D(ESP, the peer's inbound SPI)}
    HDR, SK {D(IKE)}                   -->   <--  HDR, SK {}

When both sides delete one CHILD_SA at a time, neither answer names it. The answer to a peer waits until the
driver seals on no CHILD_SA that goes: it opens nothing more on them once it has that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from protego_cli.errors import ProtocolError
from protego_cli.ike.children import MAX_CHILDREN, Child, spi_bytes
from protego_cli.ike.events import CLOSED_BY_PEER, ChildDeleted, ChildDeleteOffered, IkeDeleteOffered
from protego_cli.ike.exchanges.base import EspSpi, Exchange, ExchangeState
from protego_cli.ike.message import Payloads
from protego_cli.ike.succession import hand_over, standing, used
from protego_cli.ike.transitions import State, Trigger
from protego_cli.wire.payloads import Delete, ExchangeType, Payload
from protego_cli.wire.proposals import Protocol

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


class DeleteChild(Exchange):
    """Our DELETE of a CHILD_SA. The peer's may overtake it: then there is nothing left to send."""

    type = ExchangeType.INFORMATIONAL

    def __init__(self, token: int, spi_in: int) -> None:
        super().__init__(token)
        self._number = token
        self._spi_in = spi_in

    @classmethod
    def of(cls, token: int, child: Child) -> DeleteChild:
        """From now on nothing else happens to the CHILD_SA."""
        child.deleting = True
        return cls(token, child.sa.spi_in)

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:
        if self._spi_in not in sa.children:
            self._report(sa)
            return None
        return (Delete(Protocol.ESP, (spi_bytes(self._spi_in),)),)

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        sa.drop_child(self._spi_in)
        self._report(sa)

    def fail(self, sa: IkeSa, detail: str, notify: int | None = None) -> None:
        """What the peer has deleted is deleted; else a DELETE of the peer is the driver's affair again."""
        child = sa.children.get(self._spi_in)
        if child is None:
            self._report(sa)
            return
        child.deleting = False
        super().fail(sa, detail, notify)

    def concerns(self, spi_in: int) -> bool:
        return self._spi_in == spi_in

    def state(self) -> DeleteChildState:
        return DeleteChildState(self._number, self._spi_in)

    @property
    def survives(self) -> bool:
        """The CHILD_SA is marked, and whatever used it has moved away."""
        return True

    def _report(self, sa: IkeSa) -> None:
        sa.context.emit(ChildDeleted(self._number, sa.name, self._spi_in))


class DeleteChildState(ExchangeState, frozen=True, tag="delete child"):
    token: int
    spi_in: EspSpi

    def restore(self, sa: IkeSa) -> DeleteChild:
        return DeleteChild(self.token, self.spi_in)


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

    def state(self) -> WithdrawState:
        return WithdrawState(self._spi_in)


class WithdrawState(ExchangeState, frozen=True, tag="withdraw"):
    spi_in: EspSpi

    def restore(self, sa: IkeSa) -> Withdraw:
        return Withdraw(self.spi_in)


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

    def state(self) -> DeleteIkeState:
        return DeleteIkeState(self._reason)


class DeleteIkeState(ExchangeState, frozen=True, tag="delete ike"):
    reason: str

    def restore(self, sa: IkeSa) -> DeleteIke:
        return DeleteIke(self.reason)


def closing(sa: IkeSa) -> bool:
    """Whether we have decided to delete the IKE_SA."""
    return sa.state is State.CLOSING or any(isinstance(exchange, DeleteIke) for exchange in sa.queue)


def answer(sa: IkeSa, deletes: Sequence[Delete], now: float) -> None:
    """The peer's DELETE payloads; the driver first moves traffic off the CHILD_SAs they name."""
    if any(delete.protocol == Protocol.IKE for delete in deletes):
        _end(sa, now)
        return
    used(sa, now)
    named = dict.fromkeys(
        int.from_bytes(spi, "big")
        for delete in deletes
        if delete.protocol == Protocol.ESP
        for spi in delete.spis
    )
    found = [child for child in map(sa.home.child_towards, named) if child is not None]
    if sa.current is not None and len(sa.current.overtaken) < MAX_CHILDREN:
        sa.current.overtaken |= named.keys() - {child.sa.spi_out for child in found}
    answer = _Answer(sa)
    for child in found:
        answer.take(child, now)
    answer.complete()


def _end(sa: IkeSa, now: float) -> None:
    """The peer deletes the IKE_SA. There is nothing to leave where its rekey is about to take the CHILD_SAs
    over, or where we are deleting all this as well.
    """

    def done(now: float) -> None:
        sa.respond(())
        hand_over(sa, now)
        sa.finish(CLOSED_BY_PEER, now)

    def reject(error: ProtocolError, now: float) -> None:
        done(now)  # there is nothing to refuse

    left = closing(sa) or standing(sa) is not None
    if sa.handle is None or left or all(child.deleting for child in sa.children.values()):
        done(now)
    else:
        sa.context.emit(IkeDeleteOffered(sa.offer(done, reject, now), sa.handle, sa.name))


class _Answer:
    """The response to a DELETE: it goes out when the driver has let go of every CHILD_SA. Until then all of
    them stand, so that the request can be answered anew after a restart.
    """

    def __init__(self, sa: IkeSa) -> None:
        self._sa = sa
        self._spis: list[int] = []
        self._waiting = 0

    def take(self, child: Child, now: float) -> None:
        sa, spi_in = self._sa, child.sa.spi_in
        self._spis.append(spi_in)
        if child.deleting:  # traffic has left it already
            return
        self._waiting += 1

        def done(now: float) -> None:
            child.deleting = True
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
        if self._waiting:
            return
        gone = [spi_in for spi_in in self._spis if self._drop(spi_in)]
        self._sa.respond((Delete(Protocol.ESP, tuple(map(spi_bytes, gone))),) if gone else ())

    def _drop(self, spi_in: int) -> bool:
        """If our DELETE is on its way, its answer completes the deletion; so it has, if that has come."""
        home = self._sa.home
        crossing = isinstance(home.current, DeleteChild) and home.current.concerns(spi_in)
        if crossing or spi_in not in home.children:
            return False
        home.drop_child(spi_in)
        return True
