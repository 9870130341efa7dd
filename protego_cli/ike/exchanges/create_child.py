"""CREATE_CHILD_SA that makes a CHILD_SA beside those there are, from either side (RFC 7296 1.3.1, 2.25).

    HDR, SK {SA, Ni, [KEi], TSi, TSr}  -->
                            <--  HDR, SK {SA, Nr, [KEr], TSi, TSr}
                             or  HDR, SK {N(error)}

A rekey of a CHILD_SA (`rekey_child`) negotiates the same way and says which one it replaces. With a group the
new keys owe nothing to those of the IKE_SA (perfect forward secrecy, 2.17); we begin with the group of our
first proposal that has one and follow an INVALID_KE_PAYLOAD once. A DELETE of the peer may overtake its
response: then there is no CHILD_SA when the response says that there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from protego_cli.crypto.algorithms import KeGroup, Registry
from protego_cli.crypto.proposal import EspProposal, parse_esp
from protego_cli.crypto.shares import KeyShare
from protego_cli.errors import (
    InvalidSyntax,
    NoAdditionalSas,
    NoProposalChosen,
    ProtocolError,
    TsUnacceptable,
)
from protego_cli.ike.children import (
    MAX_CHILDREN,
    Child,
    Terms,
    make_child,
    spi_bytes,
    terms_answered,
    terms_for,
    with_spi,
)
from protego_cli.ike.events import ChildEstablished, ChildOffered
from protego_cli.ike.exchanges.base import EspSpi, Exchange, ExchangeState, record
from protego_cli.ike.exchanges.delete import Withdraw
from protego_cli.ike.message import Payloads
from protego_cli.ike.negotiation import answer_ke, propose, share_again, wanted_group
from protego_cli.ike.record import Failure, Story, bid
from protego_cli.ike.record import Selectors as Wanted
from protego_cli.wire.notifies import notify_name
from protego_cli.wire.payloads import ExchangeType, Ke, Nonce, Notify, Payload, Sa, TsI, TsR
from protego_cli.wire.selectors import TrafficSelector

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa

Selectors = tuple[tuple[TrafficSelector, ...], tuple[TrafficSelector, ...]]
"""Ours and the peer's."""


class CreateChild(Exchange):
    """Our request for a CHILD_SA under `spi_in`, with the tunnel's selectors or some of them."""

    type = ExchangeType.CREATE_CHILD_SA

    def __init__(self, token: int, spi_in: int, selectors: Selectors | None = None) -> None:
        super().__init__(token)
        self._asked = selectors
        self._number = token
        self._spi_in = spi_in
        self._suites: tuple[EspProposal, ...] = ()
        self._selectors: Selectors = (), ()
        self._group: KeGroup | None = None
        self._share: KeyShare | None = None
        self._retried = False
        self._nonce = b""

    # ---- what a rekey does in its own way

    def obstacle(self, sa: IkeSa) -> str | None:
        """Why there is nothing to ask any more."""
        return f"{MAX_CHILDREN} CHILD_SAs stand already" if len(sa.children) >= MAX_CHILDREN else None

    def wishes(self, sa: IkeSa) -> tuple[tuple[EspProposal, ...], Selectors]:
        policy = sa.tunnel.policy
        return sa.tunnel.esp, self._asked or (policy.local_ts, policy.remote_ts)

    def about(self) -> tuple[Payload, ...]:
        """What comes before the SA payload."""
        return ()

    def establish(self, sa: IkeSa, child: Child, lowest: bytes, now: float) -> None:
        """The peer has agreed; `lowest` is the lower one of the two nonces."""
        sa.add_child(child)
        if sa.handle is not None:
            sa.context.emit(ChildEstablished(self._number, sa.handle, child.sa, None))

    # ---- what both do

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:
        obstacle = self.obstacle(sa)
        if obstacle is not None:
            self.fail(sa, obstacle)
            return None
        if not self._retried:
            self._suites, self._selectors = self.wishes(sa)
            self._group = next((suite.group for suite in self._suites if suite.group), None)
        self._nonce = sa.context.new_nonce()
        self._share = KeyShare.generate(self._group, sa.context.random) if self._group else None
        ke = (Ke(self._share.group.transform_id, self._share.public),) if self._share else ()
        local_ts, remote_ts = self._selectors
        return (
            *self.about(),
            Sa(propose(self._suites, spi_bytes(self._spi_in))),
            Nonce(self._nonce),
            *ke,
            TsI(local_ts),
            TsR(remote_ts),
        )

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        error = payloads.error()
        if error is not None:
            self._refused(sa, error)
            return
        story = Story()
        try:
            nonce = payloads.one(Nonce).data
            terms = terms_answered(sa, payloads, story, self._suites, *self._selectors, in_auth=False)
            shared = self._agree(terms, payloads.maybe(Ke))
        except InvalidSyntax as fault:
            detail = f"the peer's answer is not valid: {fault}"
            record(sa, story, CreateChild.type, initiator=True, failure=Failure(detail, None, by_peer=False))
            self.fail(sa, detail)
            sa.start(Withdraw(self._spi_in), now)
            return
        if terms.spi_out in self.overtaken:
            self.fail(sa, "the peer has deleted the new CHILD_SA already")
            return
        child = make_child(sa, terms, self._spi_in, (self._nonce, nonce), initiator=True, shared=shared)
        record(sa, story, CreateChild.type, initiator=True)
        self.establish(sa, child, min(self._nonce, nonce), now)

    def _refused(self, sa: IkeSa, error: Notify) -> None:
        group = wanted_group(error, self._suites)
        if group is not None and not self._retried:
            self._retried = True
            self._group = group
            sa.queue.appendleft(self)
            return
        offered = " | ".join(str(suite) for suite in self._suites)
        detail = f"the peer answered {notify_name(error.kind)}; ours: {offered}"
        wanted = Wanted(*self._selectors, None, None)
        story = Story(esp=bid(sa.context.registry, self._suites), selectors=wanted)
        record(sa, story, CreateChild.type, initiator=True, failure=Failure(detail, error.kind, by_peer=True))
        self.fail(sa, detail, error.kind)

    def _agree(self, terms: Terms, ke: Ke | None) -> bytes:
        """The fresh shared secret, empty without a group."""
        group = terms.proposal.group
        if group is None:
            return b""
        share = self._share
        if ke is None or share is None or group != share.group or ke.group != group.transform_id:
            raise InvalidSyntax(f"no KE payload for the group {group.keyword} that the peer chose")
        return share.shared(ke.data)

    # ---- what survives a restart

    @property
    def asks(self) -> int:
        return self._spi_in

    def state(self) -> ExchangeState:
        return self.request()

    def request(self) -> CreateChildState:
        """What was asked."""
        share = self._share
        return CreateChildState(
            self._number,
            self._spi_in,
            tuple(str(suite) for suite in self._suites),
            self._selectors,
            (share.group.keyword, share.seed) if share else None,
            self._retried,
            self._nonce,
            tuple(self.overtaken),
        )

    def resume(self, state: CreateChildState, registry: Registry) -> None:
        """Have asked that."""
        self._suites = tuple(parse_esp(text, registry) for text in state.suites)
        self._selectors, self._retried, self._nonce = state.selectors, state.retried, state.nonce
        self.overtaken.update(state.overtaken)
        if state.share is not None:
            self._share = share_again(*state.share, self._suites)
            self._group = self._share.group


