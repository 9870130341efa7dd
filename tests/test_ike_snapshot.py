"""The state of an IKE_SA as bytes: whole, from every state of the law, and what goes on from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest

from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.crypto.proposal import parse_esp, parse_ike
from protego_cli.errors import StateError
from protego_cli.ike import snapshot
from protego_cli.ike.children import Child
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import Datagram, Event, ExchangeFailed, IkeClosed
from protego_cli.ike.exchanges.base import Exchange, ExchangeState
from protego_cli.ike.snapshot import EPOCHS, AnyExchange, capture
from protego_cli.ike.transitions import State
from protego_cli.wire.ike import parse_header_untrusted
from protego_cli.wire.payloads import Delete, ExchangeType
from tests.support.ike_asker import Ask
from tests.support.ike_pairs import GATEWAY, GATEWAY_POLICY, PEER, SPI, TUNNEL, connected, matched, pair
from tests.support.ike_restarts import dials, fresh
from tests.support.ike_scenes import (
    EXCHANGES,
    NEW,
    SCENES,
    Scene,
    asked_to_prove,
    changed,
    closing,
    creating,
    crossing,
    dialled,
    final,
    gateway_sa,
    held,
    invited,
    parsed,
    rekeying,
    states,
)
from tests.support.network import DEFAULTS, REGISTRY, Site

NEWER = 0x33333333


def events(engine: Engine) -> list[Event]:
    found = []
    while (event := engine.next_event()) is not None:
        found.append(event)
    return found


def replant(site: Site, engine: Engine, stored: list[bytes] | None = None) -> None:
    """Put another engine in the place of the site's, with what that would have stored."""
    engine.restore(states(site) if stored is None else stored, site.now)
    site.engine = engine
    site.tickets.clear()
    site.children = {child.spi_in: child for sa in engine.sas() for child in sa.children}
    site.ikes = {sa.ike: site.ikes[sa.ike] for sa in engine.sas()}


# ---- whole


def test_every_state_has_its_scene() -> None:
    assert set(SCENES) == set(State) - {State.START, State.CLOSED}
    for state, scene in SCENES.items():
        _, gateway, _ = scene()
        assert state in {sa.state for sa in gateway.context.by_spi.values()}


def exchanges(kind: type[Exchange] = Exchange) -> set[type[Exchange]]:
    found = set(kind.__subclasses__())
    return found.union(*(exchanges(one) for one in found))


def test_every_exchange_is_stored() -> None:
    ours = {kind for kind in exchanges() if kind.__module__.startswith("protego_cli.")}
    assert {kind.__name__ for kind in ours} == set(EXCHANGES)
    kept: set[type[ExchangeState]] = set()
    for name, scene in EXCHANGES.items():
        _, gateway, _ = scene()
        current = gateway_sa(gateway).current
        assert type(current).__name__ == name
        assert current is not None
        state = current.state()
        kept.add(type(state))
        assert current.state() == type(current).state(state.restore(gateway_sa(gateway)))
    assert kept == set(get_args(AnyExchange)) == set(ExchangeState.__subclasses__())


@pytest.mark.parametrize("scene", [*SCENES.values(), *EXCHANGES.values(), crossing])
def test_what_is_restored_is_what_was_stored(scene: Callable[[], Scene]) -> None:
    network, gateway, _ = scene()
    before = states(gateway)
    engine = fresh()
    engine.restore(before, network.now)
    assert not engine.changes()
    assert not events(engine)
    after = [capture(sa) for sa in engine._context.by_spi.values()]
    assert [changed(data, epoch=2) for data in before] == after


