"""CREATE_CHILD_SA that rekeys a CHILD_SA, from either side (RFC 7296 1.3.3, 2.8, 2.25).

    HDR, SK {N(REKEY_SA, ESP, requester's inbound SPI), SA, Ni, [KEi], TSi, TSr}  -->
                                                  <--  HDR, SK {SA, Nr, [KEr], TSi, TSr}
                                                   or  HDR, SK {N(error)}

Collisions (2.8.1). Both sides rekey one CHILD_SA and the requests cross: both new SAs come into being, and
the one whose exchange has the lowest of the four nonces is redundant and goes; who created it, deletes it.
When that is ours, ChildEstablished says so and our DELETE follows once the peer's SA stands. A request for
a CHILD_SA that we have already rekeyed, or are deleting, is answered by TEMPORARY_FAILURE (2.25.1): the
driver may have moved traffic to the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from protego_cli.crypto.proposal import EspProposal
from protego_cli.errors import ChildSaNotFound, ProtocolError, TemporaryFailure
from protego_cli.ike.children import Attempt, Child, ChildState, spi_bytes
from protego_cli.ike.events import ChildEstablished, ChildOffered
from protego_cli.ike.exchanges.base import ExchangeState
from protego_cli.ike.exchanges.create_child import CreateChild, CreateChildState, Selectors, grant
from protego_cli.ike.exchanges.delete import DeleteChild
from protego_cli.ike.message import Payloads
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import Notify, Payload
from protego_cli.wire.proposals import Protocol

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


class RekeyChild(CreateChild):
    """Our rekey of `old` by a CHILD_SA under `spi_in`, with the selectors and group `old` has.

    `anew`: with those of the tunnel's policy, which has changed since. Its selectors must hold all that `old`
    has (RFC 7296 2.9.2); an SA whose policy has become narrower is closed instead, by whoever changed it.
    """

    def __init__(self, token: int, old: Child, spi_in: int, *, anew: bool = False) -> None:
        super().__init__(token, spi_in)
        self._old = old
        self._anew = anew

    def obstacle(self, sa: IkeSa) -> str | None:
        old = self._old
        if old.sa.spi_in not in sa.children or old.deleting or old.doomed:
            return "the CHILD_SA is gone, or going"
        if old.replaced(sa.children) or old.taken(sa.children):
            return "the CHILD_SA has been rekeyed, or the peer is rekeying it"
        old.theirs = None
        return None

    def wishes(self, sa: IkeSa) -> tuple[tuple[EspProposal, ...], Selectors]:
        if self._anew:
            return super().wishes(sa)
        old = self._old
        offered = sa.tunnel.esp
        first = next((suite for suite in offered if old.proposal in suite.settled()), old.proposal)
        suites = tuple(dict.fromkeys((first, *offered)))
        return suites, (old.sa.local_ts, old.sa.remote_ts)

    def about(self) -> tuple[Payload, ...]:
        return (Notify(NotifyType.REKEY_SA, protocol=Protocol.ESP, spi=spi_bytes(self._old.sa.spi_in)),)

    def establish(self, sa: IkeSa, child: Child, lowest: bytes, now: float) -> None:
        old = self._old
        theirs = old.theirs
        redundant = theirs is not None and lowest < theirs.lowest
        sa.add_child(child)
        old.successor = child
        if sa.handle is not None:
            sa.context.emit(
                ChildEstablished(self._number, sa.handle, child.sa, old.sa.spi_in, redundant=redundant)
            )
        if theirs is not None and redundant:
            theirs.redundant = child.sa.spi_in
            _delete_redundant(sa, theirs, now)
        elif theirs is not None:
            theirs.child.doomed = True

    def state(self) -> RekeyChildState:
        return RekeyChildState(ChildState.of(self._old, {}), self.request())


class RekeyChildState(ExchangeState, frozen=True, tag="rekey child"):
    """With the old CHILD_SA as a whole: the peer may have deleted it while it answers us."""

    old: ChildState
    request: CreateChildState

    def restore(self, sa: IkeSa) -> RekeyChild:
        registry, request = sa.context.registry, self.request
        old = sa.children.get(self.old.sa.spi_in) or self.old.restore(registry)
        rekey = RekeyChild(request.token, old, request.spi_in)
        rekey.resume(request, registry)
        return rekey


def _delete_redundant(sa: IkeSa, theirs: Attempt, now: float) -> None:
    """Delete our SA that lost, as soon as the peer's stands."""
    child = sa.children.get(theirs.redundant) if theirs.redundant is not None else None
    if theirs.accepted and child is not None and not child.deleting:
        sa.start(DeleteChild.of(sa.context.number(), child), now)


def answer(sa: IkeSa, notify: Notify, payloads: Payloads, now: float) -> None:
    """The peer rekeys a CHILD_SA."""
    old = sa.child_towards(int.from_bytes(notify.spi, "big"))
    if old is None or notify.protocol != Protocol.ESP:
        detail = f"no CHILD_SA with the peer's SPI {notify.spi.hex()}"
        raise ChildSaNotFound(detail, protocol=notify.protocol, spi=notify.spi)
    if old.deleting or old.replaced(sa.children):
        raise TemporaryFailure("the CHILD_SA is being replaced or deleted")
    child, lowest, response = grant(sa, payloads)
    _offer(sa, old, Attempt(child, lowest), response, now)


def _offer(sa: IkeSa, old: Child, attempt: Attempt, response: Sequence[Payload], now: float) -> None:
    """Hold the response until the driver has the new CHILD_SA in place."""
    old.theirs = attempt

    def accept(now: float) -> None:
        sa.home.add_child(attempt.child)
        sa.respond(response)
        attempt.accepted = True
        _delete_redundant(sa.home, attempt, now)
        sa.pump(now)

    def reject(error: ProtocolError, now: float) -> None:
        old.theirs = None
        sa.refuse(error)
        sa.pump(now)

    ticket = sa.offer(accept, reject, now)
    if sa.handle is not None:
        sa.context.emit(ChildOffered(ticket, sa.handle, attempt.child.sa, old.sa.spi_in))
