"""CHILD_SAs beside one another in one IKE_SA: made from either side, narrowed, bounded, crossed."""

from __future__ import annotations

from typing import Any

import pytest

from protego_cli.errors import TemporaryFailure
from protego_cli.ike.events import (
    ChildDeleted,
    ChildEstablished,
    ChildOffered,
    ExchangeFailed,
    IkeClosed,
    IkeEstablished,
    IkeRekeyed,
    NegotiationFailed,
)
from protego_cli.ike.exchanges.create_child import Selectors
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.selectors import TrafficSelector
from tests.support.ike_pairs import GATEWAY, GATEWAY_POLICY, SPI, TUNNEL, connected, matched, pair
from tests.support.network import DEFAULTS, Network, Site

NEW, NEWER = 0x22222222, 0x33333333


def prefixes(local: str, remote: str) -> Selectors:
    return (TrafficSelector.from_prefix(local),), (TrafficSelector.from_prefix(remote),)


def sides(gateway: Site, peer: Site, side: str) -> tuple[Site, Site]:
    return (gateway, peer) if side == "gateway" else (peer, gateway)


@pytest.mark.parametrize("side", ["gateway", "peer"])
@pytest.mark.parametrize("esp", [("aes256gcm16-x25519", "aes256gcm16"), ("aes256gcm16",)])
def test_one_more_from_either_side(side: str, esp: tuple[str, ...]) -> None:
    network, gateway, peer = connected(esp=esp)
    asker, other = sides(gateway, peer, side)
    first = asker.child
    token = asker.create(NEW)
    network.settle(1)
    established = asker.outcome(token)
    assert isinstance(established, ChildEstablished)
    assert (established.replaces, established.redundant) == (None, False)
    assert established.child.spi_in == NEW
    assert established.child.suite == f"{esp[0]}-esn"
    offered = other.of(ChildOffered)[-1]
    assert isinstance(offered, ChildOffered)
    assert offered.replaces is None
    assert matched(gateway, peer) == 2
    assert established.child.key_in != first.key_in
    # Each may be rekeyed and deleted without the other.
    asker.rekey(NEW, NEWER)
    network.settle(1)
    asker.delete(NEW)
    network.settle(1)
    other.delete(first.spi_out)
    network.settle(1)
    assert set(asker.children) == {NEWER}
    assert matched(gateway, peer) == 1
    assert not gateway.counters.nonzero()
    assert not peer.counters.nonzero()


@pytest.mark.parametrize("side", ["gateway", "peer"])
def test_each_with_selectors_of_its_own(side: str) -> None:
    network, gateway, peer = connected()
    asker, _ = sides(gateway, peer, side)
    local, remote = ("10.1.0.0/24", "10.2.0.0/24") if side == "gateway" else ("10.2.0.0/24", "10.1.0.0/24")
    half, quarter = local.replace("/24", "/25"), remote.replace("/24", "/26")
    tokens = asker.create(NEW, prefixes(half, remote)), asker.create(NEWER, prefixes(local, quarter))
    network.settle(1)
    found = [asker.outcome(token) for token in tokens]
    assert [event.child.local_ts for event in found] == [  # type: ignore[union-attr]
        prefixes(half, remote)[0],
        prefixes(local, quarter)[0],
    ]
    assert matched(gateway, peer) == 3
    token = asker.rekey(NEWER, 0x44444444)
    network.settle(1)
    rekeyed = asker.outcome(token)
    assert isinstance(rekeyed, ChildEstablished)
    assert rekeyed.child.remote_ts == prefixes(local, quarter)[1]
    assert matched(gateway, peer) == 4


def test_the_responder_narrows() -> None:
    network, gateway, peer = connected()
    token = peer.create(NEW, prefixes("10.2.0.0/16", "10.1.0.128/25"))
    network.settle(1)
    outcome = peer.outcome(token)
    assert isinstance(outcome, ChildEstablished)
    assert (outcome.child.local_ts, outcome.child.remote_ts) == prefixes("10.2.0.0/24", "10.1.0.128/25")
    token = peer.create(NEWER, prefixes("10.3.0.0/16", "10.1.0.128/25"))
    network.settle(1)
    refused = peer.outcome(token)
    assert isinstance(refused, ExchangeFailed)
    assert refused.notify == NotifyType.TS_UNACCEPTABLE
    (failed,) = gateway.of(NegotiationFailed)
    assert isinstance(failed, NegotiationFailed)
    assert "10.3.0.0" in failed.detail
    assert matched(gateway, peer) == 2


def test_the_group_the_peer_wants() -> None:
    network, gateway, peer = connected(
        gateway={"esp": ("aes256gcm16-ecp256", "aes256gcm16-x25519")}, peer={"esp": ("aes256gcm16-x25519",)}
    )
    token = gateway.create(NEW)
    network.settle(1)
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ChildEstablished)
    assert outcome.child.suite == "aes256gcm16-x25519-esn"
    assert matched(gateway, peer) == 2


@pytest.mark.parametrize("side", ["gateway", "peer"])
def test_there_are_not_too_many(side: str) -> None:
    network, gateway, peer = connected()
    asker, other = sides(gateway, peer, side)
    tokens = [asker.create(0x5000 + number) for number in range(20)]
    network.settle(10)
    assert [isinstance(asker.outcome(token), ChildEstablished) for token in tokens] == 15 * [True] + 5 * [
        False
    ]
    assert matched(gateway, peer) == 16
    # The same is said to a peer that asks.
    token = other.create(NEW)
    outcome = other.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert "16 CHILD_SAs stand already" in outcome.detail
    sa = other.context.by_handle[other.ike]
    spared = sa.children.popitem()[1]
    token = other.create(NEW)
    network.settle(1)
    outcome = other.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.NO_ADDITIONAL_SAS
    sa.add_child(spared)


