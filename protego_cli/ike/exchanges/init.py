"""IKE_SA_INIT: nonces, Diffie-Hellman, NAT detection, cookies (RFC 7296 1.2, 2.6, 2.7, 2.23).

    HDR, [N(COOKIE)], SAi1, KEi, Ni, N(NATD source), N(NATD destination)  -->
                <--  HDR, SAr1, KEr, Nr, N(NATD source), N(NATD destination)
                 or  HDR, N(COOKIE) | N(INVALID_KE_PAYLOAD) | N(error)

Nothing here is authenticated. As initiator we therefore follow a COOKIE or INVALID_KE_PAYLOAD a few times at
most, and take another error only as a reason to give up earlier: a true answer may still come (2.21.1). As
responder we hold nothing for an address that has not shown a cookie once handshakes become many.
"""

from __future__ import annotations

from collections.abc import Sequence

from protego_cli.crypto.proposal import IkeProposal, parse_ike
from protego_cli.crypto.shares import KeyShare
from protego_cli.errors import InvalidKePayload, Malformed, NoProposalChosen, ProtocolError
from protego_cli.ike.context import NO_SPI, Context
from protego_cli.ike.events import Negotiated, NegotiationFailed, Path
from protego_cli.ike.exchanges.auth import Authenticate
from protego_cli.ike.exchanges.base import EspSpi, Exchange, ExchangeState, record
from protego_cli.ike.keys import ike_keys, skeyseed
from protego_cli.ike.message import Payloads
from protego_cli.ike.natd import Nat, detect, floated, natd_payloads
from protego_cli.ike.negotiation import (
    answer_ke,
    choose,
    confirm,
    difference,
    propose,
    share_again,
    wanted_group,
)
from protego_cli.ike.record import Failure, Story, bid, unanswered
from protego_cli.ike.sa import Handshake, IkeSa
from protego_cli.ike.transitions import State, Trigger
from protego_cli.ike.window import ReceiveWindow
from protego_cli.wire.ike import MAJOR_VERSION, Header, build_message, parse_message_untrusted
from protego_cli.wire.notifies import NotifyType, notify_name
from protego_cli.wire.payloads import ExchangeType, Ke, Nonce, Notify, Payload, Sa
from protego_cli.wire.proposals import Proposal

_MAX_RESTARTS = 5
_MAX_COOKIE = 64


