"""Both sides at once, over a network that loses, doubles, delays and reorders: every collision of RFC 7296
2.8 and 2.25. Whatever crosses what, in the end there is one IKE_SA, with the same CHILD_SAs at both ends.

The seed is in the test's id: `pytest tests/test_ike_collisions.py -k "seed17"` replays a failure exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
import pytest

from protego_cli.ike.events import Datagram, IkeClosed
from protego_cli.ike.transitions import State
from protego_cli.wire.ike import parse_header_untrusted
from tests.support.ike_pairs import GATEWAY, PEER, SPI, TUNNEL, matched, pair
from tests.support.network import CALM, DEFAULTS, Site, Weather

PATIENT = msgspec.structs.replace(DEFAULTS, retransmit_tries=14, retransmit_base=1.3)
ROUNDS = 3
Crossings = Counter[frozenset[str]]


class World:
    """Two sites whose operators act without regard for one another."""

    def __init__(self, seed: int) -> None:
        self.plan = Random(seed)
        weather = self.plan.choice(
            (
                Weather(delay=(0.02, 0.05)),
                Weather(delay=(0.005, 0.6)),
                Weather(drop=0.15, duplicate=0.2, delay=(0.005, 0.3)),
                Weather(drop=0.3, duplicate=0.1, delay=(0.01, 0.05)),
            )
        )
        self.network, self.gateway, self.peer = pair(seed, weather, settings=PATIENT)
        self.sites = self.gateway, self.peer
        for site in self.sites:
            site.tidy = True
        self.spis = iter(range(0x10000, 0x20000))
        self.crossed: Crossings = Counter()
        caller, remote = self.plan.choice(((self.peer, GATEWAY), (self.gateway, PEER)))
        caller.dial(TUNNEL, remote, SPI)
        self.network.run(lambda: all(site.children for site in self.sites))
        self.network.tap = self.watch

    def watch(self, datagram: Datagram) -> bytes:
        """Note which exchanges of the two sides are under way at a time."""
        if not parse_header_untrusted(datagram.data).response:
            ours, theirs = (
                {type(sa.current).__name__ for sa in site.context.by_spi.values() if sa.current}
                for site in self.sites
            )
            self.crossed.update(frozenset((mine, other)) for mine in ours for other in theirs)
        return datagram.data

    def newest(self, site: Site) -> int | None:
        return next((spi for spi in reversed(site.children) if spi not in site.redundant), None)

    # ---- what an operator may do

    def rekey(self, site: Site) -> None:
        spi = self.newest(site)
        if spi is not None:
            site.rekey(spi, next(self.spis))

    def rekey_ike(self, site: Site) -> None:
        site.rekey_ike()

    def create(self, site: Site) -> None:
        site.create(next(self.spis))

    def delete(self, site: Site) -> None:
        """Of any one."""
        if site.children:
            site.delete(self.plan.choice(list(site.children)))

    def ask(self, site: Site) -> None:
        site.check_alive()

    def act(self, *choices: Callable[[Site], None]) -> None:
        for site in self.plan.sample(self.sites, 2):
            if site.ikes:
                self.plan.choice(choices)(site)
            self.network.settle(self.plan.choice((0, 0, 0.01, 0.1)))

    # ---- the end

    def calm_down(self) -> None:
        self.network.weather = CALM
        self.network.settle(PATIENT.patience + PATIENT.half_open_timeout)
        for site in self.sites:
            assert not any(sa.current or sa.queue for sa in site.context.by_spi.values())
            assert not site.context.by_ticket

    def check_agreed(self) -> int:
        """How many CHILD_SAs there are, the same at both ends, in the one IKE_SA that both have."""
        (ours,), (theirs,) = self.gateway.context.by_spi.values(), self.peer.context.by_spi.values()
        assert (ours.spi_i, ours.spi_r, ours.keys) == (theirs.spi_i, theirs.spi_r, theirs.keys)
        assert ours.state is theirs.state is State.ESTABLISHED
        for site, sa in zip(self.sites, (ours, theirs), strict=True):
            assert not site.of(IkeClosed)
            assert site.context.by_handle == {site.ike: sa}
            assert set(site.context.by_child) == set(sa.children) == set(site.children)
        return matched(self.gateway, self.peer)

    def leave_one(self) -> None:
        """What a gateway does then: the newest carries the tunnel, and without any it asks for one."""
        spis = list(self.gateway.children)
        for spi in spis[:-1]:
            self.gateway.delete(spi)
        if not spis:
            self.gateway.create(next(self.spis))
        self.network.settle(10)
        assert self.check_agreed() == 1
        for site in self.sites:
            site.rekey_ike()
            self.network.settle(1)
            site.rekey(site.child.spi_in, next(self.spis))
            self.network.settle(1)
        self.network.settle(PATIENT.half_open_timeout)
        assert self.check_agreed() == 1


def collide(seed: int) -> World:
    world = World(seed)
    everything = (
        world.rekey,
        world.rekey,
        world.rekey_ike,
        world.rekey_ike,
        world.create,
        world.delete,
        world.ask,
    )
    for _ in range(ROUNDS):
        for _ in range(world.plan.choice((1, 1, 2))):
            world.act(*(world.plan.choice(everything),) if world.plan.random() < 0.3 else everything)
        world.network.settle(world.plan.choice((0, 0.5, 30)))
    return world


@pytest.mark.parametrize("seed", range(200), ids=lambda seed: f"seed{seed}")
def test_whatever_crosses_both_ends_agree(seed: int) -> None:
    world = collide(seed)
    world.calm_down()
    world.check_agreed()
    world.leave_one()


@pytest.mark.parametrize("seed", range(60), ids=lambda seed: f"seed{seed}")
def test_rekeys_alone_leave_exactly_one(seed: int) -> None:
    """Without deletions nobody has to clear up: the exchanges do."""
    world = World(seed)
    for _ in range(ROUNDS):
        world.act(world.rekey, world.rekey_ike)
        world.network.settle(world.plan.choice((0.2, 2, 30)))
    world.calm_down()
    assert world.check_agreed() == 1


@pytest.mark.parametrize("seed", range(60), ids=lambda seed: f"seed{seed}")
def test_the_end_may_come_at_any_moment(seed: int) -> None:
    world = collide(seed)
    world.act(world.rekey, world.rekey_ike, world.create, world.delete)
    for site in world.plan.choice(((world.gateway,), (world.peer,), world.sites)):
        if site.ikes:
            site.close()
        world.network.settle(world.plan.choice((0, 0.05)))
    world.calm_down()
    for site in world.sites:
        assert len(site.of(IkeClosed)) == 1
        assert not site.children
        assert not site.context.by_spi
        assert not site.context.by_child
        assert not site.context.by_request
        assert site.context.half_open.total == 0
        assert site.engine.timer() is None


def test_every_pair_of_exchanges_does_cross() -> None:
    crossed: Crossings = Counter()
    for seed in range(80):
        crossed.update(collide(seed).crossed)
    kinds = "RekeyChild", "RekeyIke", "CreateChild", "DeleteChild"
    seldom = {
        (one, other): crossed[frozenset((one, other))]
        for one in kinds
        for other in kinds
        if crossed[frozenset((one, other))] < 10
    }
    assert not seldom
    assert sum(crossed.values()) > 500
