"""IKE_AUTH: both sides prove themselves, and the first CHILD_SA (RFC 7296 1.2, 2.15, 2.21.2).

    HDR, SK {IDi, [N(INITIAL_CONTACT)], IDr, AUTH, SAi2, TSi, TSr}  -->
                                 <--  HDR, SK {IDr, AUTH, SAr2, TSi, TSr}
                                  or  HDR, SK {IDr, AUTH, N(error)}         no CHILD_SA, the IKE_SA stands
                                  or  HDR, SK {N(AUTHENTICATION_FAILED)}

As responder: identities and the peer's address select the tunnel, AUTH proves the peer; from then on the
IKE_SA exists. The CHILD_SA is offered to the driver, and our half of the proof goes out with its decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from protego_cli.errors import (
    AuthenticationFailed,
    InvalidSyntax,
    NoProposalChosen,
    ProtocolError,
    TsUnacceptable,
)
from protego_cli.ike.children import (
    Child,
    Terms,
    make_child,
    spi_bytes,
    terms_answered,
    terms_for,
    with_spi,
)
from protego_cli.ike.events import ChildEstablished, ChildOffered, Negotiated, NegotiationFailed
from protego_cli.ike.exchanges.base import EspSpi, Exchange, ExchangeState, record
from protego_cli.ike.exchanges.delete import Withdraw
from protego_cli.ike.identities import Identity
from protego_cli.ike.message import Payloads
from protego_cli.ike.narrowing import describe
from protego_cli.ike.negotiation import propose, without_groups
from protego_cli.ike.record import (
    MAX_TUNNELS,
    Failure,
    Identities,
    Negotiation,
    Selectors,
    Story,
    bid,
    introduced,
    tell,
)
from protego_cli.ike.transitions import State, Trigger
from protego_cli.wire.notifies import NotifyType, notify_name
from protego_cli.wire.payloads import Auth, ExchangeType, IdI, IdR, Notify, Payload, Sa, TsI, TsR

if TYPE_CHECKING:
    from protego_cli.ike.policies import Tunnel
    from protego_cli.ike.sa import IkeSa


class Authenticate(Exchange):
    """Our IKE_AUTH, for a CHILD_SA under `spi_in`."""

    type = ExchangeType.IKE_AUTH

    def __init__(self, token: int | None, spi_in: int) -> None:
        super().__init__(token)
        self._spi_in = spi_in
        self._answered = False
        self._ours = False  # what fails, fails by our judgement

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload]:
        tunnel = sa.tunnel
        policy = tunnel.policy
        mine = IdI(tunnel.local_id.kind, tunnel.local_id.data)
        contact = () if tunnel.name in sa.context.by_tunnel else (Notify(NotifyType.INITIAL_CONTACT),)
        return (
            mine,
            *contact,
            IdR(tunnel.remote_id.kind, tunnel.remote_id.data),
            sa.signer(initiator=True).sign(policy.psk, mine),
            Sa(propose(without_groups(tunnel.esp), spi_bytes(self._spi_in))),
            TsI(policy.local_ts),
            TsR(policy.remote_ts),
        )

    def fail(self, sa: IkeSa, detail: str, notify: int | None = None) -> None:
        self._tell(
            sa, Failure(detail, notify, by_peer=not self._ours, sent=0 if self._answered else sa.sender.sent)
        )
        super().fail(sa, detail, notify)

    def _tell(self, sa: IkeSa, failure: Failure | None = None) -> None:
        tunnel, story, registry = sa.tunnel, sa.story, sa.context.registry
        sa.story = Story()
        if story.identities is None:
            story.identities = Identities(str(tunnel.local_id), str(tunnel.remote_id), None, None)
        if story.esp is None:
            story.esp = bid(registry, without_groups(tunnel.esp))
        if story.selectors is None:
            story.selectors = Selectors(tunnel.policy.local_ts, tunnel.policy.remote_ts, None, None)
        record(sa, story, self.type, initiator=True, failure=failure)

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        self._answered = True
        auth, error = payloads.maybe(Auth), payloads.error()
        if auth is None:
            kind = error.kind if error else NotifyType.AUTHENTICATION_FAILED
            self.fail(sa, f"the peer answered {notify_name(kind)}", kind)
            sa.close("the handshake failed")
            return
        flaw = _flaw(sa, payloads.one(IdR), auth)
        if flaw is not None:
            self._ours = True
            self.fail(sa, flaw, NotifyType.AUTHENTICATION_FAILED)
            sa.say_once((Notify(NotifyType.AUTHENTICATION_FAILED),))
            sa.close(flaw)
            return
        if payloads.notify(NotifyType.INITIAL_CONTACT) is not None:
            _close_others(sa)
        handshake = sa.handshake
        if handshake is None:
            raise RuntimeError("the handshake is over")
        nonces = (handshake.nonce_i, handshake.nonce_r)
        sa.report(self.token, now)
        sa.establish(now)
        if error is not None or payloads.maybe(Sa) is None:
            kind = error.kind if error else NotifyType.NO_ADDITIONAL_SAS
            self.fail(sa, f"the peer answered {notify_name(kind)}; ours: {_wishes(sa.tunnel)}", kind)
            return
        self._take_child(sa, payloads, nonces, now)

    def _take_child(self, sa: IkeSa, payloads: Payloads, nonces: tuple[bytes, bytes], now: float) -> None:
        policy = sa.tunnel.policy
        suites = without_groups(sa.tunnel.esp)
        try:
            terms = terms_answered(
                sa, payloads, sa.story, suites, policy.local_ts, policy.remote_ts, in_auth=True
            )
        except InvalidSyntax as fault:
            self._ours = True
            self.fail(sa, str(fault))
            sa.start(Withdraw(self._spi_in), now)
            return
        child = make_child(sa, terms, self._spi_in, nonces, initiator=True)
        sa.add_child(child)
        self._tell(sa)
        if self.token is not None and sa.handle is not None:
            sa.context.emit(ChildEstablished(self.token, sa.handle, child.sa, None))

    @property
    def asks(self) -> int:
        return self._spi_in

    def state(self) -> AuthenticateState:
        return AuthenticateState(self.token, self._spi_in)


class AuthenticateState(ExchangeState, frozen=True, tag="auth"):
    token: int | None
    spi_in: EspSpi

    def restore(self, sa: IkeSa) -> Authenticate:
        return Authenticate(self.token, self.spi_in)


def _flaw(sa: IkeSa, identity: IdR, auth: Auth) -> str | None:
    """Why the responder's proof does not hold."""
    claimed, expected = Identity.of(identity), sa.tunnel.remote_id
    met = introduced((sa.tunnel,), claimed, None)
    sa.story.identities = met
    if claimed.key != expected.key:
        return f"the peer calls itself {claimed}, ours expects {expected}"
    proven = sa.signer(initiator=False).verify(sa.tunnel.policy.psk, identity, auth)
    sa.story.identities = replace(met, proven=proven)
    if not proven:
        return f"the peer's AUTH is wrong: {claimed} does not hold our pre-shared key"
    return None


