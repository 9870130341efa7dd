"""Short batches sorted by the size of their packets, and put back into order."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.esp import sorting
from protego_cli.esp.slices import MAX_BYTES, MAX_ROWS
from protego_cli.esp.sorting import Sorted, packets, short, sort
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from tests.support.esp_packets import ipv4
from tests.support.esp_reference import padded, seal
from tests.support.esp_world import ACME, GATEWAY_MAC, GEN, VTEP_MAC, marked, world

SIZES = [8, 12, 24, 40]
BATCHES = st.lists(
    st.tuples(st.sampled_from(SIZES), st.integers(1, 5), st.sampled_from([0, 0, 8, 12, 24])), min_size=1
)


def _batches(shapes: list[tuple[int, int, int]]) -> list[tuple[memoryview, int]]:
    """Of packets of which no two are the same; a shorter one ends a batch where it is shorter."""
    batches, place = [], 0
    for size, count, tail in shapes:
        lengths = [size] * count + [tail] * (0 < tail < size)
        made = [(place + number).to_bytes(4) + bytes(length - 4) for number, length in enumerate(lengths)]
        place += len(made)
        batches.append((memoryview(b"".join(made)), size))
    return batches


def _sorted(batches: list[tuple[memoryview, int]]) -> Sorted:
    with patch.object(sorting, "ENOUGH", 1):
        found = sort(batches)
    assert found is not None
    return found


@given(BATCHES)
def test_sorted_packets_come_back_in_order(shapes: list[tuple[int, int, int]]) -> None:
    batches = _batches(shapes)
    found = _sorted(batches)
    rows = {
        size: [row[at : at + size] for at in range(0, len(row), size)] for size, row in found.rows.items()
    }
    assert found.restored(rows) == packets(batches)
    numbers = range(7, 7 + found.packets)
    allotted = found.allotted(numbers)
    assert all(row == sorted(row) for row in allotted.values())
    assert found.restored(allotted) == list(numbers)
    assert found.packets == len(packets(batches))


@given(BATCHES, st.permutations(SIZES))
def test_runs_are_what_segmented_sends_can_carry(shapes: list[tuple[int, int, int]], to: list[int]) -> None:
    """Whatever lengths their frames have: those of longer packets may be the shorter ones."""
    batches = _batches(shapes)
    found = _sorted(batches)
    lengths = dict(zip(SIZES, to, strict=True))
    frames = {
        size: (b"".join([row[at : at + 4].ljust(lengths[size], b"f") for at in range(0, len(row), size)]))
        for size, row in found.rows.items()
    }
    sent = []
    for data, size, count in found.runs({size: (bytearray(f), lengths[size]) for size, f in frames.items()}):
        assert len(data) > (count - 1) * size
        assert len(data) <= count * size
        sent += [bytes(data[at : at + size]) for at in range(0, len(data), size)]
    assert sent == [packet[:4].ljust(lengths[len(packet)], b"f") for packet in packets(batches)]


def test_what_came_one_by_one_leaves_in_runs() -> None:
    """As from a sender or a network that merges nothing."""
    found = _sorted(_batches([(24, 1, 0)] * 5 + [(12, 1, 0), (12, 2, 8), (8, 1, 0), (12, 1, 0), (12, 1, 0)]))
    frames = {size: (bytearray(row), size) for size, row in found.rows.items()}
    assert [(size, count) for _, size, count in found.runs(frames)] == [(24, 6), (12, 3), (8, 1), (12, 2)]
    with patch.object(sorting, "MANY", 48):  # no longer than it pays
        runs = [(size, count) for _, size, count in found.runs(frames)]
    assert runs == [(24, 2), (24, 2), (24, 2), (12, 3), (8, 1), (12, 2)]


def test_many_sizes_or_few_packets_are_not_sorted() -> None:
    many = _batches([(size, 20, 0) for size in (8, 12, 24, 40)])
    assert sort(many) is not None
    assert sort([*many, *_batches([(44, 20, 0)])]) is None
    assert sort(_batches([(8, sorting.ENOUGH, 0), (12, sorting.ENOUGH - 1, 0)])) is None
    assert sort([(memoryview(bytes(4)), 8)] * 100) is None


def test_batches_are_short_on_average() -> None:
    assert short(_batches([(8, 2 * sorting.SHORT - 1, 0), (8, 1, 0)]))
    assert not short(_batches([(8, 2 * sorting.SHORT, 0), (8, 1, 0)]))
    assert not short(_batches([(8, 1, 0)]))
    assert not short([*_batches([(8, 1, 0)]), (memoryview(b""), 0)])


@pytest.mark.parametrize(("length", "many"), [(1400, MAX_BYTES // 1400 + 20), (40, MAX_ROWS + 20)])
def test_rows_of_one_size_that_are_longer_than_slices_reach_are_sealed_and_opened(
    length: int, many: int
) -> None:
    w = world(room=1 << 20)
    sa = w.reference.sas[0]
    header = build_frame_header(ACME, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
    lengths = ([length] * 7 + [length // 2]) * (many // 7 + 1)
    for turn in range(3):
        frames = [header + ipv4("10.1.0.5", "10.2.0.9", bytes(each)) for each in lengths]
        numbers = range(1 + turn * len(lengths), 1 + (turn + 1) * len(lengths))
        sealed = [
            seal(sa.key_in, sa.spi_in, number, padded(ipv4("10.2.0.9", "10.1.0.5", bytes(each)), 4))
            for number, each in zip(numbers, lengths, strict=True)
        ]
        for frame, packet in zip(frames, sealed, strict=True):
            w.reference.receive_vxlan(frame, GEN)
            w.reference.receive_esp(packet)
        assert marked(w.receive_vxlan_train(*frames, most=8)) == w.reference.sent_out
        assert marked(w.receive_esp_train(*sealed, most=8)) == w.reference.sent_in
        w.reference.sent_out.clear()
        w.reference.sent_in.clear()
    assert not w.counters.nonzero()
