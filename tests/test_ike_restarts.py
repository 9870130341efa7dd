"""A gateway that dies at any point and comes back, while all goes on: its peer notices nothing but silence.

The seed is in the test's id: `pytest tests/test_ike_restarts.py -k "seed17-"` replays a failure exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import msgspec
import pytest

from protego_cli.ike.events import ExchangeFailed, IkeClosed, NegotiationFailed
from protego_cli.wire.notifies import NotifyType
from tests.support.ike_pairs import GATEWAY, GATEWAY_POLICY, PEER, PEER_POLICY, TUNNEL, matched
from tests.support.ike_restarts import MortalSite, record_ivs
from tests.support.network import CALM, DEFAULTS, Network, Site, Weather

PATIENT = msgspec.structs.replace(DEFAULTS, retransmit_tries=16, retransmit_base=1.3)
BREEZE = Weather(drop=0.1, duplicate=0.1, delay=(0.005, 0.3))
ROUNDS = 6
SEEDS = 300
HARMLESS = {None, NotifyType.TEMPORARY_FAILURE, NotifyType.CHILD_SA_NOT_FOUND}


@pytest.fixture(autouse=True)
def ivs() -> Iterator[set[tuple[bytes, bytes]]]:
    with pytest.MonkeyPatch.context() as patch:
        yield record_ivs(patch)


class World:
    """A gateway that is mortal, and a peer that is not; who dials whom is chance."""

    def __init__(self, seed: int) -> None:
        self.plan = Random(seed)
        self.network = Network(seed, self.plan.choice((CALM, BREEZE)))
        self.gateway = MortalSite(self.network, GATEWAY, [GATEWAY_POLICY], PATIENT, plan=Random(-seed - 1))
        self.peer = Site(self.network, PEER, [PEER_POLICY], PATIENT)
        self.gateway.tidy = self.peer.tidy = True
        self.gateway.danger = self.plan.choice((0.05, 0.3, 1.0))
        self.gateway.deaths = 8
        self.gateway.hesitation = 0.5
        self.spis = iter(range(0x10000, 0x20000))

    def connect(self) -> None:
        gateway, peer = self.gateway, self.peer
        if self.plan.random() < 0.5:
            peer.dial(TUNNEL, GATEWAY, next(self.spis))
        for _ in range(100):
            dialling = peer.engine.dials() or gateway.engine.dials()
            if gateway.up and not (peer.ikes or gateway.ikes or dialling):
                gateway.dial(TUNNEL, PEER, next(self.spis))
            self.network.settle(1)
            if self.steady():
                return
        raise AssertionError("they do not come together")

    def steady(self) -> bool:
        return self.gateway.up and bool(self.gateway.children and self.peer.children)

    def trouble(self) -> None:
        """Something happens at one end, or at both at once."""
        sites = self.plan.choice(((self.gateway,), (self.peer,), (self.gateway, self.peer)))
        for site in sites:
            if isinstance(site, MortalSite) and not site.up:
                continue
            match self.plan.randrange(5):
                case 0 if site.ikes:
                    site.check_alive()
                case 1 if site.ikes:
                    site.rekey_ike()
                case _:
                    if (spi_in := newest(site)) is not None:
                        site.rekey(spi_in, next(self.spis))
            self.network.settle(self.plan.choice((0, 0, 0.2, 1)))

    def calm_down(self) -> None:
        self.gateway.deaths = 0
        self.network.weather = CALM
        self.network.settle(2 * PATIENT.patience)
        self.gateway.learn()  # what the driver was told last is what stands
        for spi_in in list(self.gateway.children):
            if spi_in != newest(self.gateway):
                self.gateway.delete(spi_in)
        self.network.settle(60)


def newest(site: Site) -> int | None:
    leaving = {spi_in for sa in site.engine.sas() for spi_in in sa.leaving}
    return next((spi_in for spi_in in reversed(site.children) if spi_in not in leaving), None)


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed{seed}-")
def test_a_gateway_that_dies_at_any_point(seed: int) -> None:
    world = World(seed)
    gateway, peer = world.gateway, world.peer
    world.connect()
    gateway.deaths = 25
    for _ in range(ROUNDS):
        world.trouble()
        world.network.settle(world.plan.choice((0, 2, 20)))
    world.calm_down()
    assert len(gateway.ikes) == len(peer.ikes) == 1
    assert matched(gateway, peer) == 1
    assert set(gateway.context.by_child) == set(gateway.children)
    assert set(peer.context.by_child) == set(peer.children)
    assert not gateway.context.by_ticket
    assert len(gateway.context.by_spi) == len(peer.context.by_spi) == 1
    assert set(gateway.stored) == set(gateway.context.by_spi)
    assert not peer.of(IkeClosed)
    assert not peer.of(NegotiationFailed)
    for event in peer.of(ExchangeFailed):
        assert isinstance(event, ExchangeFailed)
        assert event.notify in HARMLESS, event.detail
        assert "not valid" not in event.detail
    for counter in ("ike_drop_integrity", "ike_drop_malformed"):
        assert not peer.counters[counter]
        assert not gateway.counters[counter]
