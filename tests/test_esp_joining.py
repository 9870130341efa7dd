"""Batches that wait together: which become one row, and that nothing but the cost changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.esp.inbound import Inbound
from protego_cli.esp.joining import joined
from protego_cli.esp.outbound import Outbound
from protego_cli.esp.slices import MAX_BYTES, MAX_ROWS
from protego_cli.net.gso import segments
from protego_cli.wire.tags import Tag, TagKind, seal_tag
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from tests.support.esp_packets import ipv4
from tests.support.esp_reference import padded, seal
from tests.support.esp_world import (
    ACME,
    BLUE,
    GATEWAY_MAC,
    GEN,
    GIN,
    GIN_KEY,
    NOW,
    VTEP_MAC,
    World,
    marked,
    world,
)

HERE, THERE = "10.1.0.5", "10.2.0.9"
LONG = 20  # packets: no batch that is worked on packet by packet with others


def kind(view: memoryview, size: int) -> int | None:
    """By the first byte; none of those that begin with zero."""
    return view[0] or None if size else None


BATCH = st.tuples(
    st.integers(0, 2), st.sampled_from([0, 1, 700, 1400]), st.integers(1, 64), st.sampled_from([0, 0, 0, 1])
)


@given(st.lists(BATCH, max_size=40))
def test_the_same_packets_come_out_in_their_order(specs: list[tuple[int, int, int, int]]) -> None:
    batches = []
    for place, (of, size, packets, less) in enumerate(specs):
        data = (bytes([of, place]) * size)[:size] * packets
        batches.append((memoryview(data[: max(len(data) - less, size)]), size))
    rows = list(joined(batches, kind))
    before, after = (
        [bytes(part) for view, size in some for part in segments(view, size)] for some in (batches, rows)
    )
    assert after == before
    assert all(len(view) <= MAX_BYTES and len(view) <= MAX_ROWS * size for view, size in rows)


def test_only_those_of_one_kind_and_size_become_one_and_a_shorter_packet_ends_it() -> None:
    rows = [
        (b"aaaa", 2),
        (b"aab", 2),
        (b"aa", 2),
        (b"aaa", 3),
        (b"bb", 2),
        (b"bb", 2),
        (bytes(2), 2),
        (b"b", 2),
    ]
    found = joined([(memoryview(data), size) for data, size in [*rows, (bytes(2), 2)]], kind)
    assert [(bytes(view), size) for view, size in found] == [
        (b"aaaaaab", 2),
        (b"aa", 2),
        (b"aaa", 3),
        (b"bbbb", 2),
        (bytes(2), 2),
        (b"b", 2),
        (bytes(2), 2),
    ]


def test_a_row_is_no_longer_than_slices_reach() -> None:
    batches = [(memoryview(b"a" * 64), 1)] * (MAX_ROWS // 64 + 1)
    assert [len(view) for view, _ in joined(batches, kind)] == [MAX_ROWS, 64]
    batches = [(memoryview(b"a" * 65_000), 1300)] * 9
    assert [len(view) // 65_000 for view, _ in joined(batches, kind)] == [MAX_BYTES // 65_000, 1]


# ---- in the gateway


@contextmanager
def rows(of: type[Inbound] | type[Outbound]) -> Iterator[list[int]]:
    """How many packets each row had that was worked on."""
    found: list[int] = []
    receive = of.receive

    def noted(self: Any, view: memoryview, size: int, *rest: Any) -> None:
        found.append(len(view) // size)
        receive(self, view, size, *rest)

    with patch.object(of, "receive", noted):
        yield found


def sealed(w: World, numbers: Iterable[int], there: str = THERE) -> list[bytes]:
    sa = w.reference.sas[0]
    return [
        seal(sa.key_in, sa.spi_in, number, padded(ipv4(there, HERE, number.to_bytes(4)), 4))
        for number in numbers
    ]


def carried(w: World, packets: Sequence[bytes]) -> list[int]:
    """The rows that a train of `LONG` batches becomes; what comes of them is what the reference says."""
    w.reference.sent_in.clear()
    for packet in packets:
        w.reference.receive_esp(packet)
    with rows(Inbound) as found:
        sent = marked(w.receive_esp_train(*packets, most=LONG))
    assert sent == w.reference.sent_in
    assert w.counters.nonzero() == dict(w.reference.counts)
    return found


def test_batches_from_a_peer_that_wait_together_are_opened_as_one() -> None:
    w = world()
    for first in (1, 101, 201):
        assert carried(w, sealed(w, range(first, first + 3 * LONG))) == [3 * LONG]


def test_a_forged_packet_is_dropped_alone_and_flows_keep_their_order() -> None:
    w = world()
    numbers = count(1)
    for _ in range(4):
        packets = [*sealed(w, islice(numbers, LONG)), *sealed(w, islice(numbers, LONG), "10.2.0.10")]
        packets[7], packets[8] = packets[8], packets[7]
        packets[9] = packets[9][:-1] + bytes([packets[9][-1] ^ 1])
        assert carried(w, packets) == [2 * LONG]
        assert carried(w, sealed(w, islice(numbers, 3 * LONG))) == [3 * LONG]


def test_packets_of_other_sas_in_such_a_row_are_not_lost_where_it_lies() -> None:
    w = world()
    first, second = w.reference.sas[:2]
    assert (first.spi_in, first.vni) != (second.spi_in, second.vni)
    for turn in range(4):
        packets = []
        for number in range(turn * 100 + 1, turn * 100 + 2 * LONG + 1):
            for sa in (first, second):
                inner = ipv4(THERE, HERE, number.to_bytes(4))
                packets.append(seal(sa.key_in, sa.spi_in, number, padded(inner, 4)))
        for packet in packets:
            w.reference.receive_esp(packet)
        with rows(Inbound) as found:
            sent = marked(w.receive_esp_train(*packets, most=LONG))
        assert found == [4 * LONG]
        assert sorted(sent) == sorted(w.reference.sent_in)
        assert w.counters.nonzero() == dict(w.reference.counts)
        w.reference.sent_in.clear()


def test_several_flows_to_one_vtep_go_into_one_send() -> None:
    w = world()
    numbers = count(1)
    for _ in range(4):
        packets = [*sealed(w, islice(numbers, LONG)), *sealed(w, islice(numbers, LONG), "10.2.0.10")]
        for packet in packets:
            w.reference.receive_esp(packet)
        sends = w.receive_esp_train(*packets, most=LONG)
    (send,) = sends
    assert send.packets == 2 * LONG
    assert marked(sends) == w.reference.sent_in[-2 * LONG :]


def test_a_probe_between_batches_is_answered_between_them() -> None:
    w = world()
    batches = [b"".join(sealed(w, range(first, first + LONG))) for first in (1, 101, 201)]
    tag = seal_tag(GIN_KEY, Tag(TagKind.PROBE, 5), hmac_sha256)
    train = [(memoryview(batch), len(batch) // LONG, GIN, 0) for batch in batches]
    train.insert(2, (memoryview(tag), len(tag), GIN, 0))
    with rows(Inbound) as found:
        sends = w.gateway.receive_esp_train(train, NOW)
    assert found == [2 * LONG, 1, LONG]
    assert [send.packets for send in sends] == [2 * LONG, 1, LONG]


def test_batches_from_a_tenant_are_sealed_as_one_where_all_that_decides_is_alike() -> None:
    w = world()

    def frames(vni: int, first: int) -> list[bytes]:
        header = build_frame_header(vni, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
        return [header + ipv4(HERE, THERE, number.to_bytes(4)) for number in range(first, first + LONG)]

    train = [*frames(ACME, 1), *frames(ACME, 101), *frames(BLUE, 201), *frames(BLUE, 301), *frames(ACME, 401)]
    for frame in train:
        w.reference.receive_vxlan(frame, GEN)
    with rows(Outbound) as found:
        sent = marked(w.receive_vxlan_train(*train, most=LONG))
    assert found == [2 * LONG, 2 * LONG, LONG]
    assert len(sent) + w.counters["gpn_drop_no_rule"] == len(train)
    assert w.counters.nonzero() == dict(w.reference.counts)