@pytest.mark.parametrize("scene", [*SCENES.values(), *EXCHANGES.values(), crossing])
def test_it_goes_on_as_if_nothing_had_happened(scene: Callable[[], Scene]) -> None:
    network, gateway, peer = scene()
    network._flying.clear()  # what was on its way arrives at a gateway that is down
    replant(gateway, fresh())
    ending = scene in (closing, final)
    network.settle(2 * DEFAULTS.patience)
    for site in (gateway, peer):
        assert not site.of(ExchangeFailed)
        assert len(site.of(IkeClosed)) == ending
        assert len(site.context.by_spi) == (not ending)
        assert not site.context.by_ticket
        assert site.context.half_open.total == 0
    assert not peer.counters.nonzero() or set(peer.counters.nonzero()) <= {
        "ike_retransmitted",
        "ike_replayed_response",
    }
    if not ending:
        assert matched(gateway, peer) == (2 if scene in (rekeying, creating) else 1)
        token = gateway.check_alive()
        network.settle(5)
        assert not isinstance(gateway.outcome(token), ExchangeFailed | None)


def lineage(site: Site) -> dict[int, object]:
    """What each CHILD_SA knows of itself and of others that stand."""
    children = gateway_sa(site).children

    def name(child: Child | None) -> int | None:
        return child.sa.spi_in if child is not None and child.sa.spi_in in children else None

    return {
        spi_in: (
            child.sa,
            child.proposal,
            child.deleting,
            child.doomed,
            name(child.successor),
            child.theirs and (name(child.theirs.child), child.theirs.lowest, child.theirs.redundant),
        )
        for spi_in, child in children.items()
    }


@pytest.mark.parametrize("seed", range(6))
def test_child_sas_know_one_another_again(seed: int) -> None:
    """After a collision of rekeys nothing is deleted yet, but by whose rekey was redundant."""
    network, gateway, peer = connected(seed)
    gateway.rekey(gateway.child.spi_in, NEW)
    peer.rekey(SPI, NEWER)
    network.run(lambda: len(gateway.children) == len(peer.children) == 3)
    assert len(gateway.children) == 3
    before = lineage(gateway)
    old = next(iter(before))
    assert before[old][4:] != (None, None)  # type: ignore[index]  # a tuple
    replant(gateway, fresh())
    assert lineage(gateway) == before
    for site in (gateway, peer):  # what has been rekeyed is not rekeyed again
        spi_in = old if site is gateway else SPI
        token = site.rekey(spi_in, 0x44444444)
        network.settle(5)
        assert isinstance(site.outcome(token), ExchangeFailed)
    assert matched(gateway, peer) == 2


@pytest.mark.parametrize(
    "ike", ["aes256-sha256-x25519", "aes256gcm16-prfsha512-ecp384", "aes128-sha384-modp2048"]
)
def test_every_kind_of_suite(ike: str) -> None:
    network, gateway, peer = connected(ike=(ike,), esp=("chacha20poly1305-ecp256", "aes128gcm16"))
    gateway.rekey(gateway.child.spi_in, NEW)
    network._flying.clear()
    replant(gateway, fresh(policies=gateway.policies))
    network.settle(5)
    assert matched(gateway, peer) == 2


def test_proposals_are_parsed_from_what_they_show() -> None:
    for text in ("aes256gcm16-x25519", "chacha20poly1305", "aes128gcm16-modp2048"):
        proposal = parse_esp(text, REGISTRY)
        for one in (proposal, *proposal.settled()):
            assert parse_esp(str(one), REGISTRY) == one
    for text in ("aes256gcm16-prfsha256-x25519", "aes256-sha256-modp2048"):
        proposal = parse_ike(text, REGISTRY)
        assert parse_ike(str(proposal), REGISTRY) == proposal


# ---- what is told, and when


def test_only_what_changed_is_told() -> None:
    network, gateway, _ = connected()
    engine = gateway.engine
    ((spi, state),) = engine.changes()
    assert state == capture(gateway_sa(gateway))
    assert engine.changes() == []
    gateway.check_alive()
    assert [spi] == [found for found, _ in engine.changes()]
    gateway.close()
    network.settle(100)
    assert engine.changes() == [(spi, None)]


