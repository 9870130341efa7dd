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

from protego_cli.crypto.algorithms import KeGroup, KePrivate
from protego_cli.crypto.proposal import EspProposal
from protego_cli.errors import (
    ChildSaNotFound,
    InvalidKePayload,
    InvalidSyntax,
    NoAdditionalSas,
    ProtocolError,
    TemporaryFailure,
)
from protego_cli.ike.children import (
    MAX_CHILDREN,
    Attempt,
    Child,
    Terms,
    make_child,
    spi_bytes,
    terms_answered,
    terms_for,
    with_spi,
)
from protego_cli.ike.events import ChildEstablished, ChildOffered
from protego_cli.ike.exchanges.base import Exchange
from protego_cli.ike.exchanges.delete import DeleteChild, Withdraw
from protego_cli.ike.message import Payloads
from protego_cli.ike.negotiation import propose
from protego_cli.wire.notifies import NotifyType, notify_name
from protego_cli.wire.payloads import ExchangeType, Ke, Nonce, Notify, Payload, Sa, TsI, TsR
from protego_cli.wire.proposals import Protocol

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


class RekeyChild(Exchange):
    """Our rekey of `old` by a CHILD_SA under `spi_in`, with the selectors and group `old` has."""

    type = ExchangeType.CREATE_CHILD_SA

    def __init__(self, token: int, old: Child, spi_in: int) -> None:
        super().__init__(token)
        self._token = token
        self._old = old
        self._spi_in = spi_in
        self._suites: tuple[EspProposal, ...] = ()
        self._group: KeGroup | None = None
        self._private: KePrivate | None = None
        self._retried = False
        self._nonce = b""

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:
        old = self._old
        if old.sa.spi_in not in sa.children or old.deleting or old.doomed:
            self.fail(sa, "the CHILD_SA is gone, or going")
            return None
        if old.replaced(sa.children) or old.taken(sa.children):
            self.fail(sa, "the CHILD_SA has been rekeyed, or the peer is rekeying it")
            return None
        old.theirs = None
        if not self._retried:
            self._suites = tuple(dict.fromkeys((old.proposal, *sa.tunnel.esp)))
            self._group = next((suite.group for suite in self._suites if suite.group), None)
        self._nonce = sa.context.new_nonce()
        self._private = self._group.generate(sa.context.random) if self._group else None
        ke = (Ke(self._group.transform_id, self._private.public),) if self._group and self._private else ()
        return (
            Notify(NotifyType.REKEY_SA, protocol=Protocol.ESP, spi=spi_bytes(old.sa.spi_in)),
            Sa(propose(self._suites, spi_bytes(self._spi_in))),
            Nonce(self._nonce),
            *ke,
            TsI(old.sa.local_ts),
            TsR(old.sa.remote_ts),
        )

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        error = payloads.error()
        if error is not None:
            self._refused(sa, error)
            return
        old = self._old.sa
        try:
            nonce = payloads.one(Nonce).data
            terms = terms_answered(payloads, self._suites, old.local_ts, old.remote_ts, in_auth=False)
            shared = self._agree(terms, payloads.maybe(Ke))
        except InvalidSyntax as fault:
            self.fail(sa, f"the peer's answer is not valid: {fault}")
            sa.start(Withdraw(self._spi_in), now)
            return
        child = make_child(sa, terms, self._spi_in, (self._nonce, nonce), initiator=True, shared=shared)
        self._establish(sa, child, min(self._nonce, nonce), now)

    def _refused(self, sa: IkeSa, error: Notify) -> None:
        group = self._wanted(error)
        if group is not None and not self._retried:
            self._retried = True
            self._group = group
            sa.queue.appendleft(self)
            return
        offered = " | ".join(str(suite) for suite in self._suites)
        self.fail(sa, f"the peer answered {notify_name(error.kind)}; ours: {offered}", error.kind)

    def _wanted(self, error: Notify) -> KeGroup | None:
        if error.kind != NotifyType.INVALID_KE_PAYLOAD:
            return None
        wanted = int.from_bytes(error.data, "big")
        groups = (suite.group for suite in self._suites if suite.group)
        return next((group for group in groups if group.transform_id == wanted), None)

    def _agree(self, terms: Terms, ke: Ke | None) -> bytes:
        """The fresh shared secret, empty without a group."""
        group = terms.proposal.group
        if group is None:
            return b""
        if ke is None or self._private is None or not group == self._group or ke.group != group.transform_id:
            raise InvalidSyntax(f"no KE payload for the group {group.keyword} that the peer chose")
        return self._private.shared(ke.data)

    def _establish(self, sa: IkeSa, child: Child, lowest: bytes, now: float) -> None:
        old = self._old
        theirs = old.theirs
        redundant = theirs is not None and lowest < theirs.lowest
        sa.add_child(child)
        old.successor = child
        if sa.handle is not None:
            sa.context.emit(
                ChildEstablished(self._token, sa.handle, child.sa, old.sa.spi_in, redundant=redundant)
            )
        if theirs is not None and redundant:
            theirs.redundant = child.sa.spi_in
            _delete_redundant(sa, theirs, now)
        elif theirs is not None:
            theirs.child.doomed = True


def _delete_redundant(sa: IkeSa, theirs: Attempt, now: float) -> None:
    """Delete our SA that lost, as soon as the peer's stands."""
    child = sa.children.get(theirs.redundant) if theirs.redundant is not None else None
    if theirs.accepted and child is not None and not child.deleting:
        sa.start(DeleteChild(sa.context.number(), child), now)


def answer(sa: IkeSa, notify: Notify, payloads: Payloads, now: float) -> None:
    """The peer rekeys a CHILD_SA."""
    old = sa.child_towards(int.from_bytes(notify.spi, "big"))
    if old is None or notify.protocol != Protocol.ESP:
        raise ChildSaNotFound(f"no CHILD_SA with the peer's SPI {notify.spi.hex()}")
    if old.deleting or old.replaced(sa.children):
        raise TemporaryFailure("the CHILD_SA is being replaced or deleted")
    if len(sa.children) >= MAX_CHILDREN:
        raise NoAdditionalSas(f"{MAX_CHILDREN} CHILD_SAs stand already")
    terms = terms_for(sa, payloads, in_auth=False)
    nonce, mine = payloads.one(Nonce).data, sa.context.new_nonce()
    ke, shared = _exchange_keys(sa, terms, payloads.maybe(Ke))
    spi_in = sa.context.allocate_spi()
    child = make_child(sa, terms, spi_in, (nonce, mine), initiator=False, shared=shared)
    chosen = with_spi(terms.answer, spi_bytes(spi_in))
    response: tuple[Payload, ...] = (
        Sa((chosen,)),
        Nonce(mine),
        *ke,
        TsI(terms.remote_ts),
        TsR(terms.local_ts),
    )
    _offer(sa, old, Attempt(child, min(nonce, mine)), response, now)


def _exchange_keys(sa: IkeSa, terms: Terms, ke: Ke | None) -> tuple[tuple[Ke, ...], bytes]:
    """Our KE payload, when a fresh key exchange was agreed on, and the secret."""
    group = terms.proposal.group
    if group is None:
        return (), b""
    if ke is None or ke.group != group.transform_id:
        wanted = group.transform_id.to_bytes(2, "big")
        raise InvalidKePayload(f"{group.keyword} was agreed on", data=wanted)
    private = group.generate(sa.context.random)
    return (Ke(group.transform_id, private.public),), private.shared(ke.data)


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
