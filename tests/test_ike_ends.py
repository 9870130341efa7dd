"""How things end between two engines: deletions, closing, silence, and a peer that breaks the protocol."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protego_cli.ike.events import (
    Alive,
    ChildDeleted,
    ChildDeleteOffered,
    ExchangeFailed,
    IkeClosed,
    IkeDeleteOffered,
)
from protego_cli.ike.protect import Sealer
from protego_cli.wire.ike import Header
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import (
    Delete,
    ExchangeType,
    Notify,
    Opaque,
    Payload,
    Sa,
    TsR,
)
from protego_cli.wire.proposals import Proposal
from tests.support.ike_asker import Ask, ask, error
from tests.support.ike_pairs import GATEWAY, GATEWAY_POLICY, PEER, SPI, TUNNEL, connected, matched
from tests.support.network import DEFAULTS

NEW, NEWER = 0x22222222, 0x33333333


# ---- deletions


def test_deletes_that_cross_end_well_and_name_nothing() -> None:
    network, gateway, peer = connected()
    gateway.rekey(gateway.child.spi_in, NEW)
    network.settle()
    old = SPI
    mine = next(child.spi_in for child in gateway.children.values() if child.spi_out == old)
    answers: list[object] = []
    for site in (gateway, peer):
        sa = site.context.by_handle[site.ike]
        respond = sa.respond

        def spy(payloads: Any, respond: Any = respond) -> None:
            answers.append(payloads)
            respond(payloads)

        sa.respond = spy  # type: ignore[method-assign]  # listens
    tokens = gateway.delete(mine), peer.delete(old)
    network.settle()
    assert answers == [(), ()]
    assert isinstance(gateway.outcome(tokens[0]), ChildDeleted)
    assert isinstance(peer.outcome(tokens[1]), ChildDeleted)
    assert not gateway.of(ChildDeleteOffered)
    assert not peer.of(ChildDeleteOffered)
    assert matched(gateway, peer) == 1


def test_a_delete_that_waits_for_its_turn_is_overtaken() -> None:
    network, gateway, peer = connected()
    mine = gateway.child.spi_in
    gateway.check_alive()
    token = gateway.delete(mine)  # behind the sign of life
    peer.delete(SPI)
    network.settle()
    assert gateway.outcome(token) == ChildDeleted(token, TUNNEL, mine)
    assert not gateway.of(ChildDeleteOffered)
    assert not gateway.context.by_child
    assert not peer.context.by_child


def test_the_answer_to_a_delete_waits_for_the_driver() -> None:
    network, gateway, peer = connected()
    gateway.hold = True
    token = peer.delete(SPI)
    network.settle(10)
    assert peer.outcome(token) is None
    (ticket,) = gateway.tickets
    gateway.grant(ticket)
    gateway.settle()
    network.settle()
    assert isinstance(peer.outcome(token), ChildDeleted)
    assert not gateway.children


def test_deleting_what_has_gone_is_done_at_once() -> None:
    _, gateway, _ = connected()
    token = gateway.delete(0xDEAD)
    assert gateway.outcome(token) == ChildDeleted(token, "", 0xDEAD)


def test_a_delete_of_several_spis_and_of_unknown_ones() -> None:
    network, gateway, peer = connected()
    gateway.rekey(gateway.child.spi_in, NEW)
    network.settle()
    spis = tuple(spi.to_bytes(4, "big") for spi in (*peer.children, 0xDEADBEEF, SPI))
    answer = ask(network, peer, ExchangeType.INFORMATIONAL, Delete(3, spis), Delete(2, (b"abcd",)))
    (deleted,) = answer.deletes()
    assert len(deleted.spis) == 2
    assert not gateway.children
    assert not gateway.context.by_child


# ---- ends


@pytest.mark.parametrize("side", ["gateway", "peer"])
def test_close_from_either_side(side: str) -> None:
    network, gateway, peer = connected()
    asker, other = (gateway, peer) if side == "gateway" else (peer, gateway)
    spis = (tuple(asker.children), tuple(other.children))
    asker.close()
    asker.close()
    network.settle(DEFAULTS.half_open_timeout + 5)
    assert [event.children for event in asker.of(IkeClosed)] == [spis[0]]  # type: ignore[attr-defined]
    assert [event.children for event in other.of(IkeClosed)] == [spis[1]]  # type: ignore[attr-defined]
    for site in (gateway, peer):
        assert not site.context.by_spi
        assert not site.context.by_request
        assert not site.context.by_child
        assert not site.context.by_tunnel
        assert site.context.half_open.total == 0
        assert site.engine.timer() is None


def test_the_answer_to_the_last_delete_waits_for_the_driver() -> None:
    network, gateway, peer = connected()
    gateway.hold = True
    peer.close()
    network.settle(3)  # the peer asks again meanwhile
    assert not peer.of(IkeClosed)
    assert gateway.children
    (ticket,) = gateway.tickets
    assert isinstance(ticket, IkeDeleteOffered)
    assert (ticket.ike, ticket.tunnel) == (gateway.ike, TUNNEL)
    gateway.grant(ticket)
    gateway.settle()
    network.settle(3)
    for site in (gateway, peer):
        assert len(site.of(IkeClosed)) == 1
        assert not site.children


def test_a_driver_that_does_not_decide_is_not_waited_for_for_ever() -> None:
    network, gateway, peer = connected()
    gateway.hold = True
    peer.close()
    network.settle(DEFAULTS.half_open_timeout + 5)
    assert len(gateway.of(IkeClosed)) == len(peer.of(IkeClosed)) == 1


def test_close_from_both_sides_at_once() -> None:
    network, gateway, peer = connected()
    gateway.close()
    peer.close()
    network.settle(100)
    assert len(gateway.of(IkeClosed)) == len(peer.of(IkeClosed)) == 1
    assert not gateway.context.by_spi
    assert not peer.context.by_spi


def test_a_lost_answer_to_the_last_delete_is_said_again() -> None:
    network, gateway, peer = connected()
    peer.close()
    losses = iter([None, None])
    network.tap = lambda datagram: (
        next(losses, datagram.data) if datagram.path.local == GATEWAY else datagram.data
    )
    network.settle(10)
    (closed,) = peer.of(IkeClosed)
    assert isinstance(closed, IkeClosed)
    assert closed.reason == "closed by us"
    assert gateway.counters["ike_replayed_response"] == 2


def test_what_waits_fails_when_the_ike_sa_is_closed() -> None:
    network, gateway, _ = connected()
    spi_in = gateway.child.spi_in
    gateway.check_alive()
    waiting = gateway.rekey(spi_in, NEW)
    gateway.close()
    late = gateway.engine.rekey_child(spi_in, NEW, network.now)
    network.settle()
    assert isinstance(gateway.outcome(waiting), ExchangeFailed)
    assert isinstance(gateway.outcome(late), ExchangeFailed)


def test_a_rekey_while_we_close_is_put_off() -> None:
    network, gateway, peer = connected()
    network.tap = lambda datagram: None
    gateway.close()
    network.tap = lambda datagram: datagram.data
    token = peer.rekey(SPI, NEW)
    network.run(lambda: peer.outcome(token) is not None, limit=0.9)
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.TEMPORARY_FAILURE


# ---- liveness


def test_silence_is_asked_about_and_death_is_noticed() -> None:
    network, gateway, _ = connected()
    network.settle(DEFAULTS.liveness * 3)
    assert gateway.ikes
    del network.sites[PEER]
    pending = gateway.engine.check_alive(gateway.ike, network.now)
    network.settle(200)
    (closed,) = gateway.of(IkeClosed)
    assert isinstance(closed, IkeClosed)
    assert closed.reason == "the peer does not answer"
    assert isinstance(gateway.outcome(pending), ExchangeFailed)
    assert gateway.engine.timer() is None
    assert not gateway.context.by_spi


def test_one_sign_of_life_per_silence() -> None:
    network, gateway, peer = connected()
    before = len(network.sent)
    network.settle(DEFAULTS.liveness * 10 + 1)
    assert 20 <= len(network.sent) - before <= 24
    assert not gateway.counters.nonzero()
    assert not peer.counters.nonzero()


def test_check_alive() -> None:
    network, gateway, _ = connected()
    token = gateway.check_alive()
    network.settle(1)
    assert gateway.outcome(token) == Alive(token)
    assert isinstance(gateway.outcome(gateway.engine.check_alive(999, network.now)), ExchangeFailed | None)
    gateway.settle()
    assert isinstance(gateway.events[-1], ExchangeFailed)


# ---- the peer breaks the protocol


def test_a_critical_payload_we_do_not_know_is_refused_and_all_goes_on() -> None:
    network, gateway, peer = connected()
    answer = ask(network, peer, ExchangeType.INFORMATIONAL, Opaque(210, b"", critical=True))
    refused = answer.error()
    assert refused == Notify(NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, b"\xd2")
    assert error(ask(network, peer, ExchangeType.INFORMATIONAL, Opaque(210, b""))) is None
    assert matched(gateway, peer) == 1


@pytest.mark.parametrize(
    "payloads",
    [
        (Opaque(42, b"\x03\x04\xff\xff"),),  # a DELETE that claims SPIs it does not hold
        (Sa((Proposal(1, 3, b"abcd", ()),)),),  # an SA payload where none may stand
    ],
)
def test_invalid_syntax_ends_the_ike_sa(payloads: tuple[Payload, ...]) -> None:
    network, gateway, peer = connected()
    exchange = Ask(ExchangeType.INFORMATIONAL, *payloads)
    peer.context.by_handle[peer.ike].start(exchange, network.now)
    peer.settle()
    network.settle()
    assert not gateway.ikes
    assert not peer.ikes
    (closed,) = gateway.of(IkeClosed)
    assert isinstance(closed, IkeClosed)
    assert closed.reason.startswith("the peer's request is not valid")


@pytest.mark.parametrize("kind", [35, 43])
def test_an_exchange_that_is_not_legal_now_is_dropped(kind: int) -> None:
    """IKE_AUTH after IKE_AUTH, and IKE_INTERMEDIATE which we do not know: the window does not move."""
    network, gateway, peer = connected()
    sa = peer.context.by_handle[peer.ike]
    header = Header(sa.spi_i, sa.spi_r, kind, True, False, sa.sender.next_id)
    data = Sealer(sa.suite, sa.keys.ei, sa.keys.ai, 9, bytes).seal(header, ())
    gateway.engine.receive_datagram(data, gateway.child.path, network.now)
    assert gateway.engine.datagrams_to_send() == []
    assert gateway.counters.nonzero() == {"ike_drop_unexpected": 1}
    peer.check_alive()
    network.settle()
    assert isinstance(peer.events[-1], Alive)


def test_selectors_beyond_what_was_asked_are_not_taken() -> None:
    """A responder that answers wider than proposed: the CHILD_SA is withdrawn, the IKE_SA stands."""
    network, gateway, peer = connected()
    widened = (msgspec.structs.replace(GATEWAY_POLICY.remote_ts[0], start=bytes(4), end=b"\xff" * 4),)
    peer.hold = True
    token = gateway.rekey(gateway.child.spi_in, NEW)
    network.run(lambda: bool(peer.tickets))
    sa = peer.context.by_handle[peer.ike]
    respond = sa.respond

    def lie(payloads: Any) -> None:
        respond(tuple(TsR(widened) if isinstance(payload, TsR) else payload for payload in payloads))

    sa.respond = lie  # type: ignore[method-assign]  # this peer lies
    peer.hold = False
    peer.grant(peer.tickets[0])
    peer.settle()
    sa.respond = respond  # type: ignore[method-assign]
    network.settle()
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert "beyond what was proposed" in outcome.detail
    assert matched(gateway, peer) == 1
