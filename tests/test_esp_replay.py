"""The replay window against a model that remembers every number it ever saw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.esp.replay import ReplayWindow

SIZES = st.sampled_from([1, 2, 32, 64, 1024])
STEPS = st.one_of(st.integers(-70, 70), st.integers(-2000, 2000), st.sampled_from([1 << 31, -(1 << 31)]))


class Model:
    """RFC 4303 3.4.3, naively: a set of what was seen, and the right edge."""

    def __init__(self, size: int, floor: int) -> None:
        self.size, self.floor, self.top = size, floor, floor
        self.seen: set[int] = set()

    def check(self, number: int) -> bool:
        return number > self.floor and number > self.top - self.size and number not in self.seen

    def commit(self, number: int) -> None:
        self.seen.add(number)
        self.top = max(self.top, number)


def numbers_of(steps: list[int], floor: int) -> list[int]:
    """A walk that stays among 32-bit numbers."""
    at, numbers = floor, []
    for step in steps:
        at = min(max(at + step, 0), (1 << 32) - 1)
        numbers.append(at)
    return numbers


@given(SIZES, st.integers(0, 100), st.lists(st.tuples(STEPS, st.booleans()), max_size=80))
def test_it_admits_what_the_model_admits(size: int, floor: int, walk: list[tuple[int, bool]]) -> None:
    window, model = ReplayWindow(size, floor), Model(size, floor)
    numbers = numbers_of([step for step, _ in walk], floor)
    for number, (_, opens) in zip(numbers, walk, strict=True):
        assert window.check(number) == model.check(number)
        if opens and model.check(number):
            window.commit(number)
            model.commit(number)
        assert window.top == model.top


@given(SIZES, st.lists(st.lists(STEPS, min_size=1, max_size=20), max_size=12))
def test_rows_are_as_their_numbers_one_by_one(size: int, walks: list[list[int]]) -> None:
    window, model, at = ReplayWindow(size), Model(size, 0), 0
    for steps in walks:
        row = numbers_of(steps, at)
        at = row[-1]
        fresh = window.fresh(row)
        assert fresh == (row[0] > model.top and row == sorted(set(row)))
        for number in row:
            if fresh:
                model.commit(number)
            elif model.check(number):
                window.commit(number)
                model.commit(number)
        if fresh:
            window.commit_row(row)
        for number in range(max(0, model.top - size - 2), model.top + 2):
            assert window.check(number) == model.check(number)


@given(SIZES, st.lists(st.integers(1, 200), max_size=40), st.integers(0, 250))
def test_a_raised_floor_closes_all_below_it_and_nothing_above(
    size: int, numbers: list[int], floor: int
) -> None:
    window, model = ReplayWindow(size), Model(size, 0)
    for number in numbers:
        if model.check(number):
            window.commit(number)
            model.commit(number)
    window.raise_floor(floor)
    for number in range(300):
        expected = number > floor and model.check(number)
        assert window.check(number) == expected


def test_a_checked_number_leaves_no_trace() -> None:
    window = ReplayWindow(32)
    assert window.check(1_000_000)
    assert window.check(1)
    assert window.top == 0


def test_zero_is_never_a_packet() -> None:
    assert not ReplayWindow(32).check(0)


def test_a_window_has_a_size() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ReplayWindow(0)


@given(
    SIZES, st.integers(0, 1 << 40), st.lists(st.integers(-2000, 1 << 31), min_size=1, max_size=40), st.data()
)
def test_low_halves_are_extended_as_rfc_4303_says(
    size: int, top: int, steps: list[int], data: st.DataObject
) -> None:
    """Appendix A2.2, its two cases, against every number the peer may have sent."""
    window = ReplayWindow(size, top)
    at = top
    for step in steps:
        number = max(window.top - size + 1, at + step, 0)
        if number >= window.top + (1 << 32) - size:
            continue
        (extended,) = window.extend([number & 0xFFFFFFFF])
        assert extended == number
        tl, th = window.top & 0xFFFFFFFF, window.top >> 32
        low = number & 0xFFFFFFFF
        if tl >= size - 1:
            assert extended >> 32 == (th if low >= tl - size + 1 else th + 1)
        elif th:
            assert extended >> 32 == (th - 1 if low >= (tl - size + 1) % (1 << 32) else th)
        if window.check(number) and data.draw(st.booleans()):
            window.commit(number)
            assert not window.check(number)
            at = number


@given(SIZES, st.integers(0, 1 << 34), st.integers(0, 1 << 32), st.integers(1, 64))
def test_a_row_is_extended_as_its_numbers_are(size: int, top: int, ahead: int, count: int) -> None:
    window = ReplayWindow(size, top)
    row = [(top + ahead + n) & 0xFFFFFFFF for n in range(count)]
    assert list(window.extend(row)) == [window.extend([low])[0] for low in row]


def test_nothing_is_admitted_from_the_end_on() -> None:
    window = ReplayWindow(32, 10)
    window.end = 20
    assert [n for n in range(30) if window.check(n)] == list(range(11, 20))
    assert window.fresh([18, 19])
    assert not window.fresh([19, 20])