def test_nothing_leaves_that_is_not_told() -> None:
    """After every call: each datagram belongs to an IKE_SA that is stored, with the very state it is in."""
    network, gateway, peer = pair()
    stored: dict[bytes, bytes | None] = {}
    leave = gateway.engine.datagrams_to_send

    def watched() -> list[Datagram]:
        stored.update(gateway.engine.changes())
        assert {spi: capture(sa) for spi, sa in gateway.context.by_spi.items()} == {
            spi: state for spi, state in stored.items() if state is not None
        }
        return leave()

    gateway.engine.datagrams_to_send = watched  # type: ignore[method-assign]  # listens
    peer.dial(TUNNEL, GATEWAY, SPI)
    network.settle(5)
    for site in (gateway, peer):
        site.rekey(next(iter(site.children)), NEW)
        site.check_alive()
        network.settle(2)
        site.rekey_ike()
        network.settle(2)
        site.delete(next(iter(site.children)))
        network.settle(40)
    peer.close()
    network.settle(100)
    assert stored
    assert not any(stored.values())


# ---- what is held back is not stored


def test_a_request_that_is_held_is_offered_anew() -> None:
    network, gateway, peer = connected()
    gateway.hold = True
    token = peer.rekey(SPI, NEW)
    network.run(lambda: bool(gateway.tickets))
    (first,) = gateway.tickets
    gateway.hold = False
    replant(gateway, fresh())
    gateway.engine.accept(first.ticket, network.now)  # void
    network.settle(5)
    again = gateway.events[-1]
    assert peer.outcome(token) is not None
    assert matched(gateway, peer) == 2
    assert again is not first
    assert first.child.spi_in not in gateway.children  # type: ignore[union-attr]  # it is a ChildOffered


def test_a_delete_of_several_that_is_held_names_them_all_afterwards() -> None:
    network, gateway, peer = rekeying()
    network.settle()
    gateway.hold = True
    spis = tuple(spi.to_bytes(4, "big") for spi in peer.children)
    exchange = Ask(ExchangeType.INFORMATIONAL, Delete(3, spis))
    gateway_sa(peer).start(exchange, network.now)
    peer.settle()
    request = network.sent[-1]
    network.run(lambda: len(gateway.tickets) == 2)
    gateway.grant(gateway.tickets[0])
    gateway.settle()
    gateway.hold = False
    replant(gateway, fresh())
    network.send(request)
    network.settle(5)
    assert exchange.answer is not None
    (deleted,) = exchange.answer.deletes()
    assert len(deleted.spis) == 2
    assert not gateway.context.by_child


def test_a_handshake_that_was_held_is_begun_again_under_another_handle() -> None:
    network, gateway, peer = held()
    (first,) = gateway.context.by_handle
    gateway.ikes.clear()
    replant(gateway, fresh())
    assert gateway.engine.sas() == []
    network.settle(5)
    assert matched(gateway, peer) == 1
    assert first not in gateway.context.by_handle


def test_an_ike_sa_init_sent_again_gets_the_very_same_answer() -> None:
    network, gateway, _ = invited()
    request, answer = (datagram.data for datagram in network.sent[:2])
    engine = fresh()
    engine.restore(states(gateway), network.now)
    assert engine._context.half_open.total == 1
    path = gateway_sa(gateway).path
    engine.receive_datagram(request, path, network.now)
    assert [datagram.data for datagram in engine.datagrams_to_send()] == [answer]


def test_a_request_sent_again_gets_the_stored_answer_and_ours_are_sent_again() -> None:
    network, gateway, peer = rekeying()
    peer.check_alive()
    network.settle(0.015)
    requests = [datagram.data for datagram in network.sent if datagram.path.local == PEER][-2:]
    engine = fresh()
    engine.restore(states(gateway), network.now)
    path = gateway_sa(gateway).path
    for request in requests:
        if not parse_header_untrusted(request).response:
            engine.receive_datagram(request, path, network.now)
    assert engine.timer() == network.now
    engine.handle_timer(network.now)
    before = {datagram.data for datagram in network.sent}
    again = [datagram.data for datagram in engine.datagrams_to_send()]
    assert len(again) == 2
    assert set(again) <= before


