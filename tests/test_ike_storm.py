"""Two engines over a terrible network: whatever is lost, doubled, late or out of order, both ends agree.

The seed is in the test's id: `pytest tests/test_ike_storm.py -k "seed17"` replays a failure exactly.
"""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from protego_cli.ike.events import IkeClosed
from tests.support.ike_pairs import GATEWAY, PEER, SPI, TUNNEL, matched, pair
from tests.support.network import CALM, DEFAULTS, STORM, Network, Site

PATIENT = msgspec.structs.replace(DEFAULTS, retransmit_tries=14, retransmit_base=1.3)
ROUNDS = 5


def newest(site: Site) -> int:
    return next(spi_in for spi_in in reversed(site.children) if spi_in not in site.redundant)


def stormy(seed: int) -> tuple[Network, Site, Site]:
    network, gateway, peer = pair(seed, STORM, settings=PATIENT)
    gateway.tidy = peer.tidy = True
    caller, remote = (peer, GATEWAY) if seed % 2 else (gateway, PEER)
    caller.dial(TUNNEL, remote, SPI)
    network.run(lambda: bool(gateway.children and peer.children))
    return network, gateway, peer


def idle(*sites: Site) -> bool:
    return not any(sa.current or sa.queue for site in sites for sa in site.context.by_spi.values())


@pytest.mark.parametrize("seed", range(40), ids=lambda seed: f"seed{seed}")
def test_rekeys_from_both_sides_in_a_storm(seed: int) -> None:
    network, gateway, peer = stormy(seed)
    assert matched(gateway, peer) == 1
    plan = Random(seed)
    spis = iter(range(0x10000, 0x20000))
    for _ in range(ROUNDS):
        for site in plan.choice(((gateway,), (peer,), (gateway, peer), (peer, gateway))):
            site.rekey(newest(site), next(spis))
            network.settle(plan.choice((0, 0, 0.2, 1)))
        network.settle(plan.choice((0, 2, 30)))
    network.weather = CALM
    network.settle(120)
    network.run(lambda: idle(gateway, peer), limit=5)
    assert idle(gateway, peer)
    assert matched(gateway, peer) == 1
    assert not gateway.of(IkeClosed)
    for site in (gateway, peer):
        assert not site.context.by_ticket
        assert set(site.context.by_child) == set(site.children)


@pytest.mark.parametrize("seed", range(12), ids=lambda seed: f"seed{seed}")
def test_deletes_and_ends_in_a_storm(seed: int) -> None:
    network, gateway, peer = stormy(seed)
    plan = Random(seed)
    if plan.random() < 0.5:
        gateway.delete(gateway.child.spi_in)
        if plan.random() < 0.7:
            peer.delete(peer.child.spi_in)
        network.settle(plan.choice((0, 60)))
    for site in plan.choice(((gateway,), (peer,), (gateway, peer))):
        site.close()
    network.weather = CALM
    network.settle(300)
    for site in (gateway, peer):
        assert len(site.of(IkeClosed)) == 1
        assert not site.children
        assert not site.context.by_spi
        assert site.engine.timer() is None


def transcript(seed: int) -> list[bytes]:
    network, gateway, peer = stormy(seed)
    gateway.rekey(newest(gateway), 0x10001)
    peer.rekey(newest(peer), 0x10002)
    network.settle(60)
    return [datagram.data for datagram in network.sent]


def test_a_seed_replays_exactly() -> None:
    assert transcript(5) == transcript(5)
    assert transcript(5) != transcript(6)