def answer(sa: IkeSa, payloads: Payloads, now: float) -> None:
    """IKE_AUTH as responder."""
    try:
        identity, auth = payloads.one(IdI), payloads.maybe(Auth)
        payloads.require(Sa, TsI, TsR)
        sa.tunnel = _authenticate(sa, identity, payloads.maybe(IdR), auth, payloads)
    except ProtocolError as fault:
        sa.refuse(fault)
        told = _end(sa, Failure(str(fault), fault.notify, by_peer=False))
        if sa.context.reports.allow(now):
            sa.context.emit(NegotiationFailed(told.tunnel, sa.path, fault.notify, str(fault)))
            sa.context.emit(Negotiated(told))
        sa.finish(str(fault), now)
        return
    if not sa.context.allows(sa.name, now):
        sa.close("its peer dials again and again")  # and finds out by itself, which takes it a while
        return
    if payloads.notify(NotifyType.INITIAL_CONTACT) is not None:
        _close_others(sa)
    sa.report(None, now)
    try:
        terms = terms_for(sa, payloads, sa.story, in_auth=True)
    except (NoProposalChosen, TsUnacceptable) as fault:
        sa.context.emit(NegotiationFailed(sa.name, sa.path, fault.notify, str(fault)))
        sa.context.emit(Negotiated(_end(sa, Failure(str(fault), fault.notify, by_peer=False))))
        _complete(sa, now, Notify(fault.notify, fault.data))
        return
    _offer(sa, terms, now)


def _end(sa: IkeSa, failure: Failure | None = None) -> Negotiation:
    """The record of a handshake that the peer began."""
    story, sa.story = sa.story, Story()
    return tell(sa, story, ExchangeType.IKE_AUTH, initiator=False, failure=failure)