class Dial(Exchange):
    """Our IKE_SA_INIT; a success goes on with IKE_AUTH for a CHILD_SA under `spi_in`."""

    type = ExchangeType.IKE_SA_INIT

    def __init__(self, token: int | None, suites: tuple[IkeProposal, ...], spi_in: int) -> None:
        super().__init__(token)
        self._spi_in = spi_in
        self._suites = suites
        self._group = suites[0].group
        self._share: KeyShare | None = None
        self._cookie = b""
        self._restarts = 0
        self._refusal: tuple[int, str] | None = None

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload]:
        context = sa.context
        if sa.handshake is None:
            sa.handshake = Handshake(context.new_nonce())
            sa.forced = context.forces(sa.tunnel.forced)
        if self._share is None:
            self._share = KeyShare.generate(self._group, context.random)
        cookie = (Notify(NotifyType.COOKIE, self._cookie),) if self._cookie else ()
        return (
            *cookie,
            Sa(propose(self._suites, b"")),
            Ke(self._group.transform_id, self._share.public),
            Nonce(sa.handshake.nonce_i),
            *natd_payloads(sa.spi_i, NO_SPI, sa.path, force=sa.forced),
        )

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """Responses come to `receive_untrusted`: they are not authentic."""
        raise RuntimeError("IKE_SA_INIT has no authentic response")

    def fail(self, sa: IkeSa, detail: str, notify: int | None = None) -> None:
        sent = 0 if self._refusal else sa.sender.sent
        if self._refusal is not None and notify is None:
            notify, detail = self._refusal
        sa.story.ike = bid(sa.context.registry, self._suites)
        failure = Failure(detail, notify, by_peer=True, sent=sent)
        record(sa, sa.story, self.type, initiator=True, failure=failure)
        super().fail(sa, detail, notify)

    def receive_untrusted(self, sa: IkeSa, header: Header, data: bytes, path: Path, now: float) -> None:
        """A response that bears our SPI. One that leads nowhere changes nothing but our patience."""
        counters = sa.context.counters
        try:
            payloads = Payloads(parse_message_untrusted(data).payloads)
            payloads.check(self.type, protected=False)
            if not self._redirected(sa, payloads, now):
                self._accept(sa, header, payloads, data, path, now)
        except Malformed:
            counters["ike_drop_malformed"] += 1
        except ProtocolError:
            counters["ike_drop_unexpected"] += 1

    def _redirected(self, sa: IkeSa, payloads: Payloads, now: float) -> bool:
        """Whether the response was no more than a hint, which has then been followed or noted."""
        cookie = payloads.notify(NotifyType.COOKIE)
        if cookie is not None and payloads.maybe(Sa) is None:
            if cookie.data != self._cookie and 0 < len(cookie.data) <= _MAX_COOKIE:
                self._cookie = cookie.data
                self._restart(sa, now)
            return True
        error = payloads.error()
        if error is None:
            return False
        group = wanted_group(error, self._suites)
        if group is None:
            offered = " | ".join(str(suite) for suite in self._suites)
            self._refusal = (error.kind, f"the peer answered {notify_name(error.kind)}; ours: {offered}")
            sa.sender.give_up_soon()
        elif group is not self._group:
            self._group, self._share = group, None
            self._restart(sa, now)
        return True

    def _restart(self, sa: IkeSa, now: float) -> None:
        """The same message ID, SPI and nonce, with the cookie or group that was asked for."""
        if self._restarts >= _MAX_RESTARTS:
            return
        self._restarts += 1
        sa.sender.cancel()
        sa.current = None
        sa.queue.appendleft(self)
        sa.pump(now)

    def _accept(
        self, sa: IkeSa, header: Header, payloads: Payloads, data: bytes, path: Path, now: float
    ) -> None:
        handshake, share = sa.handshake, self._share
        if handshake is None or share is None:
            raise RuntimeError("a response before the request")
        ke, nonce = payloads.one(Ke), payloads.one(Nonce)
        chosen = confirm(self._suites, payloads.one(Sa).proposals, 0)
        if chosen is None or chosen.suite.group is not self._group or header.spi_r == NO_SPI:
            self._refusal = (NotifyType.NO_PROPOSAL_CHOSEN, "the peer chose a proposal that was not offered")
            sa.sender.give_up_soon()
            return
        if ke.group != self._group.transform_id:
            raise InvalidKePayload(f"group {ke.group} instead of {self._group.transform_id}")
        shared = share.shared(ke.data)
        sa.spi_r = header.spi_r
        handshake.nonce_r, handshake.response = nonce.data, data
        sa.story.ike = bid(sa.context.registry, self._suites, payloads.one(Sa).proposals, chosen.suite)
        _derive(sa, chosen.suite, handshake, shared)
        nat = detect(sa.spi_i, sa.spi_r, path, payloads.notifies())
        _take_note(sa, nat)
        if nat.supported and sa.encapsulated:
            sa.path = floated(sa.path)
        sa.sender.finish()
        sa.current = None
        sa.move(Trigger.INIT_ANSWERED)
        sa.queue.appendleft(Authenticate(self.token, self._spi_in))
        sa.pump(now)

    @property
    def asks(self) -> int:
        return self._spi_in

    def state(self) -> DialState:
        if self._share is None:
            raise RuntimeError("nothing has been asked yet")
        return DialState(
            self.token,
            self._spi_in,
            tuple(str(suite) for suite in self._suites),
            self._group.keyword,
            self._share.seed,
            self._cookie,
            self._restarts,
            self._refusal,
        )


class DialState(ExchangeState, frozen=True, tag="dial"):
    token: int | None
    spi_in: EspSpi
    suites: tuple[str, ...]
    group: str  # the one whose public value has been sent
    seed: bytes
    cookie: bytes
    restarts: int
    refusal: tuple[int, str] | None

    def restore(self, sa: IkeSa) -> Dial:
        suites = tuple(parse_ike(text, sa.context.registry) for text in self.suites)
        share = share_again(self.group, self.seed, suites)
        dial = Dial(self.token, suites, self.spi_in)
        dial._group, dial._share = share.group, share
        dial._cookie, dial._restarts, dial._refusal = self.cookie, self.restarts, self.refusal
        return dial


def answer_untrusted(context: Context, header: Header, data: bytes, path: Path, now: float) -> None:
    """An IKE_SA_INIT request. Raises Malformed."""
    key = (header.spi_i, path.remote, path.remote_port)
    existing = context.by_request.get(key)
    if existing is not None:
        _again(existing, data, path)
        return
    payloads = Payloads(parse_message_untrusted(data).payloads)
    try:
        payloads.check(ExchangeType.IKE_SA_INIT, protected=False)
        _invite(context, header, payloads, data, path, now)
    except (InvalidKePayload, NoProposalChosen) as fault:
        _reply(context, header, path, Notify(fault.notify, fault.data))
    except ProtocolError as fault:
        context.counters["ike_drop_unexpected"] += 1
        _reply(context, header, path, Notify(fault.notify, fault.data))


def _again(sa: IkeSa, data: bytes, path: Path) -> None:
    """A request from where we have one already: the same again, or nothing we could use."""
    handshake = sa.handshake
    if sa.state is State.HALF_OPEN and handshake is not None and handshake.request == data:
        sa.context.counters["ike_replayed_response"] += 1
        sa.context.send(path, handshake.response)
    else:
        sa.context.counters["ike_drop_unexpected"] += 1


