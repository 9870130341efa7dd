"""Rekeys between two engines: of CHILD_SAs from either side, when they cross, and of the IKE_SA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protego_cli.errors import TemporaryFailure
from protego_cli.ike.events import (
    ChildDeleted,
    ChildDeleteOffered,
    ChildEstablished,
    ChildOffered,
    ExchangeFailed,
    IkeClosed,
    NegotiationFailed,
)
from protego_cli.ike.exchanges.rekey_child import RekeyChild
from protego_cli.ike.message import Payloads
from protego_cli.ike.sa import IkeSa
from protego_cli.ike.window import ReceiveWindow, SendWindow
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import (
    ExchangeType,
    Nonce,
    Notify,
    Sa,
    TsI,
    TsR,
)
from protego_cli.wire.proposals import Proposal, Transform
from tests.support.ike_asker import ask, error
from tests.support.ike_pairs import GATEWAY, GATEWAY_POLICY, PEER, SPI, TUNNEL, connected, matched
from tests.support.network import DEFAULTS, Network, Site

NEW, NEWER = 0x22222222, 0x33333333


def proposal(spi: bytes = b"\x00\x00\x99\x99") -> Sa:
    return Sa((Proposal(1, 3, spi, (Transform(1, 20, 256), Transform(5, 0))),))


# ---- rekeys


@pytest.mark.parametrize("side", ["gateway", "peer"])
@pytest.mark.parametrize(
    "esp", [("aes256gcm16-x25519", "aes256gcm16"), ("aes256gcm16",), ("aes256gcm16-ecp384",)]
)
def test_rekey_from_either_side(side: str, esp: tuple[str, ...]) -> None:
    network, gateway, peer = connected(esp=esp)
    asker, other = (gateway, peer) if side == "gateway" else (peer, gateway)
    old = asker.child
    token = asker.rekey(old.spi_in, NEW)
    network.settle()
    established = asker.outcome(token)
    assert isinstance(established, ChildEstablished)
    assert (established.replaces, established.redundant) == (old.spi_in, False)
    offered = other.of(ChildOffered)[-1]
    assert isinstance(offered, ChildOffered)
    assert offered.replaces == old.spi_out
    assert matched(gateway, peer) == 2
    assert established.child.suite == f"{esp[0]}-esn"
    assert established.child.key_in != old.key_in
    assert (established.child.local_ts, established.child.remote_ts) == (old.local_ts, old.remote_ts)

    token = asker.delete(old.spi_in)
    network.settle()
    assert asker.outcome(token) == ChildDeleted(token, TUNNEL, old.spi_in)
    assert isinstance(other.events[-1], ChildDeleteOffered)
    assert matched(gateway, peer) == 1
    assert not gateway.counters.nonzero()
    assert not peer.counters.nonzero()


def test_a_rekey_with_a_group_the_peer_does_not_have_first() -> None:
    """INVALID_KE_PAYLOAD in CREATE_CHILD_SA."""
    network, gateway, peer = connected(
        gateway={"esp": ("aes256gcm16-ecp256", "aes256gcm16-x25519")}, peer={"esp": ("aes256gcm16-x25519",)}
    )
    token = gateway.rekey(gateway.child.spi_in, NEW)
    network.settle()
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ChildEstablished)
    assert outcome.child.suite == "aes256gcm16-x25519-esn"
    assert matched(gateway, peer) == 2
    # The next rekey asks for the group that was negotiated, at once.
    before = len(network.sent)
    gateway.rekey(NEW, NEWER)
    network.settle()
    assert len(network.sent) - before == 2


def test_a_rekey_keeps_the_negotiated_selectors() -> None:
    network, gateway, _ = connected()
    gateway.engine.set_policies(
        [replace(GATEWAY_POLICY, local_ts=GATEWAY_POLICY.local_ts + GATEWAY_POLICY.remote_ts)]
    )
    token = gateway.rekey(gateway.child.spi_in, NEW)
    network.settle()
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ChildEstablished)
    assert outcome.child.local_ts == GATEWAY_POLICY.local_ts


def test_a_refused_rekey_changes_nothing() -> None:
    network, gateway, peer = connected()
    peer.hold = True
    token = gateway.rekey(gateway.child.spi_in, NEW)
    network.run(lambda: bool(peer.tickets))
    peer.engine.reject(peer.tickets[0].ticket, TemporaryFailure("busy"), network.now)
    peer.settle()
    network.settle()
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.TEMPORARY_FAILURE
    assert matched(gateway, peer) == 1
    peer.hold = False
    again = gateway.rekey(gateway.child.spi_in, NEWER)
    network.settle()
    assert isinstance(gateway.outcome(again), ChildEstablished)
    assert matched(gateway, peer) == 2


def test_a_request_beyond_the_window_is_dropped_while_another_is_held() -> None:
    """The held one would be answered under the other's message ID, and its CHILD_SA go to a dead IKE_SA."""
    network, gateway, peer = connected()
    gateway.hold = True
    token = peer.rekey(peer.child.spi_in, NEW)
    network.run(lambda: bool(gateway.tickets))
    theirs = peer.context.by_handle[peer.ike]
    asked = theirs.current
    theirs.sender.finish()  # as if it had been answered
    theirs.current = None
    peer.rekey_ike()
    network.run(lambda: bool(gateway.counters["ike_drop_message_id"]))
    ours = gateway.context.by_handle[gateway.ike]
    assert ours.tickets
    theirs.sender.cancel()
    theirs.sender, theirs.current = SendWindow(DEFAULTS, ours.receiver.current), asked
    theirs.sender.begin(b"asked", network.now)
    gateway.grant(gateway.tickets[0])
    gateway.settle()
    network.run(lambda: isinstance(peer.outcome(token), ChildEstablished))
    assert matched(gateway, peer) == 2


