"""Planning of segmented sends, as tables and as laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.net.gso import MAX_BYTES, MAX_SEGMENTS, grouped, runs, segments, segments_per_send


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([100], [(0, 1)]),
        ([100, 100, 100], [(0, 3)]),
        ([100, 100, 60], [(0, 3)]),  # a shorter one may end a run
        ([100, 60, 100], [(0, 2), (2, 3)]),  # and does end it
        ([60, 100, 100], [(0, 1), (1, 3)]),  # a longer one never joins
        ([100, 60, 60], [(0, 2), (2, 3)]),
        ([100, 0, 0], [(0, 1), (1, 2), (2, 3)]),  # an empty tail would vanish
        ([0, 100], [(0, 1), (1, 2)]),
        ([1400] * 65, [(0, 46), (46, 65)]),  # by bytes
        ([100] * 65, [(0, 64), (64, 65)]),  # by segments
        ([100] * 64 + [60], [(0, 64), (64, 65)]),
        ([40_000, 40_000], [(0, 1), (1, 2)]),
        ([40_000, 25_507], [(0, 2)]),
        ([40_000, 25_508], [(0, 1), (1, 2)]),
        ([70_000, 100], [(0, 1), (1, 2)]),  # too long for UDP: alone, and the kernel refuses it
    ],
)
def test_runs(lengths: list[int], expected: list[tuple[int, int]]) -> None:
    assert runs(lengths) == expected


@given(st.lists(st.sampled_from([0, 1, 60, 100, 1400, 40_000, 65_507]), max_size=300))
def test_runs_cover_everything_in_order_within_the_limits(lengths: list[int]) -> None:
    found = runs(lengths)
    assert [place for start, stop in found for place in range(start, stop)] == list(range(len(lengths)))
    for start, stop in found:
        part = lengths[start:stop]
        assert len(part) <= MAX_SEGMENTS
        assert sum(part) <= MAX_BYTES
        assert all(length == part[0] for length in part[:-1])
        assert part[-1] <= part[0]
        assert len(part) == 1 or min(part) > 0


@pytest.mark.parametrize(
    ("size", "count"), [(0, 1), (1, 64), (1023, 64), (1400, 46), (65_507, 1), (70_000, 1)]
)
def test_segments_per_send(size: int, count: int) -> None:
    assert segments_per_send(size) == count


@given(st.binary(max_size=200), st.integers(1, 50))
def test_segments_are_the_datagrams(data: bytes, size: int) -> None:
    parts = [bytes(part) for part in segments(memoryview(data), size)]
    assert b"".join(parts) == data
    assert all(len(part) == size for part in parts[:-1])
    assert len(parts) == max(1, -(-len(data) // size))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(2, 9), st.integers(0, 8))
def test_grouping_keeps_each_keys_packets_in_order(keys: list[str], size: int, missing: int) -> None:
    data = bytes(place % 256 for place in range(len(keys) * size - min(missing, size - 1)))
    view = memoryview(data)
    expected: dict[str, list[bytes]] = {}
    for place, key in enumerate(keys):
        expected.setdefault(key, []).append(data[place * size : (place + 1) * size])
    found = {key: (bytes(part), count) for key, part, count in grouped(view, size, keys)}
    assert found == {key: (b"".join(parts), len(parts)) for key, parts in expected.items()}


def test_packets_side_by_side_are_not_copied() -> None:
    view = memoryview(bytes(30))
    parts = [part for _, part, _ in grouped(view, 10, "aab")]
    assert all(isinstance(part, memoryview) for part in parts)
