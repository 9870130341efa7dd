"""The simulator: its measures against a plain loop over the definitions, and what a policy gets to see."""

from __future__ import annotations

import math
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protego_cli.control.packing.placement import (
    Move,
    Packer,
    PackingPolicy,
    PackingView,
    PolicyFault,
    TunnelView,
)
from protego_cli.errors import UsageError
from protego_cli.plugins.packing_policies import protego_packing_policies
from protego_cli.sim.engine import Setting, simulate
from protego_cli.sim.generator import PRESETS, generate
from protego_cli.sim.trace import Trace, make

ALL = pytest.mark.parametrize("policy", protego_packing_policies(), ids=lambda policy: policy.name)


class Wild:
    """Moves here and there, decided by what it sees alone; never what a Packer refuses. It keeps a diary."""

    name = "wild"

    def __init__(self) -> None:
        self.planned: list[float] = []
        self.mitigated: list[float] = []
        self.moves: list[list[Move]] = []
        self.seen: list[object] = []
        self.homes: list[dict[str, str | None]] = []

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        raise AssertionError("the simulator has no use for it")

    def plan(self, view: PackingView) -> Sequence[Move]:
        self.planned.append(view.now)
        return self._some(view, 0.5)

    def mitigate(self, view: PackingView) -> Sequence[Move]:
        self.mitigated.append(view.now)
        return self._some(view, 0.2)

    def _some(self, view: PackingView, often: float) -> list[Move]:
        seen = (view.now, view.gpns, view.tunnels, view.history.tolist())
        self.seen.append(seen)
        self.homes.append({tunnel.id: tunnel.gpn for tunnel in view.tunnels})
        dice = random.Random(zlib.crc32(repr(seen).encode()))
        loads = {gpn.name: gpn.load for gpn in view.gpns}
        moves = []
        for tunnel in view.tunnels:
            to = dice.choice(view.gpns).name
            if (
                tunnel.movable
                and dice.random() < often
                and to != tunnel.gpn
                and loads[to] + tunnel.load <= 1.0
            ):
                loads[to] += tunnel.load
                moves.append(Move(tunnel.id, to))
        self.moves.append(moves)
        return moves


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    tunnels, steps = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    loads = st.one_of(
        st.floats(0, 1500).map(lambda load: round(load, 3)), st.sampled_from([0.0, 250.0, 1000.0])
    )
    rows = draw(st.lists(st.lists(loads, min_size=tunnels, max_size=tunnels), min_size=steps, max_size=steps))
    return make("drawn.csv", np.array(rows), draw(st.sampled_from([60.0, 300.0, 1800.0])))


def by_hand(trace: Trace, wild: Wild, capacity: float, rho: float) -> dict[str, float]:
    """The definitions, tunnel by tunnel and step by step."""
    tunnels, diary = list(trace.tunnels), wild.moves
    place = {tunnel: f"own-{tunnel}" for tunnel in tunnels}
    if len(diary) > 1:
        place |= wild.homes[1]
    served, asked = dict.fromkeys(tunnels, 0.0), dict.fromkeys(tunnels, 0.0)
    counts, bounds, moved = [], [], 0
    for step, moves in enumerate(diary):
        demand = {tunnel: float(trace.demand[step, i]) / capacity for i, tunnel in enumerate(tunnels)}
        new = place | dict(moves)
        if step == 0:
            place = new
        else:
            moved += len(moves)
        for where, share in ((place, rho), (new, 1 - rho)):
            for tunnel in tunnels:
                there = sum(demand[other] for other in tunnels if where[other] == where[tunnel])
                served[tunnel] += share * demand[tunnel] / max(1.0, there)
        for tunnel in tunnels:
            asked[tunnel] += demand[tunnel]
        place = new
        counts.append(len(set(place.values())))
        bounds.append(max(1, math.ceil(sum(demand.values()))))
    ratios = sorted(served[tunnel] / asked[tunnel] if asked[tunnel] else 1.0 for tunnel in tunnels)
    worst = ratios[: math.ceil(0.01 * len(tunnels))]
    mean, bound = sum(counts) / len(counts), sum(bounds) / len(bounds)
    total = sum(asked.values())
    return {
        "saving": 1 - mean / len(tunnels),
        "guarantee": sum(worst) / len(worst),
        "served": sum(served.values()) / total if total else 1.0,
        "mean_gpns": mean,
        "lower_bound": bound,
        "over": mean / bound - 1,
        "moves_per_hour": moved / len(tunnels) / (len(diary) * trace.step / 3600),
    }


@settings(deadline=None)
@given(traces(), st.integers(1, 4), st.floats(0, 1), st.sampled_from([1000.0, 400.0]))
def test_the_measures_are_what_the_definitions_say(
    trace: Trace, every: int, rho: float, capacity: float
) -> None:
    wild = Wild()
    setting = Setting(every * trace.step, capacity, rho * trace.step)
    run = simulate(trace, Packer(wild, "p"), setting)
    assert asdict(run.measures) == pytest.approx(by_hand(trace, wild, capacity, rho), abs=1e-9)
    assert run.gpns.mean() == run.measures.mean_gpns
    assert wild.planned == [step * trace.step for step in range(0, trace.steps, every)]
    assert wild.mitigated == [step * trace.step for step in range(trace.steps) if step % every]