def test_what_the_driver_waits_for_is_dropped_and_what_must_happen_stays() -> None:
    network, gateway, peer = rekeying()
    network.settle()
    old = next(iter(gateway.children))
    gateway.check_alive()
    lost = gateway.rekey(NEW, NEWER)
    kept = gateway.delete(old)
    replant(gateway, fresh())
    network.settle(5)
    assert gateway.outcome(lost) is None
    assert gateway.outcome(kept) is not None
    assert set(gateway.children) == {NEW}
    assert matched(gateway, peer) == 1


# ---- time


def test_times_survive_another_clock() -> None:
    network, gateway, _ = connected()
    sa = gateway_sa(gateway)
    assert sa.rekey_at is not None
    assert sa.dies_at is not None
    stored = states(gateway)
    engine = fresh(wall=-5000.0)
    engine.restore(stored, network.now + 5000.0)
    (again,) = engine._context.by_spi.values()
    assert again.rekey_at == pytest.approx(sa.rekey_at + 5000.0)
    assert again.dies_at == pytest.approx(sa.dies_at + 5000.0)
    assert again.last_heard == pytest.approx(sa.last_heard + 5000.0)


def test_signs_of_life_after_a_long_time_are_spread() -> None:
    network, gateway, _ = connected()
    (state,) = states(gateway)
    later = network.now + 1000.0
    deadlines = []
    for first in range(0, 256, 8):
        engine = fresh()
        engine.restore([changed(state, spi_r=bytes((first, *range(7))))], later)
        deadline = engine.timer()
        assert deadline is not None
        deadlines.append(deadline - later)
    assert min(deadlines) < 0.1 * DEFAULTS.liveness
    assert max(deadlines) > 0.9 * DEFAULTS.liveness
    assert all(0 <= deadline <= DEFAULTS.liveness for deadline in deadlines)


# ---- names and epochs


def test_handles_tickets_and_tokens_are_never_used_again() -> None:
    network, gateway, _ = connected()
    used = gateway.ike
    engine = fresh()
    engine.restore(states(gateway), network.now)
    assert [sa.ike for sa in engine.sas()] == [used]
    assert engine._context.number() > 2 << 32 > used


def test_ike_sas_of_a_tunnel_stand_in_order_of_their_age() -> None:
    network, gateway, _ = connected()
    sa = gateway_sa(gateway)
    (state,) = states(gateway)
    twin = changed(state, spi_r=b"12345678", handle=(sa.handle or 0) + 1, children=(), request_key=None)
    for order in ([state, twin], [twin, state]):
        engine = fresh()
        engine.restore(order, network.now)
        assert [one.ike for one in engine.sas()] == [sa.handle, (sa.handle or 0) + 1]
        handles = [one.handle for one in engine._context.by_tunnel[TUNNEL]]
        assert handles == [sa.handle, (sa.handle or 0) + 1]


def test_the_same_epoch_or_a_later_one_is_refused() -> None:
    network, gateway, _ = connected()
    for epoch in (0, 1):
        with pytest.raises(StateError, match="stored under epoch 1"):
            fresh(epoch).restore(states(gateway), network.now)


def test_keys_that_have_served_in_all_epochs_seal_no_more() -> None:
    network, gateway, peer = connected()
    stored = states(gateway)
    last = fresh(EPOCHS, policies=gateway.policies)
    handle, spi_in = gateway.ike, gateway.child.spi_in
    replant(gateway, last, stored)
    gateway.settle()
    network.settle(5)
    assert [event.reason for event in gateway.of(IkeClosed)] == [snapshot.WORN]  # type: ignore[attr-defined]
    assert len(peer.of(IkeClosed)) == 1

    late = fresh(EPOCHS + 1)
    late.restore(stored, network.now)
    assert events(late) == [IkeClosed(handle, TUNNEL, snapshot.WORN, (spi_in,))]
    assert late.datagrams_to_send() == []
    assert late.changes() == [(parsed(stored[0]).local_spi, None)]
    assert late.timer() is None