def test_what_the_driver_rejects_does_not_exist() -> None:
    network, gateway, peer = connected()
    gateway.hold = True
    token = peer.create(NEW)
    network.run(lambda: bool(gateway.tickets))
    gateway.engine.reject(gateway.tickets[0].ticket, TemporaryFailure("busy"), network.now)
    gateway.settle()
    network.settle(1)
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.TEMPORARY_FAILURE
    assert matched(gateway, peer) == 1


@pytest.mark.parametrize("side", ["gateway", "peer"])
def test_an_ike_sa_whose_first_child_was_refused_gets_one_later(side: str) -> None:
    """RFC 7296 1.2: the IKE_SA stands although its CHILD_SA does not."""
    network, gateway, peer = pair()
    gateway.hold = True
    dialled = peer.dial(TUNNEL, GATEWAY, SPI)
    network.run(lambda: bool(gateway.tickets))
    gateway.engine.reject(gateway.tickets.pop().ticket, TemporaryFailure("busy"), network.now)
    gateway.hold = False
    gateway.settle()
    network.settle(1)
    failed = peer.outcome(dialled)
    assert isinstance(failed, ExchangeFailed)
    assert failed.notify == NotifyType.TEMPORARY_FAILURE
    assert len(gateway.of(IkeEstablished)) == len(peer.of(IkeEstablished)) == 1
    asker, _ = sides(gateway, peer, side)
    token = asker.create(NEW)
    network.settle(1)
    assert isinstance(asker.outcome(token), ChildEstablished)
    assert matched(gateway, peer) == 1


# ---- what crosses it


@pytest.mark.parametrize("number", range(4))
def test_both_ask_at_once_and_any_message_may_be_lost(number: int) -> None:
    network, gateway, peer = connected()
    count = iter(range(10**6))
    network.tap = lambda datagram: None if next(count) == number else datagram.data
    tokens = gateway.create(NEW), peer.create(NEWER)
    network.settle(10)
    assert isinstance(gateway.outcome(tokens[0]), ChildEstablished)
    assert isinstance(peer.outcome(tokens[1]), ChildEstablished)
    assert matched(gateway, peer) == 3


@pytest.mark.parametrize("rekey", [False, True])
def test_a_delete_may_overtake_the_response(rekey: bool) -> None:
    """The peer deletes what it has just granted, and we learn of the grant only afterwards."""
    network, gateway, peer = connected()
    network.tap = lambda datagram: datagram.data if datagram.path.local == GATEWAY else None
    token = gateway.rekey(gateway.child.spi_in, NEW) if rekey else gateway.create(NEW)
    network.run(lambda: len(peer.children) == 2)
    network.tap = lambda datagram: datagram.data
    deleted = peer.delete(list(peer.children)[-1])
    network.settle(0.5)
    assert isinstance(peer.outcome(deleted), ChildDeleted)
    assert gateway.outcome(token) is None
    network.settle(2)
    failed = gateway.outcome(token)
    assert isinstance(failed, ExchangeFailed)
    assert failed.detail == "the peer has deleted the new CHILD_SA already"
    assert matched(gateway, peer) == 1


def settled(network: Network, *sites: Site) -> None:
    network.settle(DEFAULTS.patience + DEFAULTS.half_open_timeout)
    for site in sites:
        assert not site.context.by_ticket
        assert set(site.context.by_child) == set(site.children)


def test_a_child_is_not_made_while_the_ike_sa_is_rekeyed() -> None:
    network, gateway, peer = connected()
    rekey, child = gateway.rekey_ike(), peer.create(NEW)
    network.settle(0.5)
    for outcome in (gateway.outcome(rekey), peer.outcome(child)):
        assert isinstance(outcome, ExchangeFailed)
        assert outcome.notify == NotifyType.TEMPORARY_FAILURE
    again = peer.create(NEW), gateway.rekey_ike()
    network.run(lambda: peer.outcome(again[0]) is not None)
    settled(network, gateway, peer)
    assert isinstance(gateway.outcome(again[1]), IkeRekeyed | ExchangeFailed)


@pytest.mark.parametrize("hold", [False, True])
def test_a_child_asked_for_while_the_ike_sa_is_deleted(hold: bool) -> None:
    network, gateway, peer = connected()
    gateway.hold = hold
    token = peer.create(NEW)
    if hold:
        network.run(lambda: bool(gateway.tickets))
    gateway.close()
    settled(network, gateway, peer)
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    for site in (gateway, peer):
        assert len(site.of(IkeClosed)) == 1
        assert not site.context.by_spi
        assert not site.context.by_child


def test_a_child_is_deleted_while_another_one_is_made() -> None:
    network, gateway, peer = connected()
    tokens: tuple[Any, Any] = gateway.create(NEW), peer.delete(SPI)
    network.settle(1)
    assert isinstance(gateway.outcome(tokens[0]), ChildEstablished)
    assert isinstance(peer.outcome(tokens[1]), ChildDeleted)
    assert matched(gateway, peer) == 1


def test_no_ike_sa_no_child() -> None:
    _, gateway, _ = connected()
    token = gateway.engine.create_child(999, NEW, gateway.now)
    gateway.settle()
    assert isinstance(gateway.outcome(token), ExchangeFailed)
    assert gateway.child.local_ts == GATEWAY_POLICY.local_ts
