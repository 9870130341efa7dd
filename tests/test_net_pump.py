"""The loop of the data path: bounded turns, and air for the other tasks."""

from __future__ import annotations

import math
from functools import partial

import trio
import trio.testing

from protego_cli.net.pump import (
    BATCHES_PER_TURN,
    BEHIND,
    JUST_NOW,
    CatchUp,
    drain,
    drain_trains,
    pump,
)
from protego_cli.net.udp import Batch
from protego_cli.roles.cpu import CpuMeter


class Flood:
    """A socket that always has more, or `left` batches."""

    def __init__(self, left: float = float("inf")) -> None:
        self.left = left

    def receive(self) -> Batch | None:
        if self.left <= 0:
            return None
        self.left -= 1
        return Batch(memoryview(b"data"), 4, ("127.0.0.1", 9))

    def receive_train(self) -> list[Batch]:
        return [batch for batch in (self.receive() for _ in range(5)) if batch]

    async def wait_readable(self) -> None:
        if self.left <= 0:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()


def test_a_turn_is_bounded() -> None:
    handled: list[Batch] = []
    assert drain(Flood(), handled.append)
    assert len(handled) == BATCHES_PER_TURN
    assert not drain(Flood(3), handled.append)
    assert len(handled) == BATCHES_PER_TURN + 3


def test_a_turn_of_trains_is_bounded_by_their_batches() -> None:
    handled: list[list[Batch]] = []
    assert drain_trains(Flood(), handled.append)
    assert BATCHES_PER_TURN <= sum(map(len, handled)) < BATCHES_PER_TURN + 5
    handled.clear()
    assert not drain_trains(Flood(7), handled.append)
    assert [len(train) for train in handled] == [5, 2]


async def test_all_trains_that_came_are_handled() -> None:
    handled: list[list[Batch]] = []
    async with trio.open_nursery() as nursery:
        flood = Flood(1003)
        nursery.start_soon(pump, flood, partial(drain_trains, flood, handled.append))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sum(map(len, handled)) == 1003


def test_to_catch_up_is_bounded_and_done_once_for_changes_that_come_together() -> None:
    handled: list[Batch] = []
    few, flood, now = Flood(100), Flood(), 100.0

    def turn(source: Flood) -> bool:
        nonlocal now
        now += 0.003
        return drain(source, handled.append)

    catch_up = CatchUp(partial(turn, few), partial(turn, flood), clock=lambda: now)
    catch_up()
    assert len(handled) == 100 + math.ceil(BEHIND / 0.003) * BATCHES_PER_TURN
    few.left = 7
    catch_up()
    assert few.left == 7
    now += 2 * JUST_NOW
    catch_up()
    assert few.left == 0


async def test_a_flood_leaves_the_other_tasks_air() -> None:
    handled: list[Batch] = []
    async with trio.open_nursery() as nursery:
        flood = Flood()
        nursery.start_soon(pump, flood, partial(drain, flood, handled.append))
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert handled


async def test_everything_that_came_is_handled() -> None:
    handled: list[Batch] = []
    source = Flood(1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, source, partial(drain, source, handled.append))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(handled) == 1000


def test_the_cpu_meter_tells_the_share_since_the_last_call() -> None:
    now, used = iter([10.0, 12.0, 12.0, 13.0]), iter([1.0, 1.5, 1.5, 2.5])
    meter = CpuMeter(clock=lambda: next(now), cpu=lambda: next(used))
    assert [meter(), meter(), meter()] == [0.25, 0.0, 1.0]
