"""Columns of a row of datagrams against a plain look at each of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.wire.columns import alike, column, likeness

SPANS = st.lists(st.sampled_from([(0, 8), (2, 4), (4, 10), (10, 12)]), min_size=1, max_size=3).map(tuple)


@given(st.integers(12, 31), st.integers(1, 6), SPANS, st.booleans(), st.data())
def test_like_a_look_at_each(
    size: int, count: int, spans: tuple[tuple[int, int], ...], shorter: bool, data: st.DataObject
) -> None:
    reach = max(stop for _, stop in spans)
    packets = [bytearray(range(size)) for _ in range(count)]
    if shorter:
        del packets[-1][data.draw(st.integers(reach, size)) :]
    for _ in range(data.draw(st.integers(0, 2))):
        packet = data.draw(st.sampled_from(packets))
        packet[data.draw(st.integers(0, len(packet) - 1))] = 99
    rows = {tuple(bytes(packet[start:stop]) for start, stop in spans) for packet in packets}
    buffer = memoryview(b"".join(packets))
    assert alike(buffer, size, count, spans) == (len(rows) == 1)


@given(st.integers(12, 31), st.integers(1, 6), SPANS, st.integers(0, 9), st.data())
def test_a_likeness_tells_whether_others_have_the_same(
    size: int, count: int, spans: tuple[tuple[int, int], ...], less: int, data: st.DataObject
) -> None:
    """Also of rows that are too short to have it."""
    reach = max(stop for _, stop in spans)
    row = bytearray(bytes(range(size)) * count)
    same = likeness(memoryview(row), size, count, spans)
    before = bytes(row)
    for _ in range(data.draw(st.integers(0, 2))):
        row[data.draw(st.integers(0, len(row) - 1))] = 99
    other = memoryview(row)[: len(row) - less]
    places = [
        place * size + at for place in range(count) for start, stop in spans for at in range(start, stop)
    ]
    reaches = len(other) >= (count - 1) * size + reach
    assert same(other) == (reaches and all(row[at] == before[at] for at in places))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70), st.integers(16, 90), st.integers(0, 74))
def test_a_column_is_read_from_every_datagram(numbers: list[int], size: int, missing: int) -> None:
    whole = b"".join(number.to_bytes(4) + (number ^ 0x5A).to_bytes(4) + bytes(size - 8) for number in numbers)
    data = memoryview(whole[: len(whole) - min(missing, size - 16)])
    layout = column(size, len(numbers), 4)
    assert list(layout.unpack_from(data)) == numbers
    assert [number ^ 0x5A for number in layout.unpack_from(data, 4)] == numbers
    wide = column(size, len(numbers), 8).unpack_from(data)
    assert list(wide) == [number << 32 | number ^ 0x5A for number in numbers]
