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
from tests.support.ike_restarts import Death, MortalSite, dials, record_ivs
from tests.support.network import CALM, DEFAULTS, Network, Weather

PATIENT = msgspec.structs.replace(DEFAULTS, retransmit_tries=16, retransmit_base=1.3)
BREEZE = Weather(drop=0.1, duplicate=0.1, delay=(0.005, 0.3))
ROUNDS = 6
SEEDS = 300
ENDS = 100
HARMLESS = {None, NotifyType.TEMPORARY_FAILURE, NotifyType.CHILD_SA_NOT_FOUND}


@pytest.fixture(autouse=True)
def ivs() -> Iterator[set[tuple[bytes, bytes]]]:
    with pytest.MonkeyPatch.context() as patch:
        yield record_ivs(patch)


class World:
    """A gateway that is mortal, and a peer that may be; who dials whom is chance."""

    def __init__(self, seed: int) -> None:
        self.plan = Random(seed)
        self.network = Network(seed, self.plan.choice((CALM, BREEZE)))
        self.gateway = MortalSite(self.network, GATEWAY, [GATEWAY_POLICY], PATIENT, plan=Random(-seed - 1))
        self.peer = MortalSite(self.network, PEER, [PEER_POLICY], PATIENT, plan=Random(-seed - 2))
        self.mortals = (self.gateway,) if self.plan.random() < 0.7 else (self.gateway, self.peer)
        for site in (self.gateway, self.peer):
            site.tidy = True
            site.hesitation = 0.5
        for site in self.mortals:
            site.danger = self.plan.choice((0.05, 0.3, 1.0))
        self.allow(8)
        self.spis = iter(range(0x10000, 0x20000))

    def allow(self, deaths: int) -> None:
        for site in self.mortals:
            site.deaths = deaths

    def connect(self) -> None:
        gateway, peer = self.gateway, self.peer
        if self.plan.random() < 0.5:
            peer.dial(TUNNEL, GATEWAY, next(self.spis))
        for _ in range(100):
            dialling = dials(peer.engine) or dials(gateway.engine)
            if gateway.up and peer.up and not (peer.ikes or gateway.ikes or dialling):
                gateway.dial(TUNNEL, PEER, next(self.spis))
            self.network.settle(1)
            if self.steady():
                return
        raise AssertionError("they do not come together")

    def steady(self) -> bool:
        return all(site.up and site.children for site in (self.gateway, self.peer))

    def trouble(self) -> None:
        """Something happens at one end, or at both at once."""
        sites = self.plan.choice(((self.gateway,), (self.peer,), (self.gateway, self.peer)))
        for site in sites:
            if not site.up:
                continue
            match self.plan.randrange(5):
                case 0 if site.ikes:
                    site.check_alive()
                case 1 if site.ikes:
                    site.rekey_ike()
                case 2 if site.ikes and self.plan.random() < 0.3:
                    site.create(next(self.spis))
                case _:
                    if (spi_in := newest(site)) is not None:
                        site.rekey(spi_in, next(self.spis))
            self.network.settle(self.plan.choice((0, 0, 0.2, 1)))

    def calm_down(self) -> None:
        self.allow(0)
        self.network.weather = CALM
        self.network.settle(2 * PATIENT.patience)
        for site in (self.gateway, self.peer):
            site.learn()  # outcomes may have come when nobody waited for them
        for spi_in in list(self.gateway.children):
            if spi_in != newest(self.gateway):
                self.gateway.delete(spi_in)
        self.network.settle(60)


def newest(site: MortalSite) -> int | None:
    leaving = {spi_in for sa in site.engine.sas() for spi_in in sa.leaving}
    return next((spi_in for spi_in in reversed(site.children) if spi_in not in leaving), None)


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed{seed}-")
def test_a_gateway_that_dies_at_any_point(seed: int) -> None:
    world = World(seed)
    gateway, peer = world.gateway, world.peer
    world.connect()
    world.allow(25)
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
    unharmed(gateway, peer)
    assert not gateway.of(IkeClosed)
    assert not peer.of(IkeClosed)


@pytest.mark.parametrize("seed", range(ENDS), ids=lambda seed: f"end{seed}-")
def test_a_gateway_that_dies_while_all_ends(seed: int) -> None:
    world = World(seed)
    gateway, peer = world.gateway, world.peer
    world.connect()
    world.allow(25)
    world.trouble()
    for site in world.plan.choice(((gateway,), (peer,), (gateway, peer))):
        if site.up and site.ikes:
            site.close()
        world.network.settle(world.plan.choice((0, 0.2, 2)))
    world.allow(0)
    world.network.weather = CALM
    world.network.settle(2 * PATIENT.patience)
    for site in (gateway, peer):
        for ike in [sa.ike for sa in site.engine.sas()]:  # nobody may have lived to close it
            site.engine.close(ike, site.now)
        site.settle()
    world.network.settle(2 * PATIENT.patience)
    unharmed(gateway, peer)
    for site in (gateway, peer):
        assert not site.context.by_spi
        assert not site.context.by_request
        assert not site.context.by_child
        assert not site.context.by_tunnel
        assert not site.context.by_ticket
        assert site.context.half_open.total == 0
        assert not site.stored
        assert site.engine.timer() is None


def cross(world: World) -> None:
    """Both rekey the CHILD_SA at once, or the IKE_SA, or one this and one that."""
    for site in (world.gateway, world.peer):
        if world.plan.random() < 0.5:
            site.rekey_ike()
        elif (spi_in := newest(site)) is not None:
            site.rekey(spi_in, next(world.spis))


@pytest.mark.parametrize("death", Death, ids=lambda death: death.name)
@pytest.mark.parametrize("seed", range(8), ids=lambda seed: f"cross{seed}-")
def test_a_gateway_that_dies_at_every_step_of_a_collision(
    seed: int, death: Death, ivs: set[tuple[bytes, bytes]]
) -> None:
    """In one world after the other it lives for one call longer, until it has outlived all that happens."""
    for calls in range(1, 40):
        ivs.clear()  # the same world again
        world = World(seed)
        world.allow(0)
        world.network.weather = CALM
        world.gateway.hesitation = world.peer.hesitation = 0.0
        world.connect()
        world.gateway.doom = calls, death
        cross(world)
        world.network.settle(10)
        if world.gateway.doom is not None:
            assert calls > 4
            return
        world.calm_down()
        assert len(world.gateway.ikes) == len(world.peer.ikes) == 1
        assert matched(world.gateway, world.peer) == 1
        unharmed(world.gateway, world.peer)
        assert not world.gateway.of(IkeClosed)
        assert not world.peer.of(IkeClosed)
    raise AssertionError("it never comes to rest")


def unharmed(*sites: MortalSite) -> None:
    """Neither end has ever seen anything that does not belong into the protocol."""
    for site in sites:
        assert not site.of(NegotiationFailed)
        for event in site.of(ExchangeFailed):
            assert isinstance(event, ExchangeFailed)
            assert event.notify in HARMLESS, event.detail
            assert "not valid" not in event.detail
        for counter in ("ike_drop_integrity", "ike_drop_malformed"):
            assert not site.counters[counter]
