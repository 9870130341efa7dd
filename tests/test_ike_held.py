"""Requests that are made ahead: stored, and not sent before they are let go."""

from __future__ import annotations

import pytest

from protego_cli.ike.events import Alive, ChildEstablished
from tests.support.ike_pairs import connected, matched
from tests.support.ike_restarts import fresh
from tests.support.network import Network, Site

NEW, NEWER = 0x22222222, 0x33333333


def held() -> tuple[Network, Site, Site, int]:
    """The gateway has made the rekey of its CHILD_SA, and holds it."""
    network, gateway, peer = connected()
    gateway.engine.changes()
    network.sent.clear()
    token = gateway.engine.rekey_child(gateway.child.spi_in, NEW, network.now, held=True)
    gateway.settle()
    return network, gateway, peer, token


def test_it_is_stored_and_does_not_leave_however_long() -> None:
    network, gateway, _, token = held()
    assert len(gateway.engine.changes()) == 1
    assert gateway.engine.asked() == {NEW: token}
    network.settle(8)  # and is not retransmitted
    assert network.sent == []


def test_let_go_it_leaves_with_all_its_tries_and_nothing_more_to_store() -> None:
    network, gateway, peer, token = held()
    network.settle(8)
    gateway.engine.changes()
    gateway.engine.let_go(token, network.now)
    assert gateway.engine.changes() == []
    (request,) = gateway.engine.datagrams_to_send()  # lost
    network.settle(3)
    assert network.sent[0].data == request.data
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ChildEstablished)
    assert outcome.replaces is not None
    assert matched(gateway, peer) == 2


def test_withdrawn_it_leaves_its_message_id_to_the_next() -> None:
    network, gateway, peer, token = held()
    gateway.engine.withdraw(token, network.now)
    gateway.settle()
    assert len(gateway.engine.changes()) == 1
    assert gateway.engine.asked() == {}
    again = gateway.rekey(gateway.child.spi_in, NEWER)
    network.settle(3)
    assert isinstance(gateway.outcome(again), ChildEstablished)
    assert gateway.outcome(token) is None
    assert matched(gateway, peer) == 2
    assert NEW not in gateway.children


def test_what_comes_behind_it_waits() -> None:
    network, gateway, _, token = held()
    alive = gateway.check_alive()
    network.settle(3)
    assert network.sent == []
    gateway.engine.let_go(token, network.now)
    gateway.settle()
    network.settle(3)
    assert isinstance(gateway.outcome(token), ChildEstablished)
    assert isinstance(gateway.outcome(alive), Alive)


@pytest.mark.parametrize("withdrawn", [False, True])
def test_its_turn_may_come_after_it_was_let_go_or_never(withdrawn: bool) -> None:
    network, gateway, peer = connected()
    alive = gateway.check_alive()
    token = gateway.engine.rekey_child(gateway.child.spi_in, NEW, network.now, held=True)
    (gateway.engine.withdraw if withdrawn else gateway.engine.let_go)(token, network.now)
    gateway.settle()
    network.settle(3)
    assert isinstance(gateway.outcome(alive), Alive)
    assert matched(gateway, peer) == (1 if withdrawn else 2)


def test_the_peer_may_rekey_the_ike_sa_meanwhile() -> None:
    network, gateway, peer, token = held()
    peer.rekey_ike()
    network.settle(3)
    gateway.engine.let_go(token, network.now)
    gateway.settle()
    network.settle(60)
    assert gateway.outcome(token) is not None
    assert matched(gateway, peer) in (1, 2)


def test_the_ike_sa_may_end_meanwhile() -> None:
    network, gateway, peer, token = held()
    peer.close()
    network.settle(3)
    failed = gateway.outcome(token)
    assert failed is not None
    gateway.engine.let_go(token, network.now)
    gateway.engine.withdraw(token, network.now)
    gateway.settle()
    assert gateway.outcome(token) is failed


@pytest.mark.parametrize("again", [False, True])
def test_an_engine_that_follows_sends_it_at_once_unless_told_to_hold_it(again: bool) -> None:
    network, gateway, peer, token = held()
    states = [state for _, state in gateway.engine.changes() if state is not None]
    gateway.engine = fresh()
    gateway.engine.restore(states, network.now)
    if again:
        gateway.engine.hold((token,))
        network.settle(8)
        assert network.sent == []
        gateway.engine.let_go(token, network.now)
        gateway.settle()
    network.settle(3)
    assert isinstance(gateway.outcome(token), ChildEstablished)
    assert matched(gateway, peer) == 2
