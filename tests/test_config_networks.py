"""Prefixes that overlap are found, all of them, and in a time that grows with their number alone."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.config.networks import overlaps
from protego_cli.config.values import AnyNetwork
from tests.support.steps import steps

some_networks = st.lists(
    st.builds(
        lambda version, bits, length: ipaddress.ip_network(
            (bits << (28 if version == 4 else 124), length), strict=False
        ),
        st.sampled_from([4, 6]),
        st.integers(0, 15),
        st.integers(0, 8),
    ),
    max_size=12,
)


@given(some_networks)
def test_what_overlaps(networks: list[AnyNetwork]) -> None:
    expected = {
        (at, other)
        for at, network in enumerate(networks)
        for other, earlier in enumerate(networks[:at])
        if network.version == earlier.version and network.overlaps(earlier)
    }
    first = {at for at, network in enumerate(networks) if network not in networks[:at]}
    found = list(overlaps(networks))
    assert found == sorted(found)
    assert set(found) <= expected
    assert {pair for pair in expected if first.issuperset(pair)} <= set(found)
    assert {at for at, _ in found} | {o for _, o in found} >= {at for at, _ in expected}  # none goes unsaid


def test_ten_times_as_many_cost_ten_times_as_much() -> None:
    def cost(number: int) -> int:
        networks = [ipaddress.ip_network((number << 8, 24)) for number in range(number)]
        return steps(lambda: list(overlaps(networks)))

    assert cost(2000) < 11 * cost(200)
