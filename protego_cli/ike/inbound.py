"""One message for one IKE_SA, from datagram to exchange.

1. Direction: its sender must hold the other role; what IKE_SA_INIT answers goes to the exchange that asked.
2. Window: outside it, the message is dropped before any cryptography.
3. Integrity: the only outer payload is SK, and it opens; else dropped, and nothing has changed.
4. A request sent again gets the stored bytes, or nothing while the driver still decides.
5. Law: a new request must be legal in the state, and within its tunnel's allowance (`ike.rations`); else
   dropped, and the window stays.
6. Only now the window moves and the message is authentic: the peer is alive, and perhaps elsewhere.
7. Payloads are parsed and checked; the exchange answers, or processes the response. INVALID_SYNTAX in either
   direction is the end of the IKE_SA (RFC 7296 2.21.3). Payloads and notifications that we do not know change
   nothing; but a critical payload, or an error in a response, is a refusal (2.5, 3.10.1).
"""

from __future__ import annotations

from collections.abc import Callable

from protego_cli.errors import InvalidSyntax, Malformed, NoProposalChosen, ProtocolError, TsUnacceptable
from protego_cli.ike.events import NegotiationFailed, Path
from protego_cli.ike.exchanges import auth, create, informational
from protego_cli.ike.exchanges.init import Dial
from protego_cli.ike.message import Payloads
from protego_cli.ike.protect import NotAuthentic
from protego_cli.ike.sa import IkeSa
from protego_cli.ike.transitions import TAKES, State
from protego_cli.ike.window import Verdict
from protego_cli.wire.ike import Header, parse_sealed_untrusted
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import ExchangeType, parse_chain_untrusted

ANSWERS: dict[int, Callable[[IkeSa, Payloads, float], None]] = {
    ExchangeType.IKE_AUTH: auth.answer,
    ExchangeType.CREATE_CHILD_SA: create.answer,
    ExchangeType.INFORMATIONAL: informational.answer,
}


def receive_untrusted(sa: IkeSa, header: Header, data: bytes, path: Path, now: float) -> None:
    """A datagram that bears our SPI of this IKE_SA."""
    counters = sa.context.counters
    if header.initiator == sa.initiator:
        counters["ike_drop_unexpected"] += 1
    elif header.exchange == ExchangeType.IKE_SA_INIT:
        if header.response and isinstance(sa.current, Dial) and sa.sender.expects(header.message_id):
            sa.current.receive_untrusted(sa, header, data, path, now)
        else:
            counters["ike_drop_unexpected"] += 1
    elif sa.security is None or (header.spi_i, header.spi_r) != (sa.spi_i, sa.spi_r):
        counters["ike_drop_unknown_spi"] += 1
    elif header.response:
        _response_untrusted(sa, header, data, path, now)
    else:
        _request_untrusted(sa, header, data, path, now)


def _request_untrusted(sa: IkeSa, header: Header, data: bytes, path: Path, now: float) -> None:
    counters = sa.context.counters
    verdict = sa.receiver.classify(header.message_id)
    if verdict is Verdict.OUTSIDE:
        counters["ike_drop_message_id"] += 1
        return
    inner = _open_untrusted(sa, header, data)
    if inner is None:
        return
    if verdict is Verdict.HELD:
        sa.reply_path = path
        return
    if verdict is Verdict.AGAIN:
        response = sa.receiver.response
        if response is not None:
            counters["ike_replayed_response"] += 1
            sa.context.send(path, response)
        return
    if header.exchange not in TAKES[sa.state]:
        counters["ike_drop_unexpected"] += 1
        return
    if sa.name and not sa.context.allows(sa.name, now):
        return
    sa.receiver.accept(header.message_id)
    sa.heard(path, now)
    sa.reply_path = path
    sa.answering = header.exchange
    _answer(sa, header, inner, now)
    sa.pump(now)


def _answer(sa: IkeSa, header: Header, inner: tuple[int, bytes], now: float) -> None:
    """Let the exchange answer an authentic request; what it raises becomes the answer."""
    try:
        payloads = Payloads(parse_chain_untrusted(*inner))
        payloads.check(header.exchange, protected=True)
        ANSWERS[header.exchange](sa, payloads, now)
    except Malformed as fault:
        _end_by_syntax(sa, InvalidSyntax(str(fault)), now)
    except InvalidSyntax as fault:
        _end_by_syntax(sa, fault, now)
    except ProtocolError as fault:
        sa.refuse(fault)
        if sa.state is State.HALF_OPEN:  # in IKE_AUTH there is no second try (2.21.2)
            sa.finish(str(fault), now)
        if isinstance(fault, NoProposalChosen | TsUnacceptable):
            sa.context.emit(NegotiationFailed(sa.name, sa.path, fault.notify, str(fault)))


def _end_by_syntax(sa: IkeSa, fault: InvalidSyntax, now: float) -> None:
    sa.refuse(fault)
    sa.finish(f"the peer's request is not valid: {fault}", now)


def _response_untrusted(sa: IkeSa, header: Header, data: bytes, path: Path, now: float) -> None:
    counters = sa.context.counters
    exchange = sa.current
    if exchange is None or not sa.sender.expects(header.message_id):
        counters["ike_drop_message_id"] += 1
        return
    if header.exchange != exchange.type:
        counters["ike_drop_unexpected"] += 1
        return
    inner = _open_untrusted(sa, header, data)
    if inner is None:
        return
    sa.sender.finish()
    sa.current = None
    sa.heard(path, now)
    try:
        payloads = Payloads(parse_chain_untrusted(*inner))
        payloads.check(header.exchange, protected=True)
        if payloads.notify(NotifyType.INVALID_SYNTAX) is not None:
            exchange.fail(sa, "the peer could not parse our request", NotifyType.INVALID_SYNTAX)
            sa.close("the peer could not parse our request")
            return
        exchange.process(sa, payloads, now)
    except (Malformed, ProtocolError) as fault:
        exchange.fail(sa, f"the peer's answer is not valid: {fault}")
        sa.abort(f"the peer's answer is not valid: {fault}")
        return
    sa.pump(now)


def _open_untrusted(sa: IkeSa, header: Header, data: bytes) -> tuple[int, bytes] | None:
    """Type of the first inner payload and the inner chain, or None for what is to be dropped."""
    counters = sa.context.counters
    try:
        inner = parse_sealed_untrusted(header, data)
        if inner is None:
            counters["ike_drop_unexpected"] += 1
            return None
        return inner, sa.open_untrusted(data)
    except Malformed:
        counters["ike_drop_malformed"] += 1
    except NotAuthentic:
        counters["ike_drop_integrity"] += 1
    return None