def test_the_last_message_id_serves_and_then_the_ike_sa_goes() -> None:
    """They must not wrap around (RFC 7296 2.2)."""
    network, gateway, peer = connected()
    gateway.context.by_handle[gateway.ike].sender = SendWindow(DEFAULTS, 2**32 - 1)
    peer.context.by_handle[peer.ike].receiver = ReceiveWindow(2**32 - 1)
    last = gateway.rekey(gateway.child.spi_in, NEW)
    network.settle()
    assert isinstance(gateway.outcome(last), ChildEstablished)
    sent = len(network.sent)
    beyond = gateway.rekey(NEW, NEWER)
    network.settle()
    outcome = gateway.outcome(beyond)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.detail == "message IDs are used up"
    (closed,) = gateway.of(IkeClosed)
    assert isinstance(closed, IkeClosed)
    assert closed.reason == "message IDs are used up"
    assert len(network.sent) == sent


def test_a_rekey_that_the_peer_cannot_grant_says_why() -> None:
    network, gateway, peer = connected()
    peer.engine.set_policies([replace(GATEWAY_POLICY, esp=("chacha20poly1305",))])
    token = gateway.rekey(gateway.child.spi_in, NEW)
    network.settle()
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.NO_PROPOSAL_CHOSEN
    (failed,) = peer.of(NegotiationFailed)
    assert isinstance(failed, NegotiationFailed)
    assert "ENCR chacha20poly1305 against aes256gcm16" in failed.detail
    assert matched(gateway, peer) == 1


def test_a_rekey_of_what_the_peer_is_deleting_is_put_off() -> None:
    network, gateway, peer = connected()
    network.tap = lambda datagram: None
    peer.delete(peer.child.spi_in)
    network.tap = lambda datagram: datagram.data
    token = gateway.rekey(gateway.child.spi_in, NEW)
    network.run(lambda: gateway.outcome(token) is not None, limit=0.9)
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.TEMPORARY_FAILURE


def test_a_rekey_of_what_we_have_rekeyed_already_is_put_off() -> None:
    network, gateway, peer = connected()
    old = peer.child.spi_in
    gateway.rekey(gateway.child.spi_in, NEW)
    network.settle()
    token = peer.rekey(old, NEWER)
    assert isinstance(peer.outcome(token), ExchangeFailed)  # it knows itself
    rekey = Notify(NotifyType.REKEY_SA, b"", 3, old.to_bytes(4, "big"))
    policy = GATEWAY_POLICY
    answer = ask(
        network,
        peer,
        ExchangeType.CREATE_CHILD_SA,
        rekey,
        proposal(),
        Nonce(bytes(32)),
        TsI(policy.remote_ts),
        TsR(policy.local_ts),
    )
    assert error(answer) == NotifyType.TEMPORARY_FAILURE


def test_a_rekey_of_nothing() -> None:
    network, gateway, peer = connected()
    rekey = Notify(NotifyType.REKEY_SA, b"", 3, b"none")
    answer = ask(network, peer, ExchangeType.CREATE_CHILD_SA, rekey, proposal(), Nonce(bytes(32)))
    assert answer.error() == Notify(NotifyType.CHILD_SA_NOT_FOUND, b"", 3, b"none")  # RFC 7296 3.10
    assert isinstance(gateway.outcome(gateway.rekey(0xDEAD, NEW)), ExchangeFailed)


