"""Placement: how a policy is asked, and that one which misbehaves places and moves nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from protego_cli.control.packing.packing_view import NOWHERE
from protego_cli.control.packing.placement import (
    GpnView,
    Move,
    Packer,
    PackingView,
    PolicyFault,
    TunnelView,
    evacuate,
)
from protego_cli.plugins.packing_policies import Spread, protego_packing_policies

NEW = TunnelView("acme/hq", 0.2)


def view(*gpns: GpnView, tunnels: Sequence[TunnelView] = ()) -> PackingView:
    return PackingView(0.0, gpns, tunnels)


TWO = view(
    GpnView("gpn-1", 1.0, 0.5, tunnels=2),
    GpnView("gpn-2", 1.0, 0.1, tunnels=1),
    GpnView("gpn-3", 1.0, 0.0, accepting=False),
    tunnels=[
        TunnelView("a", 0.3, "gpn-1"),
        TunnelView("b", 0.2, "gpn-1"),
        TunnelView("c", 0.1, "gpn-2"),
        TunnelView("d", 0.7, "gpn-9"),
        TunnelView("pinned", 0.0, "gpn-2", movable=False),
    ],
)


class Fixed:
    """Answers what it is told to."""

    name = "fixed"

    def __init__(self, place: object = None, plan: object = ()) -> None:
        self._place = place
        self._plan = plan

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        return self._place  # type: ignore[return-value]  # on purpose

    def plan(self, view: PackingView) -> Sequence[Move]:
        return self._plan  # type: ignore[return-value]  # on purpose


class Broken:
    name = "broken"

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        raise RuntimeError("a bug of the plugin")

    def plan(self, view: PackingView) -> Sequence[Move]:
        raise RuntimeError("a bug of the plugin")


def placed(policy: object, at: PackingView, tunnel: TunnelView = NEW) -> str | None:
    return Packer(policy, "acme").place(tunnel, at)  # type: ignore[arg-type]  # some are wrong on purpose


def planned(policy: object, at: PackingView = TWO) -> tuple[Move, ...]:
    return Packer(policy, "acme").plan(at)  # type: ignore[arg-type]  # some are wrong on purpose


# ---- the view


def test_candidates_have_room_and_accept() -> None:
    assert [gpn.name for gpn in TWO.candidates(0.2)] == ["gpn-1", "gpn-2"]
    assert [gpn.name for gpn in TWO.candidates(0.8)] == ["gpn-2"]


def test_what_does_not_run_yet_is_no_place_for_now() -> None:
    at = view(GpnView("gpn-1", 1.0, 0.5), GpnView("gpn-2", 1.0, 0.0, running=False))
    assert [gpn.name for gpn in at.candidates(0.9)] == ["gpn-1"]
    assert placed(Fixed("gpn-2"), at) is None


def test_where_none_has_room_all_that_accept_are_candidates() -> None:
    assert [gpn.name for gpn in TWO.candidates(2.0)] == ["gpn-1", "gpn-2"]


def test_tunnels_are_listed_only_when_looked_at() -> None:
    looked = []

    def tunnels() -> Iterator[TunnelView]:
        looked.append(True)
        yield NEW

    at = PackingView(0.0, TWO.gpns, tunnels())
    again = at.with_gpns(TWO.gpns[:1])
    assert placed(Spread(), at) == "gpn-2"
    assert looked == []
    assert again.tunnels == at.tunnels == (NEW,)
    assert looked == [True]


def test_rows_and_columns_say_the_same() -> None:
    rows = [
        TunnelView("a", 0.3, "gpn-1", 2, True, "ha"),
        TunnelView("b", 0.2, None, 0, False, None),
        TunnelView("c", 0.1, "gpn-9", 1, True, "ha"),
    ]
    gpns = (GpnView("gpn-1", 1.0, 0.4, False, 1), GpnView("gpn-2", 2.0, 0.0, running=False))
    at = PackingView(0.0, gpns, rows)
    tunnels, listed = at.tunnel_columns, at.gpn_columns
    assert tunnels.load.tolist() == [0.3, 0.2, 0.1]
    assert tunnels.gpn.tolist() == [0, NOWHERE, NOWHERE]
    assert tunnels.moves.tolist() == [2, 0, 1]
    assert tunnels.movable.tolist() == [True, False, True]
    assert tunnels.group.tolist() == [0, -1, 0]
    assert listed.capacity.tolist() == [1.0, 2.0]
    assert listed.running.tolist() == [True, False]
    again = PackingView(0.0, listed, tunnels)
    assert again.gpns == gpns
    assert again.tunnels == tuple(
        row._replace(gpn=row.gpn if row.gpn == "gpn-1" else None, group=row.group and "group-0")
        for row in rows
    )
    assert again.tunnel_columns is tunnels


def test_columns_cannot_be_written_into() -> None:
    class Scribbling(Fixed):
        def plan(self, view: PackingView) -> Sequence[Move]:
            view.tunnel_columns.load[0] = 0
            return ()

    with pytest.raises(PolicyFault, match="raised ValueError: assignment destination is read-only"):
        planned(Scribbling())


def test_history_is_asked_for_when_it_is_looked_at() -> None:
    asked = []

    def history(ids: Sequence[str]) -> npt.NDArray[np.float64]:
        asked.append(tuple(ids))
        return np.ones((3, len(ids)))

    at = PackingView(0.0, TWO.gpns, TWO.tunnels, history)
    assert not asked
    assert at.history.shape == at.history.shape == (3, 5)
    assert asked == [("a", "b", "c", "d", "pinned")]
    assert TWO.history.shape == (0, 5)


# ---- place


def test_without_a_gpn_that_accepts_no_policy_is_asked() -> None:
    assert placed(Broken(), view()) is None
    assert placed(Broken(), view(GpnView("gpn-1", 1.0, 0.0, accepting=False))) is None


def test_a_policy_may_place_nothing() -> None:
    assert placed(Fixed(None), TWO) is None


@pytest.mark.parametrize(
    ("chosen", "load", "says"),
    [
        ("gpn-9", 0.1, "on 'gpn-9', which is no connected GPN"),
        (7, 0.1, "on 7, which is no connected GPN"),
        ("gpn-3", 0.1, "on 'gpn-3', which accepts none"),
        ("gpn-1", 0.6, "on 'gpn-1', which is full while others have room"),
    ],
)
def test_a_policy_that_chooses_nonsense_fails_closed(
    caplog: pytest.LogCaptureFixture, chosen: object, load: float, says: str
) -> None:
    with caplog.at_level(logging.ERROR):
        assert placed(Fixed(chosen), TWO, TunnelView("acme/hq", load)) is None
    assert "policy failed tunnel=acme/hq" in caplog.text
    assert f"the packing policy 'fixed' of plugin 'acme' put acme/hq {says}" in caplog.text


def test_a_policy_that_raises_fails_closed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert placed(Broken(), TWO) is None
    assert "policy=broken plugin=acme" in caplog.text
    assert "raised RuntimeError: a bug of the plugin" in caplog.text


# ---- plan


def test_a_good_plan_is_taken_as_it_is() -> None:
    moves = [Move("a", "gpn-2"), ("d", "gpn-1")]
    assert planned(Fixed(plan=moves)) == tuple(moves)
    assert planned(Fixed(plan=iter(moves))) == tuple(moves)
    assert planned(Fixed()) == ()


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ([("none", "gpn-1")], "moves 'none', which is no tunnel that is up"),
        ([("a", "gpn-2"), ("a", "gpn-2")], "moves a twice"),
        ([("pinned", "gpn-1")], "moves pinned, which cannot be moved now"),
        ([("a", "gpn-3")], "moves a to 'gpn-3', which accepts none"),
        ([("a", "gpn-9")], "moves a to 'gpn-9', which is no connected GPN"),
        ([("a", "gpn-1")], "moves a to gpn-1, where it is already"),
        ([("d", "gpn-1"), ("a", "gpn-2"), ("c", "gpn-1")], "fills gpn-1 to 1.000"),
        ([("d", "gpn-1")], "fills gpn-1 to 1.200, beyond its capacity of 1"),
        ([("a", "gpn-2", 1)], "which is no Move(tunnel, to)"),
        (["ab"], "planned 'ab', which is no Move(tunnel, to)"),
        ([("a", 7)], "which is no Move(tunnel, to)"),
        (None, "raised TypeError"),
        (7, "raised TypeError"),
        (iter(lambda: ("a", "gpn-2"), 0), "moves a twice"),  # it never ends
    ],
)
def test_a_plan_of_nonsense_is_refused(caplog: pytest.LogCaptureFixture, plan: object, says: str) -> None:
    if says == "fills gpn-1 to 1.000":
        assert len(planned(Fixed(plan=plan))) == 3  # filled to the brim, what leaves counted
        return
    with caplog.at_level(logging.ERROR), pytest.raises(PolicyFault) as refused:
        planned(Fixed(plan=plan))
    assert str(refused.value).startswith("the packing policy 'fixed' of plugin 'acme' ")
    assert says in str(refused.value)
    assert "of plugin 'acme'" in caplog.text


def test_a_plan_may_ask_for_another_gpn() -> None:
    at = PackingView(0.0, [*TWO.gpns, GpnView("gpn-4", 1.0, 0.0, running=False)], TWO.tunnels)
    assert planned(Fixed(plan=[("a", "gpn-4")]), at) == (Move("a", "gpn-4"),)


def test_overfilling_is_a_fault_only_where_it_could_be_helped() -> None:
    gpns = [GpnView("gpn-1", 1.0, 1.55), GpnView("gpn-2", 1.0, 0.9)]
    tunnels = [TunnelView("a", 0.3, "gpn-1"), TunnelView("b", 1.2, "gpn-1"), TunnelView("c", 0.05, "gpn-1")]
    at = PackingView(0.0, gpns, tunnels)
    alone = PackingView(0.0, [*gpns, GpnView("gpn-3", 1.0, 0.0, running=False)], tunnels)
    assert planned(Fixed(plan=[("a", "gpn-2")]), at)  # nothing has room for it
    with pytest.raises(PolicyFault, match=r"fills gpn-2 to 1.250, .* while others have room"):
        planned(Fixed(plan=[("a", "gpn-2"), ("c", "gpn-2"), ("b", "gpn-3")]), alone)
    assert planned(Fixed(plan=[("b", "gpn-3")]), alone)  # it is beyond any GPN
    with pytest.raises(PolicyFault, match="fills gpn-2"):
        planned(Fixed(plan=[("a", "gpn-2")]), alone)


def test_a_policy_need_not_mitigate() -> None:
    assert Packer(Fixed(plan=[("a", "gpn-2")]), "acme").mitigate(TWO) == ()


def test_what_a_policy_mitigates_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    class Hasty(Fixed):
        def mitigate(self, view: PackingView) -> Sequence[Move]:
            return self.plan(view)

    assert Packer(Hasty(plan=[("a", "gpn-2")]), "acme").mitigate(TWO) == (Move("a", "gpn-2"),)
    with caplog.at_level(logging.ERROR), pytest.raises(PolicyFault, match="moves 'x'"):
        Packer(Hasty(plan=[("x", "gpn-2")]), "acme").mitigate(TWO)
    assert "of plugin 'acme'" in caplog.text


def test_a_plan_that_raises_is_told_to_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(PolicyFault, match="a bug of the plugin"):
        planned(Broken())
    assert "policy=broken plugin=acme" in caplog.text


# ---- emptying a GPN


def test_evacuation_counts_what_it_has_placed() -> None:
    at = view(
        GpnView("gpn-1", 1.0, 0.9, accepting=False, tunnels=3),
        GpnView("gpn-2", 1.0, 0.0),
        GpnView("gpn-3", 1.0, 0.0),
    )
    leaving = [TunnelView(name, 0.3, "gpn-1") for name in ("a", "b", "c")]
    moves, left = evacuate(Packer(Spread(), "p"), leaving, at)
    assert moves == [("a", "gpn-2"), ("b", "gpn-3"), ("c", "gpn-2")]
    assert left == []


def test_evacuation_says_what_goes_nowhere() -> None:
    at = view(GpnView("gpn-1", 1.0, 0.9, accepting=False))
    leaving = [TunnelView("a", 0.3, "gpn-1")]
    assert evacuate(Packer(Spread(), "p"), leaving, at) == ([], leaving)


def test_the_hook_hands_out_the_built_in_policies() -> None:
    names = {policy.name for policy in protego_packing_policies()}
    assert names == {"best-fit", "first-fit-decreasing", "predictive", "protego", "spread", "sticky"}