class CreateChildState(ExchangeState, frozen=True, tag="create child"):
    token: int
    spi_in: EspSpi
    suites: tuple[str, ...]
    selectors: Selectors
    share: tuple[str, bytes] | None  # keyword of the group, seed
    retried: bool
    nonce: bytes
    overtaken: tuple[int, ...]

    def restore(self, sa: IkeSa) -> CreateChild:
        create = CreateChild(self.token, self.spi_in)
        create.resume(self, sa.context.registry)
        return create


class Grant(NamedTuple):
    """A CHILD_SA that the peer may have, and the response that says so."""

    child: Child
    lowest: bytes  # the lower one of the two nonces
    response: tuple[Payload, ...]


def grant(sa: IkeSa, payloads: Payloads) -> Grant:
    """Agree to what the peer asks for, new or rekeyed. Raises ProtocolError."""
    if len(sa.children) >= MAX_CHILDREN:
        raise NoAdditionalSas(f"{MAX_CHILDREN} CHILD_SAs stand already")
    story = Story()
    try:
        terms = terms_for(sa, payloads, story, in_auth=False)
    except (NoProposalChosen, TsUnacceptable) as fault:
        failure = Failure(str(fault), fault.notify, by_peer=False)
        record(sa, story, CreateChild.type, initiator=False, failure=failure)
        raise
    record(sa, story, CreateChild.type, initiator=False)
    nonce, mine = payloads.one(Nonce).data, sa.context.new_nonce()
    ke, shared = _exchange_keys(sa, terms, payloads.maybe(Ke))
    spi_in = sa.context.allocate_spi()
    child = make_child(sa, terms, spi_in, (nonce, mine), initiator=False, shared=shared)
    chosen = with_spi(terms.answer, spi_bytes(spi_in))
    selectors = TsI(terms.remote_ts), TsR(terms.local_ts)
    return Grant(child, min(nonce, mine), (Sa((chosen,)), Nonce(mine), *ke, *selectors))


def _exchange_keys(sa: IkeSa, terms: Terms, ke: Ke | None) -> tuple[tuple[Ke, ...], bytes]:
    """Our KE payload, when a fresh key exchange was agreed on, and the secret."""
    group = terms.proposal.group
    if group is None:
        return (), b""
    ours, shared = answer_ke(group, ke, sa.context.random)
    return (ours,), shared


def answer(sa: IkeSa, payloads: Payloads, now: float) -> None:
    """The peer asks for one more; the response waits until the driver has it in place."""
    child, _, response = grant(sa, payloads)

    def accept(now: float) -> None:
        sa.home.add_child(child)
        sa.respond(response)
        sa.pump(now)

    def reject(error: ProtocolError, now: float) -> None:
        sa.refuse(error)
        sa.pump(now)

    ticket = sa.offer(accept, reject, now)
    if sa.handle is not None:
        sa.context.emit(ChildOffered(ticket, sa.handle, child.sa, None))
