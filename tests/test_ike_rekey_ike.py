"""Rekeys of the IKE_SA between two engines: from either side, by lifetime, and when they cross."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protego_cli.ike.events import (
    Alive,
    ChildDeleted,
    ChildEstablished,
    Datagram,
    ExchangeFailed,
    IkeClosed,
    IkeRekeyed,
)
from protego_cli.ike.exchanges.rekey_ike import RekeyIke
from protego_cli.ike.lifetimes import FIRST_RETRY, LAST_RETRY, retry_pause, soft_limit
from protego_cli.ike.message import Payloads
from protego_cli.ike.sa import IkeSa
from protego_cli.ike.transitions import State
from protego_cli.wire.ike import parse_header_untrusted
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import Delete, ExchangeType, Nonce, Notify
from tests.support.ike_asker import ask, error
from tests.support.ike_pairs import GATEWAY, PEER, PEER_POLICY, connected, matched
from tests.support.network import DEFAULTS, Network, Site

NEW, NEWER = 0x22222222, 0x33333333


def spis(site: Site) -> set[bytes]:
    return set(site.context.by_spi)


def check_one(network: Network, gateway: Site, peer: Site, children: int = 1) -> None:
    """In the end there is one IKE_SA, the same at both ends, which works, and nothing was closed."""
    network.settle(DEFAULTS.patience + DEFAULTS.half_open_timeout)
    (ours,), (theirs,) = gateway.context.by_spi.values(), peer.context.by_spi.values()
    assert (ours.spi_i, ours.spi_r) == (theirs.spi_i, theirs.spi_r)
    assert ours.keys == theirs.keys
    assert ours.initiator != theirs.initiator
    assert ours.state is theirs.state is State.ESTABLISHED
    for site, sa in ((gateway, ours), (peer, theirs)):
        assert site.context.by_handle == {site.ike: sa}
        assert site.context.by_tunnel == {sa.name: [sa]}
        assert not site.of(IkeClosed)
        assert not site.context.by_ticket
        assert set(site.context.by_child) == set(site.children) == set(sa.children)
        token = site.check_alive()
        network.settle(1)
        assert isinstance(site.outcome(token), Alive)
    assert matched(gateway, peer) == children


@pytest.mark.parametrize("side", ["gateway", "peer"])
def test_from_either_side(side: str) -> None:
    network, gateway, peer = connected()
    asker, other = (gateway, peer) if side == "gateway" else (peer, gateway)
    old, handles, keys = spis(gateway), (gateway.ike, peer.ike), gateway.context.by_handle[gateway.ike].keys
    token = asker.rekey_ike()
    network.settle(1)
    suite = "aes256gcm16-prfsha256-x25519"
    assert asker.outcome(token) == IkeRekeyed(token, asker.ike, "acme/hq", suite, True)
    assert other.of(IkeRekeyed) == [IkeRekeyed(None, other.ike, "acme/hq", suite, False)]
    assert (gateway.ike, peer.ike) == handles
    assert gateway.context.by_handle[gateway.ike].keys != keys
    check_one(network, gateway, peer)
    assert not old & spis(gateway)
    gateway.rekey(gateway.child.spi_in, NEW)
    network.settle(1)
    assert matched(gateway, peer) == 2
    assert not gateway.counters.nonzero()
    assert not peer.counters.nonzero()


def test_again_and_again_from_both_sides_nothing_piles_up() -> None:
    network, gateway, peer = connected()
    for number in range(12):
        site = (gateway, peer)[number % 3 == 0]
        token = site.rekey_ike()
        network.run(lambda site=site, token=token: site.outcome(token) is not None)  # type: ignore[misc]
        network.settle(0.1)
        live = [sa for sa in gateway.context.by_spi.values() if sa.state is not State.FINAL]
        assert len(live) <= 2
    assert len(gateway.of(IkeRekeyed)) == len(peer.of(IkeRekeyed)) == 12
    check_one(network, gateway, peer)
    (sa,) = gateway.context.by_spi.values()
    assert sa.ancestor is None


def test_a_peer_that_never_deletes_leaves_one_old_ike_sa_at_most() -> None:
    network, gateway, peer = connected()
    for _ in range(5):
        peer.rekey_ike()
        network.settle(0.005)  # the request is on its way
        network.tap = lambda datagram: datagram.data if datagram.path.local == GATEWAY else None
        network.settle(0.02)
        for sa in list(peer.context.by_spi.values()):  # its DELETE is lost and forgotten
            if sa.handle is None:
                sa.close("forgotten")
        network.tap = lambda datagram: datagram.data
        network.settle(0.1)
    assert len(gateway.of(IkeRekeyed)) == 5
    assert len(gateway.context.by_spi) == 2
    check_one(network, gateway, peer)


def test_the_group_the_peer_wants() -> None:
    """INVALID_KE_PAYLOAD: once more with the group it names; the next rekey begins with what was agreed."""
    ecp, x = "aes256gcm16-prfsha256-ecp256", "aes256gcm16-prfsha256-x25519"
    network, gateway, peer = connected(ike=(x, ecp))
    peer.engine.set_policies([replace(PEER_POLICY, ike=(ecp,))])
    token = gateway.rekey_ike()
    network.settle(1)
    outcome = gateway.outcome(token)
    assert isinstance(outcome, IkeRekeyed)
    assert outcome.suite == ecp
    before = len(network.sent)
    token = gateway.rekey_ike()
    network.run(lambda: gateway.outcome(token) is not None)
    assert len(network.sent) - before == 3  # the last being the DELETE of the old one
    check_one(network, gateway, peer)


def test_nothing_in_common_any_more() -> None:
    network, gateway, peer = connected()
    peer.engine.set_policies([replace(PEER_POLICY, ike=("aes128gcm16-prfsha256-x25519",))])
    token = gateway.rekey_ike()
    network.settle(1)
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.NO_PROPOSAL_CHOSEN
    assert "aes256gcm16-prfsha256-x25519" in outcome.detail
    check_one(network, gateway, peer)


def test_what_waits_goes_on_under_the_new_ike_sa() -> None:
    network, gateway, peer = connected()
    rekey = gateway.rekey_ike()
    alive = gateway.check_alive()
    child = gateway.rekey(gateway.child.spi_in, NEW)
    network.settle(1)
    assert isinstance(gateway.outcome(rekey), IkeRekeyed)
    assert isinstance(gateway.outcome(alive), Alive)
    assert isinstance(gateway.outcome(child), ChildEstablished)
    check_one(network, gateway, peer, children=2)


def test_a_sign_of_life_is_asked_for_again_under_the_new_ike_sa() -> None:
    """Ours is lost, the peer rekeys and deletes the old IKE_SA: nobody would answer there."""
    network, gateway, peer = connected()
    network.tap = lambda datagram: None if datagram.path.local == GATEWAY else datagram.data
    alive = gateway.check_alive()
    network.tap = lambda datagram: datagram.data
    waiting = gateway.rekey(gateway.child.spi_in, NEW)
    peer.rekey_ike()
    network.settle(0.9)  # before it is sent again
    assert isinstance(gateway.outcome(alive), Alive)
    assert isinstance(gateway.outcome(waiting), ChildEstablished)
    check_one(network, gateway, peer, children=2)


def test_closing_while_it_is_rekeyed() -> None:
    network, gateway, peer = connected()
    token = gateway.rekey_ike()
    gateway.close()
    network.settle(DEFAULTS.half_open_timeout + 5)
    assert isinstance(gateway.outcome(token), IkeRekeyed)
    assert len(gateway.of(IkeClosed)) == len(peer.of(IkeClosed)) == 1
    assert not gateway.context.by_spi
    assert not peer.context.by_spi
    assert isinstance(
        gateway.outcome(gateway.engine.rekey_ike(gateway.events[0].ike, network.now)), type(None)
    )  # type: ignore[union-attr]
    gateway.settle()
    assert isinstance(gateway.events[-1], ExchangeFailed)


def test_a_peer_that_closes_while_we_rekey() -> None:
    """2.25.2: answer as usual, and forget the rekey."""
    network, gateway, peer = connected()
    network.tap = lambda datagram: None if datagram.path.local == GATEWAY else datagram.data
    token = gateway.rekey_ike()
    peer.close()
    network.settle(0.5)
    outcome = gateway.outcome(token)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.detail == "the peer deleted it"
    assert not gateway.ikes


# ---- lifetimes


def aging(**sites: Any) -> tuple[Network, Site, Site]:
    return connected(**{side: {"ike_lifetime": 3600.0, "jitter": 0.1} | sites[side] for side in sites})


def test_the_soft_limit_is_a_share_of_the_hard_one() -> None:
    assert soft_limit(1000, 0.1, 0.0) == 900
    assert soft_limit(1000, 0.1, 0.5) == 850
    assert 800 < soft_limit(1000, 0.1, 1 - 2**-32) < 801
    assert soft_limit(1000, 0, 0.7) == 900
    assert [retry_pause(n, 1.0) for n in (1, 2, 3)] == [FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY]
    assert retry_pause(1, 0.0) == FIRST_RETRY / 2
    assert retry_pause(10**6, 1.0) == LAST_RETRY


def test_an_ike_sa_is_rekeyed_before_its_lifetime_ends() -> None:
    network, gateway, peer = aging(gateway={})
    begun = network.now
    times = []
    for count in range(1, 6):
        network.run(lambda count=count: len(gateway.of(IkeRekeyed)) == count, limit=3600)  # type: ignore[misc]
        assert len(gateway.of(IkeRekeyed)) == count
        times.append(network.now - begun)
        begun = network.now
    assert all(0.8 * 3600 <= time <= 0.9 * 3600 + 1 for time in times)
    assert len(set(times)) == 5
    assert all(isinstance(event, IkeRekeyed) and event.initiator for event in gateway.of(IkeRekeyed))
    check_one(network, gateway, peer)


def test_two_sides_with_one_lifetime_are_harmless() -> None:
    network, gateway, peer = aging(gateway={"jitter": 0.0}, peer={"jitter": 0.0})
    network.settle(10 * 3600)
    assert 10 <= len(gateway.of(IkeRekeyed)) <= 23
    check_one(network, gateway, peer)


def test_a_refused_rekey_is_tried_again_until_the_lifetime_ends() -> None:
    network, gateway, peer = aging(gateway={})
    peer.engine.set_policies([replace(PEER_POLICY, ike=("aes128gcm16-prfsha256-x25519",))])
    begun = network.now
    network.run(lambda: not gateway.ikes, limit=4000)
    assert network.now - begun == pytest.approx(3600, abs=5)
    assert [event.reason for event in gateway.of(IkeClosed)] == ["its lifetime has ended"]  # type: ignore[attr-defined]
    network.settle(1)
    assert not peer.ikes
    refused = [
        d for d in network.sent if d.path.local == GATEWAY and _kind(d) == ExchangeType.CREATE_CHILD_SA
    ]
    assert 8 <= len(refused) <= 60


def test_a_refusal_that_passes_is_outlived() -> None:
    network, gateway, peer = aging(gateway={})
    peer.engine.set_policies([replace(PEER_POLICY, ike=("aes128gcm16-prfsha256-x25519",))])
    network.settle(3300)
    peer.engine.set_policies([PEER_POLICY])
    network.settle(400)
    assert len(gateway.of(IkeRekeyed)) == 1
    check_one(network, gateway, peer)


# ---- collisions


def cross(seed: int, **changes: Any) -> tuple[Network, Site, Site]:
    """Both rekey the IKE_SA at once; the requests cross."""
    network, gateway, peer = connected(seed, **changes)
    gateway.rekey_ike()
    peer.rekey_ike()
    return network, gateway, peer


@pytest.mark.parametrize("seed", range(8))
def test_crossing_rekeys_leave_the_one_with_the_higher_nonce(seed: int) -> None:
    nonces: dict[str, list[bytes]] = {}
    build, process = RekeyIke.build, RekeyIke.process

    def spy_build(self: RekeyIke, sa: IkeSa, now: float) -> Any:
        payloads = build(self, sa, now)
        nonces[sa.path.local] = [payload.data for payload in payloads or () if isinstance(payload, Nonce)]
        return payloads

    def spy_process(self: RekeyIke, sa: IkeSa, payloads: Payloads, now: float) -> None:
        nonces[sa.path.local].append(payloads.one(Nonce).data)
        process(self, sa, payloads, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RekeyIke, "build", spy_build)
        patch.setattr(RekeyIke, "process", spy_process)
        network, gateway, peer = cross(seed)
        network.settle(1)
    ours = min(nonces[GATEWAY]) > min(nonces[PEER])
    for site, initiator in ((gateway, ours), (peer, not ours)):
        (rekeyed,) = site.of(IkeRekeyed)
        assert isinstance(rekeyed, IkeRekeyed)
        assert rekeyed.token is not None
        assert rekeyed.initiator == initiator
    check_one(network, gateway, peer)


def test_both_outcomes_of_a_crossing_happen() -> None:
    winners = set()
    for seed in range(8):
        network, gateway, _ = cross(seed)
        network.settle(1)
        winners.add(gateway.of(IkeRekeyed)[0].initiator)  # type: ignore[attr-defined]
    assert winners == {True, False}


def _kind(datagram: Datagram) -> int:
    return parse_header_untrusted(datagram.data).exchange


def losing(network: Network, number: int) -> None:
    """Lose the datagram of this number, counted from now."""
    count = iter(range(10**6))
    network.tap = lambda datagram: None if next(count) == number else datagram.data


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("seed", range(3))
def test_any_message_of_a_crossing_may_be_lost(seed: int, number: int) -> None:
    """Also the case of 2.8.2 where one side never notices: number 0 and 1 lose a request."""
    network, gateway, peer = connected(seed)
    losing(network, number)
    gateway.rekey_ike()
    peer.rekey_ike()
    check_one(network, gateway, peer)


@pytest.mark.parametrize("seed", range(4))
def test_the_side_that_did_not_notice_refuses_what_comes_late(seed: int) -> None:
    network, gateway, peer = connected(seed)
    network.tap = lambda datagram: None
    token = gateway.rekey_ike()  # lost; sent again when the peer has finished its own
    network.tap = lambda datagram: datagram.data
    mine = peer.rekey_ike()
    network.settle(3)
    assert peer.outcome(mine) == IkeRekeyed(mine, peer.ike, "acme/hq", "aes256gcm16-prfsha256-x25519", True)
    outcome = gateway.outcome(token)
    assert isinstance(outcome, IkeRekeyed)
    assert not outcome.initiator
    check_one(network, gateway, peer)


def test_closing_while_rekeys_cross() -> None:
    network, gateway, peer = cross(1)
    gateway.close()
    network.settle(DEFAULTS.patience + DEFAULTS.half_open_timeout)
    for site in (gateway, peer):
        assert len(site.of(IkeClosed)) == 1
        assert not site.context.by_spi
        assert site.engine.timer() is None


@pytest.mark.parametrize("seed", range(8))
def test_a_peer_that_closes_what_has_won_before_we_know(seed: int) -> None:
    """Its answer to ours is lost, so for us its DELETE may be that of the redundant one; our rekey shows."""
    network, gateway, peer = cross(seed)
    network.tap = lambda datagram: None if datagram.path.local == PEER else datagram.data
    network.run(lambda: bool(peer.of(IkeRekeyed)))
    network.tap = lambda datagram: datagram.data
    peer.close()
    network.settle(DEFAULTS.patience + DEFAULTS.half_open_timeout)
    for site in (gateway, peer):
        assert len(site.of(IkeClosed)) == 1
        assert not site.context.by_spi


def test_silence_after_rekeys_have_crossed_is_death() -> None:
    network, gateway, peer = cross(2)
    network.run(lambda: any(sa.rival for sa in gateway.context.by_spi.values()))
    del network.sites[PEER]
    network.settle(400)
    assert len(gateway.of(IkeClosed)) == 1
    assert not gateway.context.by_spi
    assert not gateway.context.by_child
    assert peer.ikes


# ---- with CHILD_SAs


def test_the_ike_sa_is_not_rekeyed_while_a_child_is() -> None:
    network, gateway, peer = connected()
    peer.hold = True
    token = gateway.rekey(gateway.child.spi_in, NEW)
    network.run(lambda: bool(peer.tickets))
    refused = peer.rekey_ike()
    network.settle(0.5)
    outcome = peer.outcome(refused)
    assert isinstance(outcome, ExchangeFailed)
    assert outcome.notify == NotifyType.TEMPORARY_FAILURE
    peer.hold = False
    peer.grant(peer.tickets[0])
    peer.settle()
    network.settle(1)
    assert isinstance(gateway.outcome(token), ChildEstablished)
    check_one(network, gateway, peer, children=2)


def test_a_child_is_not_rekeyed_while_the_ike_sa_is() -> None:
    """The requests cross: each side has the other try again later, and nothing has changed."""
    network, gateway, peer = connected()
    rekey = gateway.rekey_ike()
    child = peer.rekey(peer.child.spi_in, NEW)
    network.settle(0.5)
    for site, token in ((gateway, rekey), (peer, child)):
        outcome = site.outcome(token)
        assert isinstance(outcome, ExchangeFailed)
        assert outcome.notify == NotifyType.TEMPORARY_FAILURE
    check_one(network, gateway, peer)


def test_the_engines_own_rekey_is_tried_again_after_a_temporary_failure() -> None:
    network, gateway, peer = aging(gateway={"jitter": 0.0})
    network.settle(0.9 * 3600 - 0.5)
    peer.hold = gateway.hold = True
    network.run(lambda: any(isinstance(sa.current, RekeyIke) for sa in gateway.context.by_spi.values()))
    peer.rekey(peer.child.spi_in, NEW)  # crosses
    network.settle(10)
    peer.hold = gateway.hold = False
    assert len(gateway.of(IkeRekeyed)) == 1
    check_one(network, gateway, peer)


def test_deleting_a_child_while_the_ike_sa_is_rekeyed() -> None:
    """2.25.2: the DELETE is answered as usual; the rekey has to wait."""
    network, gateway, peer = connected()
    peer.rekey(peer.child.spi_in, NEW)
    network.settle(1)
    rekey = gateway.rekey_ike()
    deleted = peer.delete(next(spi for spi in peer.children if spi != NEW))
    network.settle(1)
    assert isinstance(peer.outcome(deleted), ChildDeleted)
    assert isinstance(gateway.outcome(rekey), ExchangeFailed | IkeRekeyed)
    check_one(network, gateway, peer)


def test_a_child_named_under_the_old_ike_sa_is_deleted_all_the_same() -> None:
    """A peer that goes on under the old IKE_SA for a moment."""
    network, gateway, peer = connected()
    network.tap = lambda datagram: None if datagram.path.local == GATEWAY else datagram.data
    old = peer.context.by_handle[peer.ike]
    peer.rekey_ike()
    network.settle(0.5)
    assert len(gateway.of(IkeRekeyed)) == 1
    network.tap = lambda datagram: datagram.data
    old.sender.finish()
    old.current = None
    answer = ask(
        network, peer, ExchangeType.INFORMATIONAL, Delete(3, (peer.child.spi_in.to_bytes(4, "big"),))
    )
    (deleted,) = answer.deletes()
    assert len(deleted.spis) == 1
    assert not gateway.children
    assert not gateway.context.by_child
    rekey = Notify(NotifyType.REKEY_SA, b"", 3, b"none")
    late = ask(network, peer, ExchangeType.CREATE_CHILD_SA, rekey)
    assert error(late) == NotifyType.TEMPORARY_FAILURE
