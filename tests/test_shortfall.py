"""What was not served of all demand, minute by minute."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from protego_cli.control.packing.packing_view import GpnView
from protego_cli.control.packing.shortfall import MINUTES, Shortfall


def gpns(*loads: float) -> list[GpnView]:
    return [GpnView(f"gpn-{number}", 1.0, load) for number, load in enumerate(loads, 1)]


def test_a_minute_is_the_mean_of_its_looks() -> None:
    shortfall = Shortfall()
    for second in range(60):
        shortfall.look(gpns(1.5, 0.5) if second < 30 else gpns(0.9, 0.1), 600.0 + second)
    assert shortfall.minutes == ()  # it is not over
    shortfall.look(gpns(0.2, 0.2), 660.0)
    assert shortfall.minutes == pytest.approx((0.125,))


def test_room_elsewhere_serves_nothing_of_what_a_gpn_cannot() -> None:
    shortfall = Shortfall()
    shortfall.look(gpns(2.0, 0.0), 0.0)
    shortfall.look(gpns(), 60.0)
    shortfall.look(gpns(0.0), 120.0)
    assert shortfall.minutes == pytest.approx((0.5, 0.0))


def test_the_last_hour_is_kept_and_what_nobody_looked_at_is_left_out() -> None:
    shortfall = Shortfall()
    for minute in range(2 * MINUTES):
        if minute % 2:
            shortfall.look(gpns(1.0 + minute), 60.0 * minute)
    assert len(shortfall.minutes) == MINUTES - 1
    shortfall.look(gpns(1.0), 60.0 * 1000)
    shortfall.look(gpns(1.0), 60.0 * 1001)
    assert len(shortfall.minutes) == MINUTES
    assert shortfall.minutes[-1] == 0.0


async def test_a_policy_sees_it(autojump_clock: MockClock) -> None:
    from tests.support.gmn_world import world

    async with world() as w:
        seats = w.sad.seats
        for _ in range(130):
            seats.look()
            await trio.sleep(1.0)
        assert seats.view().unserved == (0.0, 0.0)
