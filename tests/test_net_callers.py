"""Which IKE messages a GIN passes on when they are too many: known peers', and strangers' within bounds."""

from __future__ import annotations

import pytest

from protego_cli.net.callers import BURST, FIRST, KNOWN, KNOWN_BURST, LATER, Callers

PEER, OTHER = "198.51.100.7", "2001:db8::7"


def flooded() -> Callers:
    """Strangers have used up what is theirs, and go on."""
    callers = Callers(0.0)
    for first in (True, False):
        for number in range(int(BURST) + 1):
            callers.admits(f"192.0.2.{number % 256}", 0.0, first=first)
    return callers


def passed(callers: Callers, address: str, count: int, now: float = 0.0, *, first: bool = True) -> int:
    return sum(callers.admits(address, now, first=first) for _ in range(count))


@pytest.mark.parametrize("first", [True, False])
def test_strangers_share_what_is_passed_on(first: bool) -> None:
    callers = Callers(0.0)
    assert passed(callers, PEER, int(BURST), first=first) == BURST
    assert passed(callers, OTHER, 10, first=first) == 0
    assert passed(callers, OTHER, 10, first=not first) == 10
    assert passed(callers, OTHER, 10**4, 1.0, first=first) == (FIRST if first else LATER)


@pytest.mark.parametrize("first", [True, False])
def test_a_peer_that_a_tunnel_names_comes_through_a_flood(first: bool) -> None:
    callers = flooded()
    assert passed(callers, PEER, 10, first=first) == 0
    callers.expect(PEER)
    assert passed(callers, PEER, 10, first=first) == 10
    callers.forget(PEER)
    assert passed(callers, PEER, 10, first=first) == 0


def test_so_does_one_with_a_tunnel_that_is_up_wherever_it_is() -> None:
    callers = flooded()
    callers.steer(300, PEER)
    callers.steer(300, PEER)
    callers.steer(301, PEER)
    callers.unsteer(300)
    assert passed(callers, PEER, 10) == 10
    callers.steer(301, OTHER)  # it has moved
    assert passed(callers, PEER, 10) == 0
    assert passed(callers, OTHER, 10) == 10
    callers.unsteer(301)
    callers.unsteer(301)
    assert passed(callers, OTHER, 10) == 0


def test_a_flood_under_a_known_address_is_bounded_and_delays_no_other() -> None:
    callers = flooded()
    callers.expect(PEER)
    callers.expect(OTHER)
    assert passed(callers, PEER, 10**4) == KNOWN_BURST
    assert passed(callers, OTHER, 10) == 10
    assert passed(callers, PEER, 10**4, 1.0) == KNOWN + FIRST


def test_what_a_known_peer_has_too_much_of_is_a_stranger_s() -> None:
    callers = Callers(0.0)
    callers.expect(PEER)
    assert passed(callers, PEER, 10**4) == KNOWN_BURST + BURST