def test_children_of_a_peer_that_never_deletes_are_bounded() -> None:
    network, gateway, peer = connected()
    newest = SPI
    for number in range(20):
        token = peer.rekey(newest, 0x5000 + number)
        network.settle(1)
        if isinstance(peer.outcome(token), ChildEstablished):
            newest = 0x5000 + number
    outcome = peer.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.NO_ADDITIONAL_SAS
    assert len(gateway.children) == 16


# ---- collisions


def collide(seed: int) -> tuple[Network, Site, Site, int]:
    """Both rekey at once; the network's delay makes the requests cross."""
    network, gateway, peer = connected(seed)
    gateway.tidy = peer.tidy = True
    old = peer.child.spi_in
    gateway.rekey(gateway.child.spi_in, NEW)
    peer.rekey(old, NEWER)
    return network, gateway, peer, old


@pytest.mark.parametrize("seed", range(8))
def test_crossing_rekeys_leave_the_one_with_the_higher_nonce(seed: int) -> None:
    network, gateway, peer, old = collide(seed)
    network.settle(10)
    assert matched(gateway, peer) == 1
    assert old not in peer.children
    assert len(gateway.redundant) + len(peer.redundant) == 1
    loser, winner = (gateway, peer) if gateway.redundant else (peer, gateway)
    assert winner.child.spi_in in (NEW, NEWER)
    assert loser.redundant.isdisjoint(loser.children)
    (deleted,) = loser.of(ChildDeleted)
    assert isinstance(deleted, ChildDeleted)
    assert {deleted.spi_in} == loser.redundant


def test_both_outcomes_of_a_collision_happen() -> None:
    losers = set()
    for seed in range(8):
        network, gateway, _, _ = collide(seed)
        network.settle(10)
        losers.add(bool(gateway.redundant))
    assert losers == {True, False}


@pytest.mark.parametrize("seed", range(6))
def test_a_collision_while_the_driver_holds_its_ticket(seed: int) -> None:
    """Our answer arrives before the driver has accepted the peer's: the loser waits for that."""
    network, gateway, peer, old = collide(seed)
    gateway.hold = True
    network.run(lambda: bool(gateway.tickets) and bool(gateway.of(ChildEstablished)))
    network.settle(0.5)
    assert gateway.redundant <= set(gateway.children)
    gateway.hold = False
    gateway.grant(gateway.tickets[0])
    gateway.settle()
    network.settle(10)
    assert matched(gateway, peer) == 1
    assert old not in peer.children


@pytest.mark.parametrize("seed", range(6))
def test_what_lost_is_not_rekeyed(seed: int) -> None:
    """Whoever wins, the loser's SA is going: a rekey of it fails without a question to the peer."""
    network, gateway, peer, _ = collide(seed)
    gateway.tidy = peer.tidy = False
    sites = (gateway, peer)
    network.run(lambda: all(len(site.children) == 3 for site in sites))
    network.run(lambda: bool(gateway.redundant | peer.redundant))
    doomed = NEW if gateway.redundant else NEWER
    tokens = [
        (site, site.rekey(spi_in, 0x44444444))
        for site in sites
        for spi_in, child in list(site.children.items())
        if doomed in (spi_in, child.spi_out)
    ]
    network.settle(1)
    for site, token in tokens:
        outcome = site.outcome(token)
        assert isinstance(outcome, ExchangeFailed)
        assert outcome.detail == "the CHILD_SA is gone, or going"


def test_the_nonces_decide() -> None:
    """Recompute the decision from the four nonces that were exchanged."""
    nonces: dict[str, list[bytes]] = {}
    build, answer = RekeyChild.build, RekeyChild.process

    def spy_build(self: RekeyChild, sa: IkeSa, now: float) -> Any:
        payloads = build(self, sa, now)
        nonces.setdefault(sa.path.local, []).extend(
            payload.data for payload in payloads or () if isinstance(payload, Nonce)
        )
        return payloads

    def spy_process(self: RekeyChild, sa: IkeSa, payloads: Payloads, now: float) -> None:
        nonces[sa.path.local].append(payloads.one(Nonce).data)
        answer(self, sa, payloads, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RekeyChild, "build", spy_build)
        patch.setattr(RekeyChild, "process", spy_process)
        network, gateway, _, _ = collide(3)
        network.settle(10)
    assert bool(gateway.redundant) == (min(nonces[GATEWAY]) < min(nonces[PEER]))
