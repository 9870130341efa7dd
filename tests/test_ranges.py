"""What the GMN grants once and never again: sealing ranges and SPIs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from protego_cli.control.sas.ranges import END, EXHAUSTED, EXTENDED_SIZE, SIZE, WINDOW, SealingRanges
from protego_cli.control.sas.spis import SpiAllocator


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def numbers(values: Iterable[int]) -> Callable[[int], bytes]:
    """A random source."""
    waiting = iter(values)
    return lambda length: next(waiting).to_bytes(length)


# ---- sealing ranges


def test_the_first_range_begins_at_one() -> None:
    assert SealingRanges().grant(0x1000) == (1, SIZE)


def test_ranges_follow_one_another_without_overlap_up_to_the_end() -> None:
    ranges = SealingRanges()
    granted = []
    while (found := ranges.grant(0x1000)) != EXHAUSTED:
        granted.append(found)
    assert granted[0].lo == 1
    assert all(before.hi == after.lo for before, after in pairwise(granted))
    assert granted[-1].hi == END == 2**32 - WINDOW
    assert len(granted) == 4


def test_an_exhausted_sa_stays_exhausted_and_its_range_is_empty() -> None:
    ranges = SealingRanges()
    for _ in range(4):
        ranges.grant(0x1000)
    assert [ranges.grant(0x1000) for _ in range(3)] == [EXHAUSTED] * 3
    assert EXHAUSTED.lo == EXHAUSTED.hi


def test_extended_numbers_go_on_as_far_as_they_are_known_to_be_used() -> None:
    """A peer that received nothing since would take a jump of 2^32 for none (RFC 4303 A2.2)."""
    ranges = SealingRanges()
    assert ranges.grant(0x1000, esn=True) == (1, EXTENDED_SIZE)
    assert ranges.grant(0x1000, esn=True) == (EXTENDED_SIZE, 2 * EXTENDED_SIZE)
    assert ranges.grant(0x1000, esn=True) == EXHAUSTED
    assert ranges.grant(0x1000, esn=True, used=WINDOW) == EXHAUSTED
    third = ranges.grant(0x1000, esn=True, used=WINDOW + 1)
    assert third == (1 << 32, (1 << 32) + EXTENDED_SIZE)
    assert third.lo - (WINDOW + 1) < (1 << 32) - WINDOW
    assert ranges.grant(0x1000, esn=True, used=third.lo).lo == third.hi


def test_every_sa_has_numbers_of_its_own() -> None:
    ranges = SealingRanges()
    ranges.grant(0x1000)
    assert ranges.grant(0x2000).lo == 1
    assert ranges.grant(0x1000).lo == SIZE


def test_a_forgotten_sa_leaves_nothing_behind() -> None:
    ranges = SealingRanges()
    ranges.grant(0x1000)
    ranges.forget(0x1000)
    ranges.forget(0x1000)
    assert not vars(ranges)["_granted"]


# ---- SPIs


def test_reserved_spis_are_passed_over() -> None:
    allocator = SpiAllocator(numbers([0, 1, 255, 256]), Clock())
    assert allocator.allocate() == 256


def test_an_spi_in_use_or_handed_out_is_not_handed_out_again() -> None:
    clock = Clock()
    allocator = SpiAllocator(numbers([1000, 1000, 2000, 1000, 2000, 3000]), clock, quarantine=10)
    held = allocator.allocate()
    allocator.hold(held)
    assert allocator.allocate() == 2000
    assert allocator.allocate() == 3000


def test_a_held_spi_outlives_the_quarantine_and_a_released_one_serves_it() -> None:
    clock = Clock()
    allocator = SpiAllocator(numbers([1000, 1000, 2000, 1000, 3000, 1000]), clock, quarantine=10)
    allocator.hold(allocator.allocate())
    clock.now += 100
    assert allocator.allocate() == 2000  # 1000 is held still
    allocator.release(1000)
    clock.now += 9
    assert allocator.allocate() == 3000  # 1000 is quarantined
    clock.now += 2
    assert allocator.allocate() == 1000


def test_an_spi_drawn_for_nothing_comes_free() -> None:
    clock = Clock()
    allocator = SpiAllocator(numbers([1000, 1000]), clock, quarantine=10)
    allocator.allocate()
    clock.now += 11
    assert allocator.allocate() == 1000


@pytest.mark.parametrize("held", [False, True])
def test_a_storm_of_handshakes_costs_bounded_memory(held: bool) -> None:
    allocator = SpiAllocator(numbers(range(1000, 2000)), Clock(), quarantined=16)
    for _ in range(500):
        spi = allocator.allocate()
        if held:
            allocator.hold(spi)
            allocator.release(spi)
    assert len(vars(allocator)["_aside"]) <= 16