@settings(deadline=None)
@given(traces(), st.data())
def test_a_decision_never_reads_the_future(trace: Trace, data: st.DataObject) -> None:
    now = data.draw(st.integers(0, trace.steps - 1))
    other = trace.demand.copy()
    other[now + 1 :] = 999.0 - other[now + 1 :] / 2
    diaries = []
    for demand in (trace.demand.copy(), other):
        wild = Wild()
        simulate(make("x", demand, trace.step), Packer(wild, "p"), Setting(2 * trace.step))
        diaries.append((wild.seen[: now + 1], wild.moves[: now + 1]))
    assert diaries[0] == diaries[1]


@ALL
@settings(deadline=None, max_examples=20)
@given(trace=traces())
def test_it_is_deterministic(policy: object, trace: Trace) -> None:
    first, second = (
        simulate(trace, Packer(policy, "p"), Setting(2 * trace.step))  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert first.measures == second.measures
    assert (first.gpns == second.gpns).all()


@settings(deadline=None)
@given(traces())
def test_a_view_shows_the_step_and_the_hour_before(trace: Trace) -> None:
    wild = Wild()
    simulate(trace, Packer(wild, "p"), Setting(trace.step))
    hour = round(3600 / trace.step)
    where: dict[str, str] = {}
    last: dict[str, list[int]] = {tunnel: [] for tunnel in trace.tunnels}
    for step, (now, gpns, tunnels, history) in enumerate(wild.seen):  # type: ignore[misc]
        assert now == step * trace.step
        assert [tunnel.load for tunnel in tunnels] == (trace.demand[step] / 1000).tolist()
        assert history == (trace.demand[max(0, step - hour) : step] / 1000).tolist()
        if step:
            assert {tunnel.id: tunnel.gpn for tunnel in tunnels if tunnel.id in where} == where
        assert [tunnel.moves for tunnel in tunnels] == [
            sum(step - then < hour for then in last[tunnel.id]) for tunnel in tunnels
        ]
        running = [gpn for gpn in gpns if gpn.running]
        assert {gpn.name for gpn in running} == {tunnel.gpn for tunnel in tunnels} - {None}
        assert list(gpns[: len(running)]) == running
        assert all(gpn.load == gpn.tunnels == 0 for gpn in gpns[len(running) :])
        assert len(gpns) > len(running)
        assert len({gpn.name for gpn in gpns}) == len(gpns)
        where = dict(wild.moves[step]) if not step else where | dict(wild.moves[step])
        for move in wild.moves[step] if step else ():
            last[move.tunnel].append(step)


def test_a_tunnel_may_be_beyond_any_gpn() -> None:
    demand = np.array([[2000.0, 100.0, 100.0]] * 4)
    for policy in protego_packing_policies():
        run = simulate(make("x", demand), Packer(policy, "p"), Setting(60.0))
        assert run.gpns.tolist() == [2, 2, 2, 2]
        assert run.measures.guarantee == pytest.approx(0.5)
        assert run.measures.served == pytest.approx(1200 / 2200)


def test_without_any_load_one_gpn_is_enough() -> None:
    packer = Packer(next(p for p in protego_packing_policies() if p.name == "first-fit-decreasing"), "p")
    measures = simulate(make("x", np.zeros((3, 4))), packer, Setting(60.0)).measures
    assert measures.saving == 0.75
    assert measures.guarantee == measures.served == measures.lower_bound == 1.0


@ALL
def test_a_day_takes_a_moment(policy: PackingPolicy) -> None:
    trace = generate(replace(PRESETS["paper"], duration=6 * 3600.0), 1)
    began = time.process_time()
    simulate(trace, Packer(policy, "p"), Setting(180.0))
    assert time.process_time() - began < 1  # a fifth of that on a current machine


def test_what_a_policy_leaves_nowhere_has_a_gpn_of_its_own() -> None:
    class Idle:
        name = "idle"

        def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
            return None

        def plan(self, view: PackingView) -> Sequence[Move]:
            return ()

    run = simulate(make("x", np.full((5, 100), 10.0)), Packer(Idle(), "p"), Setting(60.0))
    assert run.gpns.tolist() == [100] * 5
    assert run.measures.saving == 0
    assert run.measures.moves_per_hour == 0


def test_a_policy_that_breaks_the_rules_is_named() -> None:
    class Wrong(Wild):
        def mitigate(self, view: PackingView) -> Sequence[Move]:
            return [Move("nobody", "gpn-1")]

    with pytest.raises(PolicyFault, match=r"'wild' of plugin 'acme' moves 'nobody'"):
        simulate(make("x", np.full((5, 3), 10.0)), Packer(Wrong(), "acme"), Setting(120.0))


def test_a_tunnel_that_has_moved_as_often_as_it_may_is_not_movable() -> None:
    wild = Wild()
    trace = make("x", np.full((200, 3), 10.0))
    run = simulate(trace, Packer(wild, "p"), Setting(60.0, moves_per_hour=2))
    moved = [sum(move.tunnel == "tunnel-1" for move in moves) for moves in wild.moves[1:]]
    assert max(sum(moved[i : i + 60]) for i in range(len(moved))) == 2
    assert 0 < run.measures.moves_per_hour <= 2.4  # 200 minutes may see four hours begin


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (Setting(90.0), "an interval of 90 s is no multiple of the step of x, 60 s"),
        (Setting(6.0), "an interval of 6 s is no multiple"),
        (Setting(60.0, reaction=61.0), "a reaction of 61 s is longer than the step of x, 60 s"),
    ],
)
def test_a_setting_that_does_not_fit_the_trace(setting: Setting, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        simulate(make("x", np.ones((4, 2))), Packer(Wild(), "p"), setting)
