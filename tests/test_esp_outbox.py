"""What leaves together: equal sizes side by side, a shorter last, order kept for each way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.esp.outbox import Outbox, Port, Way

A = Way(Port.VXLAN, ("10.20.0.5", 4789), None, "gpn_opened")
B = Way(Port.ESP, ("198.51.100.7", 4500), "203.0.113.10", "gpn_sealed")


def sent(outbox: Outbox) -> list[tuple[Way, bytes, int, int]]:
    return [(way, bytes(data), size, packets) for way, data, size, packets in outbox.take()]


def test_equal_sizes_and_a_shorter_last_are_one_send() -> None:
    outbox = Outbox()
    outbox.add(A, 4, b"aaaabbbb", 2)
    outbox.add(A, 4, b"cccc")
    outbox.add(A, 2, b"dd")
    outbox.add(A, 2, b"ee")
    assert sent(outbox) == [(A, b"aaaabbbbccccdd", 4, 4), (A, b"ee", 2, 1)]
    assert outbox.take() == []


def test_a_datagram_of_its_own_leaves_behind_all_before_it() -> None:
    outbox = Outbox()
    outbox.add(A, 4, b"aaaa")
    outbox.add(B, 2, b"bb")
    outbox.put(B, b"echo")
    outbox.add(A, 4, b"cccc")
    assert [data for _, data, _, _ in sent(outbox)] == [b"aaaa", b"bb", b"echo", b"cccc"]


def test_another_tos_begins_another_send_in_its_turn() -> None:
    outbox = Outbox()
    marked = A._replace(tos=3)
    for way, data in ((A, b"a1"), (A, b"a2"), (marked, b"m3"), (A, b"a4"), (marked, b"m5"), (marked, b"m6")):
        outbox.add(way, 2, data)
    assert sent(outbox) == [
        *[(A, b"a1a2", 2, 2), (marked, b"m3", 2, 1), (A, b"a4", 2, 1)],
        (marked, b"m5m6", 2, 2),
    ]


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(1, 4), st.integers(1, 3))))
def test_every_way_gets_its_packets_in_order(rows: list[tuple[Way, int, int]]) -> None:
    outbox, expected = Outbox(), dict[Way, list[bytes]]()
    for number, (way, size, packets) in enumerate(rows):
        datagrams = [bytes([number & 255]) * size] * packets
        outbox.add(way, size, b"".join(datagrams), packets)
        expected.setdefault(way, []).extend(datagrams)
    found = dict[Way, list[bytes]]()
    for way, data, size, packets in sent(outbox):
        cut = [data[at : at + size] for at in range(0, len(data), size)]
        assert len(cut) == packets
        found.setdefault(way, []).extend(cut)
    assert found == expected


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.lists(st.integers(1, 4), max_size=6), st.booleans())))
def test_rows_of_any_sizes_leave_as_the_same_packets_do_one_by_one(
    rows: list[tuple[Way, list[int], bool]],
) -> None:
    together, singly = Outbox(), Outbox()
    for number, (way, sizes, whole) in enumerate(rows):
        packets = [bytes([number % 256]) * size for size in sizes]
        if whole:
            together.add_row(way, packets)
        for packet in packets:
            singly.add(way, len(packet), packet)
            if not whole:
                together.add(way, len(packet), packet)
    assert _by_way(sent(together)) == _by_way(sent(singly))


def _by_way(sends: list[tuple[Way, bytes, int, int]]) -> dict[Way, list[tuple[bytes, int, int]]]:
    return {way: [send[1:] for send in sends if send[0] == way] for way in (A, B)}
