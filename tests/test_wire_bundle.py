"""Bundles: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.errors import Malformed
from protego_cli.wire.bundle import MAX_BATCHES, MAX_PACKETS, PADDING, WORD, could_be, parse
from protego_cli.wire.tags import TagKind, is_tag
from tests.support.datagrams import bundle

SHAPES = st.lists(
    st.integers(1, 300).flatmap(lambda size: st.tuples(st.just(size), st.integers(size, size * MAX_PACKETS))),
    min_size=1,
    max_size=20,
)


@given(SHAPES)
def test_batches_come_out_as_they_went_in(shapes: list[tuple[int, int]]) -> None:
    batches = [(size, bytes([place + 1]) * length) for place, (size, length) in enumerate(shapes)]
    made = bundle(*batches)
    assert [(size, bytes(part)) for part, size in parse(memoryview(made))] == batches
    assert could_be(len(made))
    assert made.startswith(WORD)


def test_a_bundle_is_like_a_tag_of_a_kind_of_its_own() -> None:
    assert is_tag(WORD)
    assert int.from_bytes(WORD) not in set(TagKind)


def test_no_esp_could_be_one() -> None:
    assert not any(could_be(length) for length in range(16, 65_508, 4))


GOOD = bundle((3, bytes(8)), (5, bytes(5)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:9],
        GOOD[: -1 - PADDING],
        WORD + bytes(40),
        WORD
        + (MAX_BATCHES + 1).to_bytes(2)
        + bytes([0, 1, 0, 1]) * (MAX_BATCHES + 1)
        + bytes(MAX_BATCHES + 1),
        WORD + b"\0\1" + bytes([0, 0, 0, 4]) + bytes(4),
        WORD + b"\0\1" + bytes([0, 4, 0, 3]) + bytes(3),
        WORD + b"\0\1" + bytes([0, 1, 0, MAX_PACKETS + 1]) + bytes(MAX_PACKETS + 1),
        GOOD + bytes(PADDING + 1),
    ],
    ids=["empty", "short", "cut off", "none", "many", "no size", "less than one", "too many packets", "more"],
)
def test_what_cannot_be_one_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(memoryview(data))


@given(st.binary(max_size=100).map(lambda rest: WORD + rest))
def test_hostile_bytes_are_malformed_or_lie_within(data: bytes) -> None:
    try:
        found = parse(memoryview(data))
    except Malformed:
        return
    assert sum(len(part) for part, _ in found) <= len(data)
    assert all(0 < size <= len(part) for part, size in found)
