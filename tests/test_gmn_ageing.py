"""Lifetimes of CHILD_SAs in the GMN: soft limits rekey, hard ones delete; by time, bytes and packets."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from protego_cli.config.model import Lifetimes
from protego_cli.control.channel.desired_records import Sa
from protego_cli.control.channel.node_messages import Report, SaUsage
from protego_cli.control.sas.tunnel import Placed
from protego_cli.errors import NoAdditionalSas
from tests.support.gmn_world import WALL, World, world

HOUR = 3600.0


def sealing(w: World) -> Placed:
    found = w.tunnel.sealing
    assert found is not None
    return found


def kinds(w: World) -> list[str]:
    return [event.kind for event in vars(w.sad.events)["_ring"]]


async def report(w: World, **usage: int) -> None:
    placed = sealing(w)
    counted: dict[str, Any] = dict.fromkeys(
        ("packets_in", "bytes_in", "packets_out", "bytes_out", "highest_in", "next_out"), 0
    )
    usages = (SaUsage(spi_in=placed.spi, **counted | usage),)
    await w.nodes.observer.reported(placed.gpn, Report(cpu=0.1, counters={}, usage=usages))


async def test_every_sa_carries_its_hard_limit_to_its_gpn(autojump_clock: MockClock) -> None:
    async with world(lifetimes=Lifetimes(child=HOUR)) as w:
        await w.settle(100)
        await w.up()
        placed = sealing(w)
        record = w.nodes.all[placed.gpn].held["sa", placed.spi]
        assert isinstance(record, Sa)
        assert record.expires == placed.expires
        assert record.expires == pytest.approx(WALL + 100 + HOUR, abs=5)
        await w.migrations.migrate(w.tunnel.id, next(gpn for gpn in ("gpn-2", "gpn-3") if gpn != placed.gpn))
        moved = sealing(w)
        assert moved is not placed
        assert moved.expires > record.expires


async def test_an_sa_is_rekeyed_before_its_lifetime_ends(autojump_clock: MockClock) -> None:
    async with world(lifetimes=Lifetimes(child=HOUR)) as w:
        await w.up()
        ages = []
        for _ in range(4):
            old = sealing(w)
            await w.until(lambda old=old: sealing(w) is not old, limit=HOUR, every=1)  # type: ignore[misc]
            ages.append(w.sad.events.clock() - (old.expires - HOUR))
        assert all(0.8 * HOUR <= age <= 0.9 * HOUR + 5 for age in ages)
        assert len({round(age) for age in ages}) == 4
        await w.settle(10)
        assert len(w.peer.opens) == 1
        assert "SA expired" not in kinds(w)
        w.check_clean()


async def test_tunnels_that_came_up_together_are_not_rekeyed_together(autojump_clock: MockClock) -> None:
    async with world(tunnels=12) as w:
        for peer in w.peers.values():
            peer.dial()
        await w.until(lambda: all(tunnel.sealing for tunnel in w.sad.tunnels.values()))
        spreads = {placed.spread for _, placed in w.sad.all()}
        assert len(spreads) == 12
        assert max(spreads) - min(spreads) > 0.3


async def test_what_the_peer_will_not_rekey_is_deleted_at_the_hard_limit(autojump_clock: MockClock) -> None:
    async with world(start="auto", lifetimes=Lifetimes(child=600.0)) as w:
        await w.up(by="gateway")
        old = sealing(w)
        w.peer.refuse = lambda: NoAdditionalSas("none")
        await w.until(lambda: w.sad.events.clock() >= old.expires - 1, limit=700, every=1)
        assert sealing(w) is old
        assert 2 <= kinds(w).count("rekey failed") <= 12
        w.peer.refuse = lambda: None
        w.watching = False  # the tunnel goes down and is dialled anew
        await w.until(lambda: "SA expired" in kinds(w), limit=2)
        await w.until(lambda: w.tunnel.sealing not in (None, old), limit=30)
        w.watching = True
        await w.settle(10)
        assert len(w.peer.opens) == len(w.peer.ikes) == 1
        assert kinds(w).count("SA expired") == 1
        w.check_clean()


@pytest.mark.parametrize("unit", ["bytes", "packets"])
async def test_an_sa_is_rekeyed_for_what_passed_both_ways(autojump_clock: MockClock, unit: str) -> None:
    limits = Lifetimes(bytes=1000) if unit == "bytes" else Lifetimes(packets=1000)
    async with world(lifetimes=limits) as w:
        await w.up()
        old = sealing(w)
        await report(w, **{f"{unit}_in": 400, f"{unit}_out": 390})
        await w.settle(5)
        assert sealing(w) is old
        await report(w, **{f"{unit}_in": 400, f"{unit}_out": 500})
        await w.until(lambda: sealing(w) is not old)
        await w.settle(10)
        assert len(w.peer.opens) == 1
        w.check_clean()


async def test_beyond_the_hard_number_an_sa_is_deleted_only_when_a_rekey_has_failed(
    autojump_clock: MockClock,
) -> None:
    async with world(lifetimes=Lifetimes(packets=1000)) as w:
        await w.up()
        await w.settle()
        old = sealing(w)
        w.peer.refuse = lambda: NoAdditionalSas("none")
        await report(w, packets_in=5000)  # in one report past both limits
        assert not old.ending
        await w.until(lambda: old.refused)
        assert sealing(w) is old
        await report(w, packets_in=5001)
        await report(w, packets_in=5002)
        await w.until(lambda: not w.tunnel.ikes)
        assert w.tunnel.sealing is None
        assert kinds(w).count("SA expired") == 1
        await w.settle(10)
        assert not w.peer.ikes


async def test_without_limits_nothing_is_counted_against_an_sa(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        await report(w, bytes_in=2**60, packets_in=2**50)
        await w.settle(5)
        assert sealing(w) is old


async def test_both_sides_rekeying_at_the_same_age_is_harmless(autojump_clock: MockClock) -> None:
    lifetimes = Lifetimes(child=600.0, ike=1800.0, jitter=0.0)
    async with world(lifetimes=lifetimes) as w:
        await w.up()
        for _ in range(20):
            old = sealing(w)
            await w.until(lambda old=old: w.sad.events.clock() >= old.expires - 60, limit=600, every=1)  # type: ignore[misc]
            w.peer.rekey()  # at the same instant
            await w.until(lambda old=old: w.tunnel.sealing is not old, limit=30)  # type: ignore[misc]
            await w.settle(20)
            assert len(w.peer.opens) == 1
            assert len([sa for sa in w.tunnel.sas.values() if not sa.retiring]) == 1
        assert kinds(w).count("IKE_SA rekeyed") >= 5
        assert "SA expired" not in kinds(w)
        assert "IKE_SA closed" not in kinds(w)
        w.check_clean()


async def test_a_clock_that_is_set_forward_is_noticed(autojump_clock: MockClock) -> None:
    async with world(lifetimes=Lifetimes(child=HOUR)) as w:
        await w.up()
        old = sealing(w)
        told = w.sad.events.clock
        w.sad.events.clock = lambda: told() + 0.95 * HOUR
        await w.until(lambda: sealing(w) is not old, limit=70)