def test_every_epoch_before_that_has_ivs_of_its_own() -> None:
    network, gateway, _ = connected()
    stored = states(gateway)
    seen = set()
    for epoch in (2, 3, 255, 256, EPOCHS - 2, EPOCHS - 1):
        engine = fresh(epoch)
        engine.restore(stored, network.now)
        engine.check_alive(gateway.ike, network.now)
        (datagram,) = engine.datagrams_to_send()
        seen.add(datagram.data[32:40])
    assert len(seen) == 6
    sealed = {datagram.data[32:40] for datagram in network.sent if datagram.path.local == GATEWAY}
    assert seen.isdisjoint(sealed)


# ---- what cannot go on


def test_a_tunnel_that_has_left_the_configuration_is_closed() -> None:
    network, gateway, peer = connected()
    handle, spi_in = gateway.ike, gateway.child.spi_in
    engine = fresh(policies=[])
    engine.restore(states(gateway), network.now)
    assert events(engine) == [IkeClosed(handle, TUNNEL, "its tunnel is no longer configured", (spi_in,))]
    assert engine.sas() == []
    gateway.engine = engine
    gateway.settle()
    network.settle(5)
    assert len(peer.of(IkeClosed)) == 1
    assert not engine._context.by_spi
    assert [state for _, state in engine.changes()] == [None]


@pytest.mark.parametrize("scene", [dialled, asked_to_prove])
def test_a_handshake_for_such_a_tunnel_fails(scene: Callable[[], Scene]) -> None:
    network, gateway, peer = scene()
    token = next(iter(dials(gateway.engine)))
    engine = fresh(policies=[])
    engine.restore(states(gateway), network.now)
    assert events(engine) == [ExchangeFailed(token, TUNNEL, None, "its tunnel is no longer configured")]
    gateway.engine = engine
    gateway.settle()
    network.settle(5)
    assert not peer.ikes
    assert not engine._context.by_spi


def without(keyword: str) -> Registry:
    return Registry(("builtin", one) for one in ALGORITHMS if one.keyword != keyword)


def test_an_algorithm_that_has_gone_ends_what_needs_it() -> None:
    cbc = replace(GATEWAY_POLICY, ike=("aes256-sha256-x25519",), esp=("chacha20poly1305",))
    network, gateway, _ = connected(ike=cbc.ike, esp=cbc.esp)
    stored, handle, spi_in = states(gateway), gateway.ike, gateway.child.spi_in
    other = [GATEWAY_POLICY]
    no_ike = fresh(policies=other, registry=without("aes256"))
    no_ike.restore(stored, network.now)
    (closed,) = events(no_ike)
    assert isinstance(closed, IkeClosed)
    assert (closed.ike, closed.children) == (handle, (spi_in,))
    assert "aes256" in closed.reason
    assert no_ike.datagrams_to_send() == []
    assert [state for _, state in no_ike.changes()] == [None]

    no_esp = fresh(policies=other, registry=without("chacha20poly1305"))
    no_esp.restore(stored, network.now)
    (closed,) = events(no_esp)
    assert isinstance(closed, IkeClosed)
    assert "chacha20poly1305" in closed.reason
    assert len(no_esp.datagrams_to_send()) == 1  # DELETE
    assert [state is None for _, state in no_esp.changes()] == [False]


def test_a_handshake_that_was_refused_is_restored_to_repeat_its_answer() -> None:
    network, gateway, peer = pair(peer={"psk": b"another secret, not the gateway's"})
    peer.dial(TUNNEL, GATEWAY)
    network.settle()
    (refused,) = gateway.context.by_spi.values()
    assert refused.state is State.FINAL
    replant(gateway, fresh())
    assert [sa.state for sa in gateway.context.by_spi.values()] == [State.FINAL]
    network.settle(2 * DEFAULTS.half_open_timeout)
    assert not gateway.context.by_spi
