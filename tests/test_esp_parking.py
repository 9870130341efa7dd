"""Parked packets: so much for each SPI, so much in all, and room that comes back however they go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protego_cli.counters import Counters
from protego_cli.esp.parking import MAX_AGE, OVERALL, OVERHEAD, PER_SPI, Parking

COST = 1 << 16  # bytes that a packet counts for
PACKET = bytes(COST - OVERHEAD)
FULL = PER_SPI // COST  # packets of one SPI
SPIS = range(256, 256 + OVERALL // PER_SPI)  # so many take all the room there is
NEXT = SPIS.stop


class Site:
    def __init__(self) -> None:
        self.counters = Counters()
        self.parking = Parking(self.counters)

    def park(self, spi: int, count: int, now: float = 0.0) -> int:
        """How many of so many packets were parked."""
        before = self.counters["gpn_parked"]
        self.parking.open(spi)
        self.parking.park(spi, [PACKET] * count, None, now)
        return self.counters["gpn_parked"] - before


def test_each_spi_has_its_bound_and_all_together_have_one() -> None:
    site = Site()
    assert [site.park(spi, FULL + 1) for spi in SPIS] == [FULL] * len(SPIS)
    assert site.park(NEXT, 1) == 0
    assert site.counters["gpn_drop_park_full"] == len(SPIS) + 1


@pytest.mark.parametrize(
    "leave",
    [
        lambda parking: parking.release(SPIS[0]),
        lambda parking: parking.close(SPIS[0]),
        lambda parking: parking.expire(MAX_AGE + 0.1),
        lambda parking: parking.park(SPIS[0], [], None, MAX_AGE + 0.1),
    ],
    ids=["released", "closed", "expired", "expired when more comes"],
)
def test_what_has_gone_leaves_as_much_room_as_it_took(leave: Callable[[Parking], object]) -> None:
    site = Site()
    for spi in SPIS:
        site.park(spi, FULL, now=0.0 if spi == SPIS[0] else 5.0)
    leave(site.parking)
    assert site.park(NEXT, FULL, now=5.0) == FULL
    assert site.park(NEXT + 1, 1, now=5.0) == 0
    assert len(site.parking.release(SPIS[1])) == FULL


def test_a_lot_that_was_released_can_be_filled_again() -> None:
    site = Site()
    site.park(NEXT, FULL)
    assert [parked.packet for parked in site.parking.release(NEXT)] == [PACKET] * FULL
    assert site.park(NEXT, FULL + 1) == FULL
