"""The policy `predictive`: its forecasts, its budget, and what it makes of them in a day."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.control.packing.packing_view import Terms
from protego_cli.control.packing.placement import GpnView, Packer, PackingView, TunnelView
from protego_cli.plugins.packing import outlook, predictive
from protego_cli.plugins.packing.outlook import Outlook
from protego_cli.plugins.packing_policies import protego_packing_policies
from protego_cli.sim.engine import Setting, simulate
from protego_cli.sim.measures import Measures
from protego_cli.sim.trace import make

Floats = npt.NDArray[np.float64]
POLICIES = {policy.name: policy for policy in protego_packing_policies()}


def seen(past: Floats, where: list[int], gpns: int, terms: Terms = Terms()) -> PackingView:  # noqa: B008
    """Loads are those of the last row. GPNs that nothing is on are not running."""
    pairs = enumerate(zip(past[-1].tolist(), where, strict=True))
    rows = [TunnelView(f"t{i}", load, f"gpn-{at}") for i, (load, at) in pairs]
    sums = [sum(row.load for row in rows if row.gpn == f"gpn-{i}") for i in range(gpns)]
    running = [
        GpnView(f"gpn-{i}", 1.0, load, True, where.count(i), i in where) for i, load in enumerate(sums)
    ]
    return PackingView(0.0, running, rows, lambda _: past[:-1], terms)


def noise(seed: int, steps: int, tunnels: int, kept: float, sigma: float) -> Floats:
    random = np.random.default_rng(seed)
    values = random.standard_normal((steps, tunnels))
    for step in range(1, steps):
        values[step] = kept * values[step - 1] + math.sqrt(1 - kept * kept) * values[step]
    result: Floats = np.exp(sigma * values)
    return result


def simulated(name: str, loads: Floats, reaction: float = 6.0) -> Measures:
    return simulate(make("t", loads), Packer(POLICIES[name], "p"), Setting(180.0, reaction=reaction)).measures


# ---- the forecast


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
def test_how_much_of_a_deviation_stays_is_found_in_the_history(kept: float) -> None:
    loads = noise(1, 60, 200, kept, 0.05).T
    found = outlook._kept(loads - loads.mean(axis=1)[:, None])
    assert found == pytest.approx(kept, abs=0.05)


def test_loads_that_do_not_change_are_expected_to_stay_and_cause_no_doubt() -> None:
    past = np.tile(np.array([0.2, 0.3, 0.4]), (60, 1))
    bins = Outlook(seen(past, [0, 0, 1], 2), 1.0)
    assert bins.unserved() == pytest.approx([0.0, 0.0], abs=1e-9)


@given(
    room=st.floats(-2, 3),
    sigma=st.floats(0.01, 1),
    share=st.sampled_from([0.02, 0.1, 1.0]),
    load=st.floats(0, 2),
)
def test_what_is_expected_to_be_left_unserved_is_the_normal_partial_expectation(
    room: float, sigma: float, share: float, load: float
) -> None:
    bins = Outlook(seen(np.full((3, 1), 0.5), [0], 1, Terms(60.0, 60.0 * share)), 1.0)
    z = room / sigma
    exact = sigma * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) - room * math.erfc(z / math.sqrt(2)) / 2
    found = bins._unserved(np.array([1 - load]), np.array([room]), np.array([sigma * sigma]))
    assert found[0] == pytest.approx((1 - share) * max(0.0, load - 1) + share * exact, abs=2e-3 * sigma)


def test_tunnels_that_rise_together_are_seen_to() -> None:
    wave = 0.3 * noise(2, 60, 1, 0.5, 0.3)
    together = np.hstack([wave, wave])
    apart = np.hstack([wave, 2 * wave.mean() - wave])
    one, other = (Outlook(seen(past, [0, 0], 1), 1.0) for past in (together, apart))
    assert one._variance[0] > 100 * other._variance[0] - 0.01


@given(
    seed=st.integers(0, 99), steps=st.sampled_from([1, 4, 40]), tunnel=st.integers(0, 9), to=st.integers(0, 3)
)
def test_what_a_move_would_change_is_what_it_changes(seed: int, steps: int, tunnel: int, to: int) -> None:
    past = 0.2 * noise(seed, steps, 10, 0.7, 0.4)
    where = np.random.default_rng(seed).integers(0, 4, 10).tolist()
    bins = Outlook(seen(past, where, 4), 1.0)
    source = where[tunnel]
    if source == to:
        return
    leaving = bins.without(np.array([tunnel]))[0]
    joined, may = bins.joined(np.array([tunnel]), np.array([to]))
    assert may[0, 0] == (bins.load[to] + bins.size[tunnel] <= 1 + 1e-9)
    before = bins.copy()
    bins.move(tunnel, to)
    assert bins.unserved()[[source, to]] == pytest.approx([leaving, joined[0, 0]], abs=1e-3)
    anew = Outlook(seen(past, [to if i == tunnel else at for i, at in enumerate(where)], 4), 1.0)
    assert bins.unserved() == pytest.approx(anew.unserved(), abs=1e-9)
    bins.restore(before)
    assert bins.unserved() == pytest.approx(Outlook(seen(past, where, 4), 1.0).unserved(), abs=1e-12)


@given(seed=st.integers(0, 99))
def test_no_way_to_empty_a_gpn_leaves_less_than_the_bound(seed: int) -> None:
    past = 0.15 * noise(seed, 30, 12, 0.7, 0.3)
    where = [i % 3 for i in range(12)]
    bins = Outlook(seen(past, where, 3), 1.0)
    bins._drift[:] = 0  # variances that do not depend on each other
    bound = bins.at_least(2, np.array([0, 1]))
    deviations = np.sqrt(bins._variance[:2])
    room = (bins.capacity - bins._expected)[:2].sum() - bins._expected[2]
    now = (bins.capacity - bins.load)[:2].sum() - bins.load[2]
    for share in np.linspace(0, 1, 9):
        split = np.array([share, 1 - share])
        assert bins._unserved(now * split, room * split, deviations**2).sum() >= bound - 1e-4


# ---- the budget


def test_the_budget_grows_while_it_is_not_used_and_shrinks_when_it_is_overdrawn() -> None:
    allowed = 1 - predictive.TARGET
    shares = [0.0, 0.5, 1.0, 1.2, 9.0]
    budgets = [predictive._feedback(np.full(60, allowed * share)) for share in shares]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[2] == pytest.approx(1.0)
    assert (budgets[0], budgets[-1]) == (pytest.approx(predictive.MOST, rel=0.2), predictive.LEAST)
    assert predictive._feedback(np.empty(0)) == pytest.approx(1.0)


def test_a_reaction_that_takes_longer_needs_more_gpns() -> None:
    loads = 90 * noise(3, 240, 60, 0.8, 0.2)
    quick, slow = (
        simulate(
            make("t", loads), Packer(POLICIES["predictive"], "p"), Setting(180.0, reaction=seconds)
        ).measures
        for seconds in (6.0, 60.0)
    )
    assert quick.mean_gpns < slow.mean_gpns
    assert min(quick.served, slow.served) > 0.997


def test_a_tunnel_too_large_for_any_room_takes_the_place_of_a_smaller_one() -> None:
    past = np.tile(np.array([0.5, 0.35, 0.6, 0.12, 0.3]), (60, 1))
    at = seen(past, [0, 0, 1, 1, 2], 3)  # room for 0.15 and 0.28, and 0.3 to be put there
    moves = Packer(POLICIES["predictive"], "p").plan(at)
    assert set(moves) == {("t3", "gpn-0"), ("t4", "gpn-1")}


def test_one_decision_moves_a_bounded_number_of_tunnels() -> None:
    past = np.tile(np.full(600, 0.01), (60, 1))
    at = seen(past, [i % 100 for i in range(600)], 100)
    moves = Packer(POLICIES["predictive"], "p").plan(at)
    assert 0 < len(moves) <= predictive.MOVES + 6  # the last GPN that is emptied, whole


def test_what_no_gpn_can_carry_neither_shrinks_the_budget_nor_keeps_gpns() -> None:
    past = np.tile(np.array([1.6, 0.2, 0.2]), (60, 1))
    at = seen(past, [0, 1, 2], 3)
    at.unserved = [0.3] * 59  # 0.6 of 2.0
    assert predictive._avoidable(at) == pytest.approx(np.zeros(59))
    assert Packer(POLICIES["predictive"], "p").plan(at) in ((("t1", "gpn-2"),), (("t2", "gpn-1"),))
    at = seen(np.tile(np.array([0.9, 0.2, 0.2]), (60, 1)), [0, 1, 2], 3)
    at.unserved = [0.3] * 59
    assert predictive._avoidable(at) == pytest.approx(np.full(59, 0.3))


# ---- a day


def day(seed: int, tunnels: int, kept: float, sigma: float) -> Floats:
    """Some 15 GPNs of 1,000 Mbit/s: heavy-tailed tunnels, a day's wave, noise."""
    random = np.random.default_rng(seed)
    means = np.minimum(random.pareto(1.6, tunnels) + 0.2, 8.0)
    hours = np.arange(720)[:, None] / 60
    wave = 1 + 0.3 * np.sin(2 * np.pi * (hours + random.normal(0, 2, tunnels)) / 24)
    loads = means * wave * noise(seed, 720, tunnels, kept, sigma)
    result: Floats = np.minimum(loads * (15_000 / loads.sum(axis=1).mean()), 1000.0)
    return result


@pytest.mark.parametrize(("tunnels", "kept", "sigma"), [(170, 0.9, 0.2), (170, 0.98, 0.4), (400, 0.8, 0.2)])
def test_nearly_all_is_served_by_hardly_more_gpns_than_any_packing_needs(
    tunnels: int, kept: float, sigma: float
) -> None:
    loads = day(tunnels, tunnels, kept, sigma)
    found = simulated("predictive", loads)
    assert found.served >= 0.999
    assert found.guarantee >= 0.996
    assert found.over <= 0.06
    assert found.moves_per_hour <= 1.8
    paper = simulated("protego", loads)
    assert found.mean_gpns < paper.mean_gpns
    assert found.served > paper.served
    assert found.moves_per_hour < 0.5 * paper.moves_per_hour


def test_a_large_cluster_is_decided_on_in_a_moment() -> None:
    past = np.minimum(0.03 * noise(4, 60, 10_000, 0.9, 0.3), 0.9)
    at = seen(past, (np.arange(10_000) % 500).tolist(), 500)
    assert len(at.tunnel_columns.ids) == 10_000
    began = time.process_time()
    Packer(POLICIES["predictive"], "p").plan(at)
    assert time.process_time() - began < 1.0  # a tenth of that on a machine that is not busy
