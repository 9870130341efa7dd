"""Which IKE messages a GIN passes on when they are too many: known peers', and strangers' within bounds."""

from __future__ import annotations

import pytest

from protego_cli.net.callers import ANSWERED, BURST, FIRST, KNOWN, KNOWN_BURST, LATER, Callers

PEER, OTHER = "198.51.100.7", "2001:db8::7"
SPI = b"8 octets"


def flooded() -> Callers:
    """Strangers have used up what is theirs, and go on."""
    callers = Callers(0.0)
    for first in (SPI, None):
        for number in range(int(BURST) + 1):
            callers.admits(f"192.0.2.{number % 256}", 0.0, first)
    return callers


def passed(callers: Callers, address: str, count: int, now: float = 0.0, *, first: bool = True) -> int:
    return sum(callers.admits(address, now, SPI if first else None) for _ in range(count))


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


def test_a_stranger_that_is_asked_for_a_cookie_comes_through_once_more() -> None:
    callers = flooded()
    callers.begin_again(PEER, SPI)
    assert not callers.admits(PEER, 0.0, b"another.")
    assert not callers.admits(OTHER, 0.0, SPI)
    assert passed(callers, PEER, 10, first=False) == 0
    assert passed(callers, PEER, 10) == 1
    callers.begin_again(PEER, SPI)  # as it is told when its cookie is wrong
    assert passed(callers, PEER, 10) == 0


def test_of_those_that_were_asked_a_bounded_number_is_remembered() -> None:
    callers = flooded()
    for number in range(ANSWERED + 1):
        callers.begin_again(PEER, number.to_bytes(8))
    assert [callers.admits(PEER, 0.0, number.to_bytes(8)) for number in (0, 1, ANSWERED)] == [
        False,
        True,
        True,
    ]
