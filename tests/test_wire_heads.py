"""What rows of ESP packets begin with, against a plain look at each packet."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from protego_cli.wire.heads import HEAD_LENGTH, counting, one_spi

SPIS = st.sampled_from([0, 0x0000_0102, 0x1122_3344, 0x1122_3345, 0x1222_3344, 0xFFFF_FFFF])
NUMBERS = st.one_of(
    st.integers(0, 0xFFFF_FFFF), st.sampled_from([0, 0xFFFE, 0xFFFF, 0x1_0000, 0x1_FFFE, 0xFFFF_FFFE])
)
STEPS = st.sampled_from([1, 1, 1, 0, -1, 2, 0x1_0000, -0x1_0000])


@given(
    st.sampled_from([16, 20, 100, 101, 102]),
    st.integers(0, 92),
    SPIS,
    NUMBERS,
    st.lists(STEPS, max_size=5),
    st.lists(st.tuples(st.integers(0, 5), SPIS), max_size=1),
)
@example(16, 0, 0x1122_3344, 0xFFFE, [1, 1, 1], [])  # the lower halves turn over
@example(16, 0, 0x1122_3344, 0x7_FFFF, [1, -0x1_0000 + 1], [])
def test_like_a_look_at_each(
    size: int, shorter: int, spi: int, number: int, steps: list[int], others: list[tuple[int, int]]
) -> None:
    heads = [(spi, number)]
    for step in steps:
        number = (number + step) % (1 << 32)
        heads.append((spi, number))
    for place, other in others:
        heads[place % len(heads)] = (other, heads[place % len(heads)][1])
    row = b"".join(struct.pack("!II", *head).ljust(size, b"\x5a") for head in heads)
    last = max(HEAD_LENGTH, size - shorter)
    row = row[: len(row) - size + last]
    same = len({head[0] for head in heads}) == 1
    expected = (heads[0][0], max(found for _, found in heads)) if same else None
    assert one_spi(memoryview(row), size, len(heads)) == expected
    numbers = [found for _, found in heads]
    follow = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    counted = counting(memoryview(row), size, len(heads))
    if same and follow and not size % 4 and numbers[0] >> 16 == numbers[-1] >> 16:
        assert counted == (heads[0][0], range(numbers[0], numbers[-1] + 1))
    else:
        assert counted is None


def test_rows_of_a_batch_whose_numbers_follow_on_one_another() -> None:
    for first in (0, 1, 0xFFC0, 0xFFC1, 0xFFFF, 0x12_FFF0, 0xFFFF_FFC0):
        row = b"".join(struct.pack("!II56x", 0xC0FFEE01, first + place) for place in range(64))
        assert one_spi(memoryview(row), 64, 64) == (0xC0FFEE01, first + 63)
