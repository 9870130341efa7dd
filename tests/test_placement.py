"""Placement: what the built-in policy chooses, and that a policy that misbehaves places nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from protego_cli.control.placement import GpnLoad, choose
from protego_cli.plugins.packing_policies import Spread, protego_packing_policies


def load(name: str, tunnels: int, cpu: float = 0.0) -> GpnLoad:
    return GpnLoad(name, tunnels, cpu)


class Fixed:
    name = "fixed"

    def __init__(self, answer: str | None) -> None:
        self.answer = answer

    def place(self, tunnel: str, nodes: Sequence[GpnLoad]) -> str | None:
        return self.answer


class Broken:
    name = "broken"

    def place(self, tunnel: str, nodes: Sequence[GpnLoad]) -> str | None:
        raise RuntimeError("a bug of the plugin")


def test_spread_takes_the_gpn_with_the_fewest_tunnels() -> None:
    nodes = [load("gpn-1", 3), load("gpn-2", 1, cpu=0.9), load("gpn-3", 2)]
    assert choose(Spread(), "acme/hq", nodes) == "gpn-2"


def test_spread_takes_the_lowest_name_among_equals() -> None:
    assert choose(Spread(), "acme/hq", [load("gpn-2", 1), load("gpn-1", 1)]) == "gpn-1"


def test_spread_is_what_the_hook_hands_out() -> None:
    assert [policy.name for policy in protego_packing_policies()] == ["spread"]


def test_without_nodes_no_policy_is_asked() -> None:
    assert choose(Broken(), "acme/hq", []) is None
    assert Spread().place("acme/hq", []) is None


def test_a_policy_may_place_nothing() -> None:
    assert choose(Fixed(None), "acme/hq", [load("gpn-1", 0)]) is None


def test_a_policy_that_names_another_node_fails_closed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert choose(Fixed("gpn-9"), "acme/hq", [load("gpn-1", 0)]) is None
    assert "policy=fixed tunnel=acme/hq node=gpn-9" in caplog.text


def test_a_policy_that_raises_fails_closed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert choose(Broken(), "acme/hq", [load("gpn-1", 0)]) is None
    assert "policy=broken tunnel=acme/hq" in caplog.text
