"""The built-in policies: what each does, and what none ever does, whatever the cluster looks like."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.control.packing.placement import (
    GpnView,
    Move,
    Packer,
    PackingPolicy,
    PackingView,
    TunnelView,
)
from protego_cli.plugins.packing_policies import (
    WATERMARK,
    FirstFitDecreasing,
    Spread,
    protego_packing_policies,
)

ALL = pytest.mark.parametrize("policy", protego_packing_policies(), ids=lambda policy: policy.name)


def cluster(gpns: dict[str, float], tunnels: Sequence[TunnelView], closed: Sequence[str] = ()) -> PackingView:
    """Capacities by GPN; their loads are what the tunnels on them add up to."""
    return PackingView(
        0.0,
        [
            GpnView(
                name,
                capacity,
                sum(tunnel.load for tunnel in tunnels if tunnel.gpn == name),
                name not in closed,
                sum(1 for tunnel in tunnels if tunnel.gpn == name),
            )
            for name, capacity in gpns.items()
        ],
        tunnels,
    )


def after(at: PackingView, moves: Sequence[Move]) -> PackingView:
    """The cluster when the moves have been made."""
    to = dict(moves)
    tunnels = [tunnel._replace(gpn=to.get(tunnel.id, tunnel.gpn)) for tunnel in at.tunnels]
    closed = [gpn.name for gpn in at.gpns if not gpn.accepting]
    return cluster({gpn.name: gpn.capacity for gpn in at.gpns}, tunnels, closed)


@st.composite
def clusters(draw: st.DrawFn) -> PackingView:
    names = [f"gpn-{i}" for i in range(draw(st.integers(1, 6)))]
    gpns = {name: draw(st.sampled_from([0.5, 1.0, 1.0, 2.0])) for name in names}
    loads = st.one_of(
        st.floats(0, 0.3).map(lambda load: round(load, 6)), st.sampled_from([0.0, 0.1, 0.2, 0.4, 0.8, 1.2])
    )
    homes = st.sampled_from([*names, "gone"])
    tunnels = [
        TunnelView(f"t{i:02}", draw(loads), draw(homes), movable=draw(st.integers(0, 9)) > 0)
        for i in range(draw(st.integers(0, 30)))
    ]
    return cluster(gpns, tunnels, draw(st.lists(st.sampled_from(names), max_size=2)))


@ALL
@given(at=clusters())
def test_a_plan_is_lawful_deterministic_and_leaves_nothing_to_do(
    policy: PackingPolicy, at: PackingView
) -> None:
    moves = Packer(policy, "p").plan(at)  # raises for whatever a plan may not do, overfilling too
    assert list(moves) == list(policy.plan(at))
    then = after(at, moves)
    assert list(policy.plan(then)) == []


@ALL
@given(at=clusters(), load=st.floats(0, 1.5))
def test_a_place_is_one_of_the_candidates(policy: PackingPolicy, at: PackingView, load: float) -> None:
    candidates = at.candidates(load)
    if candidates:
        assert policy.place(TunnelView("new", load), at) in {gpn.name for gpn in candidates}


@given(at=clusters())
def test_consolidation_never_takes_more_gpns(at: PackingView) -> None:
    then = after(at, Packer(FirstFitDecreasing(), "p").plan(at))
    hot = [gpn for gpn in at.gpns if gpn.load > WATERMARK * gpn.capacity]
    orphans = [tunnel for tunnel in at.tunnels if not any(tunnel.gpn == gpn.name for gpn in at.gpns)]
    closed = [gpn for gpn in at.gpns if not gpn.accepting and gpn.tunnels]
    if not hot and not orphans and not closed:
        assert sum(1 for gpn in then.gpns if gpn.tunnels) <= sum(1 for gpn in at.gpns if gpn.tunnels)
    if not orphans:  # these are crowded in where no room is
        assert all(gpn.load <= max(gpn.capacity, before.load) + 1e-6
                   for gpn, before in zip(then.gpns, at.gpns, strict=True))  # fmt: skip


# ---- spread


def test_spread_takes_the_gpn_with_the_fewest_tunnels_and_the_first_among_equals() -> None:
    gpns = [
        GpnView("gpn-1", 1, 0.1, tunnels=3),
        GpnView("gpn-2", 1, 0.9, tunnels=1),
        GpnView("gpn-3", 1, 0, tunnels=1),
    ]
    at = PackingView(0.0, gpns)
    assert Spread().place(TunnelView("a", 0.05), at) == "gpn-2"
    assert Spread().place(TunnelView("a", 0.2), at) == "gpn-3"  # gpn-2 has no room


def test_spread_evens_the_numbers_out_with_few_moves() -> None:
    at = cluster(
        {"gpn-1": 1, "gpn-2": 1, "gpn-3": 1}, [TunnelView(f"t{i}", 0.01 * i, "gpn-1") for i in range(9)]
    )
    moves = Packer(Spread(), "p").plan(at)
    assert len(moves) == 6
    assert [gpn.tunnels for gpn in after(at, moves).gpns] == [3, 3, 3]


def test_spread_moves_nothing_for_a_difference_of_one() -> None:
    at = cluster({"gpn-1": 1, "gpn-2": 1}, [TunnelView(f"t{i}", 0, "gpn-1") for i in range(1)])
    assert Spread().plan(at) == []


def test_spread_empties_what_does_not_accept() -> None:
    tunnels = [TunnelView("a", 0.1, "gpn-1"), TunnelView("b", 0.1, "gpn-2"), TunnelView("c", 0.1, "gpn-2")]
    at = cluster({"gpn-1": 1, "gpn-2": 1}, tunnels, ["gpn-1"])
    assert Spread().plan(at) == [("a", "gpn-2")]


# ---- first-fit-decreasing


def test_first_fit_fills_one_gpn_before_the_next() -> None:
    gpns = [GpnView("gpn-1", 1, 0.7), GpnView("gpn-2", 1, 0.0)]
    at = PackingView(0.0, gpns)
    assert FirstFitDecreasing().place(TunnelView("a", 0.1), at) == "gpn-1"
    assert FirstFitDecreasing().place(TunnelView("a", 0.2), at) == "gpn-2"
    hot = [GpnView("gpn-1", 1, 0.9), GpnView("gpn-2", 1, 0.85)]
    assert FirstFitDecreasing().place(TunnelView("a", 0.01), PackingView(0.0, hot)) == "gpn-2"


def test_first_fit_consolidates_on_the_first_gpns_and_leaves_there_what_is_there() -> None:
    tunnels = [TunnelView(f"t{i}", 0.1, f"gpn-{i % 3 + 1}") for i in range(9)]
    at = cluster({"gpn-1": 1, "gpn-2": 1, "gpn-3": 1}, tunnels)
    moves = Packer(FirstFitDecreasing(), "p").plan(at)
    then = after(at, moves)
    assert [gpn.tunnels for gpn in then.gpns] == [8, 1, 0]
    assert not {move.tunnel for move in moves} & {"t0", "t3", "t6"}


def test_nothing_moves_without_a_reason() -> None:
    tunnels = [TunnelView("a", 0.5, "gpn-3"), TunnelView("b", 0.5, "gpn-2")]
    assert FirstFitDecreasing().plan(cluster({"gpn-1": 1, "gpn-2": 1, "gpn-3": 1}, tunnels)) == []


def test_a_hot_gpn_is_relieved_by_its_heaviest_tunnel_that_fits() -> None:
    tunnels = [TunnelView("a", 0.5, "gpn-1"), TunnelView("b", 0.4, "gpn-1"), TunnelView("c", 0.35, "gpn-2")]
    at = cluster({"gpn-1": 1, "gpn-2": 1}, tunnels)
    assert FirstFitDecreasing().plan(at) == [("b", "gpn-2")]


def test_a_tunnel_beyond_the_watermark_gets_a_gpn_to_itself() -> None:
    tunnels = [
        TunnelView("big", 0.9, "gpn-1"), TunnelView("a", 0.3, "gpn-2"), TunnelView("b", 0.3, "gpn-3"),
    ]  # fmt: skip
    at = cluster({"gpn-1": 1, "gpn-2": 1, "gpn-3": 1}, tunnels)
    then = after(at, Packer(FirstFitDecreasing(), "p").plan(at))
    assert [gpn.tunnels for gpn in then.gpns] == [1, 2, 0]


def test_what_cannot_be_moved_stays_and_is_counted() -> None:
    tunnels = [TunnelView("fixed", 0.6, "gpn-2", movable=False), TunnelView("a", 0.3, "gpn-1")]
    at = cluster({"gpn-1": 1, "gpn-2": 1}, tunnels)
    assert FirstFitDecreasing().plan(at) == []


def test_tunnels_of_a_gpn_that_does_not_accept_go_elsewhere() -> None:
    tunnels = [TunnelView("a", 0.3, "gpn-1"), TunnelView("b", 0.7, "gpn-2"), TunnelView("c", 0.7, "gpn-3")]
    at = cluster({"gpn-1": 1, "gpn-2": 1, "gpn-3": 1, "gpn-4": 1}, tunnels, ["gpn-1"])
    assert FirstFitDecreasing().plan(at) == [("a", "gpn-4")]


def test_spread_asks_for_another_gpn_only_where_it_must() -> None:
    spare = GpnView("gpn-2", 1.0, 0.0, running=False)
    tunnels = [TunnelView("z", 0.0, "gpn-1"), TunnelView("a", 0.5, "gpn-1"), TunnelView("b", 0.6, "gpn-1")]
    calm = PackingView(0.0, [GpnView("gpn-1", 1.2, 1.1, tunnels=3), spare], tunnels)
    assert Packer(Spread(), "p").plan(calm) == ()
    hot = PackingView(0.0, [GpnView("gpn-1", 1.0, 1.1, tunnels=3), spare], tunnels)
    assert Packer(Spread(), "p").plan(hot) == (Move("a", "gpn-2"),)


@ALL
def test_who_is_nowhere_gets_a_place(policy: PackingPolicy) -> None:
    spares = [GpnView(f"gpn-{i}", 1.0, 0.0, running=False) for i in range(9)]
    at = PackingView(0.0, spares, [TunnelView(f"t{i}", 0.3) for i in range(9)])
    moves = Packer(policy, "p").plan(at)
    assert len(moves) == 9
    assert {to for _, to in moves} == {gpn.name for gpn in spares[: len({to for _, to in moves})]}


def test_a_large_cluster_is_planned_in_a_moment() -> None:
    gpns = {f"gpn-{i}": 1.0 for i in range(500)}
    tunnels = [TunnelView(f"t{i}", 0.001 * (i % 37), f"gpn-{i % 500}") for i in range(10_000)]
    at = PackingView(0.0, [GpnView(name, 1.0, 0.36, True, 20) for name in gpns], tunnels)
    began = time.process_time()
    moves = FirstFitDecreasing().plan(at)
    assert time.process_time() - began < 1.0  # about a tenth of that on a current machine
    assert moves
