"""Strides through rows of datagrams against a plain look at each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.wire.strides import fill


@given(st.integers(8, 21), st.integers(1, 6), st.integers(0, 9), st.binary(min_size=1, max_size=6))
def test_filling_is_writing_into_each(size: int, count: int, start: int, value: bytes) -> None:
    buffer = bytearray(range(200))
    expected = bytearray(buffer)
    for at in range(start, start + count * size, size):
        expected[at : at + len(value)] = value
    fill(buffer, size, count, start, value)
    assert buffer == expected
