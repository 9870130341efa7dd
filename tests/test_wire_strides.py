"""Strides through rows of datagrams against a plain look at each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.wire.strides import counting, fill


@given(
    st.sampled_from([8, 10, 28, 31]),
    st.integers(1, 8),
    st.sampled_from([0, 1, 65530, 65536, (1 << 32) - 9]),
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from([1, 1 << 16, -1])), max_size=2),
)
def test_counting_is_told_from_everything_else(
    size: int, count: int, first: int, slips: list[tuple[int, int]]
) -> None:
    numbers = list(range(first, first + count))
    for place, by in slips:
        if place < count:
            numbers[place] = (numbers[place] + by) % (1 << 32)
    buffer = b"".join([b"spi!" + number.to_bytes(4) + bytes([99] * (size - 8)) for number in numbers])
    found = counting(memoryview(buffer), size, count, 4)
    consecutive = numbers == list(range(numbers[0], numbers[0] + count))
    if found is not None:
        assert list(found) == numbers
    else:
        assert not consecutive or size % 2 or numbers[0] >> 16 != (numbers[-1] + 1) >> 16


@given(st.integers(8, 21), st.integers(1, 6), st.integers(0, 9), st.binary(min_size=1, max_size=6))
def test_filling_is_writing_into_each(size: int, count: int, start: int, value: bytes) -> None:
    buffer = bytearray(range(200))
    expected = bytearray(buffer)
    for at in range(start, start + count * size, size):
        expected[at : at + len(value)] = value
    fill(memoryview(buffer), size, count, start, value)
    assert buffer == expected