def _authenticate(
    sa: IkeSa, identity: IdI, expected: IdR | None, auth: Auth | None, payloads: Payloads
) -> Tunnel:
    """The tunnel whose pre-shared key the peer has proven to hold; of several, the one it can use."""
    claimed = Identity.of(identity)
    wanted = Identity.of(expected) if expected else None
    found = [
        tunnel
        for tunnel in sa.context.policies.between(sa.path.remote, claimed, wanted)
        if sa.suite in tunnel.ike
    ]
    here = sa.context.policies.facing(sa.path.remote, MAX_TUNNELS)
    sa.story.identities = introduced(found or here, claimed, wanted)
    if not found:
        names = " | ".join(f"{tunnel.remote_id} to {tunnel.local_id}" for tunnel in here)
        raise AuthenticationFailed(
            f"no tunnel for {claimed} to {wanted or 'any of ours'} with {sa.suite}; "
            f"ours at this address: {names or 'none'}"
        )
    sa.tunnel = found[0]  # names the tunnel in what is reported, should the proof fail
    if auth is None:
        raise AuthenticationFailed(f"{claimed} wants EAP, ours is a pre-shared key")
    signer = sa.signer(initiator=True)
    proven = [tunnel for tunnel in found if signer.verify(tunnel.policy.psk, identity, auth)]
    met = introduced(proven or found, claimed, wanted)
    sa.story.identities = replace(met, proven=bool(proven))
    if not proven:
        raise AuthenticationFailed(f"AUTH of {claimed} is wrong: its pre-shared key is not ours")
    admitted = [tunnel for tunnel in proven if tunnel.name not in sa.context.barred]
    if not admitted:  # said to the peer alone: who does not hold the key cannot tell
        sa.tunnel = proven[0]
        raise AuthenticationFailed(f"{sa.name} is down by operator; `protego tunnel up {sa.name}` lets it in")
    return next((tunnel for tunnel in admitted if _usable(sa, tunnel, payloads)), admitted[0])


def _usable(sa: IkeSa, tunnel: Tunnel, payloads: Payloads) -> bool:
    """Whether a CHILD_SA of this tunnel would come of the request."""
    sa.tunnel = tunnel
    try:
        terms_for(sa, payloads, Story(), in_auth=True)
    except (NoProposalChosen, TsUnacceptable):
        return False
    return True


def _offer(sa: IkeSa, terms: Terms, now: float) -> None:
    handshake = sa.handshake
    if handshake is None or sa.handle is None:
        raise RuntimeError("the handshake is over")
    spi_in = sa.context.allocate_spi()
    child = make_child(sa, terms, spi_in, (handshake.nonce_i, handshake.nonce_r), initiator=False)
    sa.move(Trigger.AUTH_HELD)
    sa.expires = None

    def accept(now: float) -> None:
        _accept(sa, terms, child, now)

    def reject(error: ProtocolError, now: float) -> None:
        sa.context.emit(Negotiated(_end(sa, Failure(str(error), error.notify, by_peer=False))))
        _complete(sa, now, Notify(error.notify, error.data))
        sa.pump(now)

    ticket = sa.offer(accept, reject, now)
    sa.context.emit(ChildOffered(ticket, sa.handle, child.sa, None))


def _accept(sa: IkeSa, terms: Terms, child: Child, now: float) -> None:
    sa.add_child(child)
    sa.context.emit(Negotiated(_end(sa)))
    chosen = with_spi(terms.answer, spi_bytes(child.sa.spi_in))
    _complete(sa, now, Sa((chosen,)), TsI(terms.remote_ts), TsR(terms.local_ts))
    sa.pump(now)


def _complete(sa: IkeSa, now: float, *payloads: Payload) -> None:
    """Our half of the proof, with the CHILD_SA's payloads or the reason why there is none."""
    tunnel = sa.tunnel
    mine = IdR(tunnel.local_id.kind, tunnel.local_id.data)
    proof = sa.signer(initiator=False).sign(tunnel.policy.psk, mine)
    sa.establish(now)
    sa.respond((mine, proof, *payloads))


def _close_others(sa: IkeSa) -> None:
    """INITIAL_CONTACT: the peer knows of no other IKE_SA with us (RFC 7296 2.4). One whose IKE_AUTH was
    answered meanwhile stands there all the same, so the peer is told; who does not know it takes no notice.
    """
    for other in list(sa.context.by_tunnel.get(sa.name, ())):
        if other is not sa:
            end = other.abort if other.state is State.ESTABLISHED else other.close
            end("the peer has started anew")


def _wishes(tunnel: Tunnel) -> str:
    suites = " | ".join(str(suite) for suite in without_groups(tunnel.esp))
    policy = tunnel.policy
    return f"{suites}, local {describe(policy.local_ts)}, remote {describe(policy.remote_ts)}"
