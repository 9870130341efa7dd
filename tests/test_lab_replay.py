"""A trace as packets: what is sent by when, and what this machine does not replay."""

from __future__ import annotations

import numpy as np
import pytest

from protego_cli.errors import UsageError
from protego_cli.lab import replay
from protego_cli.lab.endpoint import TICK, ReplayPacer
from protego_cli.lab.plan import Replay
from protego_cli.lab.traffic import LARGEST, size_of
from protego_cli.sim.trace import make


def test_a_gpn_of_the_trace_fills_a_gpn_here() -> None:
    steps = replay.replay(make("full", np.full((3, 4), 250.0)), 1000.0)
    assert steps.step == 1.0
    assert steps.seconds == 3.0
    both_ways = 2 * 8 * sum(steps.rates[0])
    assert both_ways == pytest.approx(replay.BANDWIDTH)


def test_each_flow_sends_what_its_steps_say_and_then_nothing() -> None:
    rates = ((20_000.0, 0.0), (60_000.0, 10_000.0), (0.0, 10_000.0))
    pacer = ReplayPacer(Replay(2.0, rates), flows=2)
    assert not pacer.due(0, 5.0, 0)
    pacer.start(10.0)
    sent, sizes = [0, 0], [0, 0]
    for tick in range(1, round(8 / TICK)):
        now = 10.0 + tick * TICK
        for place in (0, 1):
            numbers = pacer.due(sent[place], now, place)
            assert numbers.start == sent[place]
            sent[place] = numbers.stop
            sizes[place] += sum(map(size_of, numbers))
        if tick == round(2 / TICK):
            assert sizes[0] == pytest.approx(40_000, abs=LARGEST)
            assert sizes[1] == 0
    assert sizes[0] == pytest.approx(160_000, abs=LARGEST)
    assert sizes[1] == pytest.approx(40_000, abs=LARGEST)
    pacer.running = False
    assert not pacer.due(sent[0], 30.0, 0)


def test_what_is_too_much_or_too_fast_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"needs 20\.0 GPNs at once.*--capacity than 1000 Mbit/s, such as 5000"
    ):
        replay.replay(make("large", np.full((2, 20), 1000.0)), 1000.0)
    with pytest.raises(UsageError, match=r"a step of 30 s would pass in 0\.5 s"):
        replay.replay(make("fast", np.ones((2, 2)), 30.0), 1000.0)


def test_the_beginning_of_a_trace_is_cut_by_the_time_it_takes_here() -> None:
    trace = make("long", np.ones((100, 3)))
    assert replay.cut(trace, None) is trace
    assert replay.cut(trace, 10.0).steps == 10
    assert replay.cut(trace, 0.1).steps == 2


def test_the_made_up_trace_needs_several_gpns_and_fits_here() -> None:
    sums = replay.sample().demand.sum(axis=1) / 1000.0
    assert sums.min() < 1.0
    assert 2.0 < sums.max() < replay.MOST_GPNS
    assert (replay.sample().demand == replay.sample().demand).all()
