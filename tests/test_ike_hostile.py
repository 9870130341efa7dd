"""Hostile datagrams at a running engine: nothing but counters changes, and state stays bounded."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from protego_cli.ike.events import Alive, Path
from protego_cli.wire.ike import Header, Message, build_message
from tests.support.ike_pairs import GATEWAY, PEER, SPI, TUNNEL, connected, crowd, matched, pair
from tests.support.ike_strategies import messages, mutations
from tests.support.network import DEFAULTS, Network, Site

STRANGER = Path(GATEWAY, 4500, "192.0.2.66", 6666)
FAMILIAR = Path(GATEWAY, 4500, PEER, 4500)


def recorded() -> tuple[Network, Site, Site, list[bytes]]:
    """A pair that has shaken hands, rekeyed and deleted, and every datagram the peer sent."""
    network, gateway, peer = connected()
    peer.rekey(SPI, 0x22222222)
    network.settle()
    peer.delete(SPI)
    network.settle()
    data = [datagram.data for datagram in network.sent if datagram.path.local == PEER]
    network.sent.clear()
    return network, gateway, peer, data


NETWORK, ENGINE, OTHER, RECORDED = recorded()


def snapshot(site: Site) -> object:
    """All that a datagram without proof must not change."""
    context = site.context
    return (
        set(context.by_spi),
        set(context.by_child),
        set(context.by_handle),
        len(context.by_request),
        [sa.path for sa in context.by_spi.values()],
        [sa.last_heard for sa in context.by_spi.values()],
        len(site.events),
    )


def throw(data: bytes, path: Path) -> int:
    """How many bytes a datagram brings back."""
    before = snapshot(ENGINE)
    counted = sum(ENGINE.counters.values())
    ENGINE.engine.receive_datagram(data, path, NETWORK.now)
    sent = sum(len(datagram.data) for datagram in ENGINE.engine.datagrams_to_send())
    while ENGINE.engine.next_event() is not None:
        pass
    assert snapshot(ENGINE) == before
    assert sent or sum(ENGINE.counters.values()) > counted
    return sent


@given(st.binary(max_size=300), st.sampled_from((STRANGER, FAMILIAR)))
def test_random_bytes(data: bytes, path: Path) -> None:
    assert throw(data, path) == 0


@given(messages, st.sampled_from((STRANGER, FAMILIAR)))
def test_well_formed_nonsense(message: Message, path: Path) -> None:
    data = build_message(message.header, message.payloads)
    assert throw(data, path) <= len(data)


@settings(max_examples=400)
@given(st.sampled_from(RECORDED[1:]).flatmap(mutations))
def test_mutated_messages_of_the_peer(data: bytes) -> None:
    assert throw(data, FAMILIAR) <= max(map(len, RECORDED))


@given(st.integers(34, 37), st.booleans(), st.booleans(), st.integers(0, 5), st.binary(max_size=80))
def test_our_own_spis_in_a_stranger_s_message(
    exchange: int, initiator: bool, response: bool, message_id: int, body: bytes
) -> None:
    (sa,) = ENGINE.context.by_spi.values()
    header = Header(sa.spi_i, sa.spi_r, exchange, initiator, response, message_id)
    data = header.build(46, 28 + len(body)) + body
    assert throw(data, FAMILIAR) == 0


def test_after_all_that_the_tunnel_works() -> None:
    rng = Random(7)
    for _ in range(3000):
        base = bytearray(rng.choice(RECORDED[1:]))
        for _ in range(rng.randrange(1, 4)):
            base[rng.randrange(len(base))] = rng.randrange(256)
        ENGINE.engine.receive_datagram(bytes(base), FAMILIAR, NETWORK.now)
    ENGINE.engine.datagrams_to_send()
    token = OTHER.check_alive()
    NETWORK.settle()
    assert OTHER.outcome(token) == Alive(token)
    assert matched(ENGINE, OTHER) == 1


def test_a_flood_of_first_messages_is_bounded_and_forgotten() -> None:
    network, gateway, peer = pair()
    crowd(gateway, 200)
    assert gateway.context.half_open.total == DEFAULTS.half_open_max / 10
    assert len(gateway.context.by_spi) == DEFAULTS.half_open_max / 10
    peer.dial(TUNNEL, GATEWAY)
    network.settle()
    assert matched(gateway, peer) == 1
    network.settle(DEFAULTS.half_open_timeout + 5)
    assert len(gateway.context.by_spi) == 1
    assert len(gateway.context.by_request) == 1


def test_reports_of_strangers_are_rationed() -> None:
    _, gateway, _ = pair(gateway={"ike": ("chacha20poly1305-prfsha256-x25519",)})
    crowd(gateway, 50)
    assert len(gateway.events) == 10
    assert not gateway.context.by_spi