def _invite(
    context: Context, header: Header, payloads: Payloads, data: bytes, path: Path, now: float
) -> None:
    """Answer a request that is complete; the state it costs is one half-open IKE_SA."""
    offer, ke, nonce = payloads.one(Sa), payloads.one(Ke), payloads.one(Nonce)
    if not context.half_open.admits(path.remote, named=context.policies.named(path.remote)):
        context.counters["ike_drop_half_open"] += 1
        return
    if context.half_open.wants_cookie and not _proven(context, header, payloads, nonce.data, path, now):
        cookie = context.cookies.make(path.remote, header.spi_i, nonce.data, now)
        _reply(context, header, path, Notify(NotifyType.COOKIE, cookie))
        return
    suite, answer, story = _choose(context, offer, path, now)
    ours, shared = answer_ke(suite.group, ke, context.random)

    sa = IkeSa(context, path, header.spi_i, context.new_spi(), initiator=False)
    sa.handshake = Handshake(nonce.data, context.new_nonce(), request=data)
    sa.story = story
    sa.forced = context.forces(context.policies.forced(path.remote))
    _take_note(sa, detect(sa.spi_i, NO_SPI, path, payloads.notifies()))
    _derive(sa, suite, sa.handshake, shared)
    response = (
        Sa((answer,)),
        ours,
        Nonce(sa.handshake.nonce_r),
        *natd_payloads(sa.spi_i, sa.spi_r, path, force=sa.forced),
    )
    sa.handshake.response = build_message(_response_header(header, sa.spi_r), response)
    sa.receiver = ReceiveWindow(header.message_id + 1)  # this one is answered by what it is, not by its ID
    sa.expires = now + context.settings.half_open_timeout
    sa.request_key = (header.spi_i, path.remote, path.remote_port)
    context.by_request[sa.request_key] = sa
    sa.move(Trigger.INVITED)
    context.send(path, sa.handshake.response)


def _proven(
    context: Context, header: Header, payloads: Payloads, nonce: bytes, path: Path, now: float
) -> bool:
    """Whether the initiator brings a cookie of ours, so that it does receive at its address."""
    cookie = payloads.notify(NotifyType.COOKIE)
    return cookie is not None and context.cookies.valid(cookie.data, path.remote, header.spi_i, nonce, now)


def _choose(context: Context, offer: Sa, path: Path, now: float) -> tuple[IkeProposal, Proposal, Story]:
    """A suite of any tunnel this peer might be; which one it is, only IKE_AUTH tells."""
    suites = context.policies.suites(path.remote)
    chosen = choose(suites, offer.proposals, 0)
    if chosen is None:
        if context.reports.allow(now):  # it costs more than all the rest
            _report_untrusted(context, suites, offer, path)
        raise NoProposalChosen("no proposal of the peer is one of ours")
    return chosen.suite, chosen.answer, Story(bid(context.registry, suites, offer.proposals, chosen.suite))


def _report_untrusted(context: Context, suites: Sequence[IkeProposal], offer: Sa, path: Path) -> None:
    """Tell that there is no suite for a peer, and why."""
    detail, offers = "no tunnel has a peer at this address", None
    if suites:
        detail = difference(suites, offer.proposals, context.registry)
        offers = bid(context.registry, suites, offer.proposals)
    tunnels = context.policies.facing(path.remote, 2)
    name = tunnels[0].name if len(tunnels) == 1 else None
    kind = NotifyType.NO_PROPOSAL_CHOSEN
    context.emit(NegotiationFailed(name, path, kind, detail))
    context.emit(Negotiated(unanswered(name, path, offers, Failure(detail, kind, by_peer=False))))


def _take_note(sa: IkeSa, nat: Nat) -> None:
    """Of what stands between us and the peer, which sees the same and chooses the same form of ESP. Where it
    does not, each still takes what the other sends.
    """
    sa.peer_natted = nat.remote
    sa.encapsulated = sa.forced or nat.local or nat.remote


def _derive(sa: IkeSa, suite: IkeProposal, handshake: Handshake, shared: bytes) -> None:
    nonces = (handshake.nonce_i, handshake.nonce_r)
    seed = skeyseed(suite.prf, *nonces, shared)
    sa.secure(suite, ike_keys(suite, seed, nonces, (sa.spi_i, sa.spi_r)))


def refuse_version_untrusted(context: Context, header: Header, path: Path, now: float) -> None:
    """A request of a later version: name ours, rarely, and at no greater length (RFC 7296 1.5, 2.5)."""
    if header.major < MAJOR_VERSION or header.response:
        return
    spis = header.spi_i, header.spi_r
    answer = Header(*spis, header.exchange, not header.initiator, True, header.message_id)
    data = build_message(answer, (Notify(NotifyType.INVALID_MAJOR_VERSION),))
    if len(data) <= header.length and context.complaints.allow(now):
        context.send(path, data)


def _reply(context: Context, header: Header, path: Path, notify: Notify) -> None:
    """A response that leaves no state behind; none that is longer than what it answers."""
    data = build_message(_response_header(header, NO_SPI), (notify,))
    if len(data) <= header.length:
        context.send(path, data)


def _response_header(header: Header, spi_r: bytes) -> Header:
    return Header(header.spi_i, spi_r, ExchangeType.IKE_SA_INIT, False, True, header.message_id)
