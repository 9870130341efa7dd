"""The lab's packets and its counting: a count that can't go wrong silently."""

from __future__ import annotations

import ipaddress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from protego_cli.lab.tally import FlowTally, Tally
from protego_cli.lab.traffic import (
    LARGEST,
    SMALLEST,
    Direction,
    Flow,
    Numbered,
    build,
    parse,
    size_of,
    version_of,
)

FLOW = Flow(3, 0, Direction.IN)
numbers = st.integers(0, 100_000)


@given(numbers, st.sampled_from(Direction))
def test_a_packet_says_what_it_was_built_from(number: int, direction: Direction) -> None:
    flow = Flow(7, 2, direction)
    packet = build(flow, number)
    assert len(packet) == size_of(number)
    assert parse(packet) == Numbered(flow, number)


@pytest.mark.parametrize("number", [0, 1, 6, 7, 14, 500, 999])
def test_an_independent_implementation_finds_the_same_headers_and_checksums(number: int) -> None:
    packet = build(FLOW, number)
    seen = IPv6(packet) if version_of(number) == 6 else IP(packet)
    assert seen.src in ("10.2.0.10", "fd00:2::10")
    assert seen.dst in ("10.1.0.10", "fd00:1::10")
    again = seen.copy()
    del again[UDP].chksum
    if version_of(number) == 4:
        del again.chksum
    assert bytes(again) == packet
    assert ipaddress.ip_address(seen.dst).version == version_of(number)


def test_sizes_span_the_whole_range_and_both_families() -> None:
    count = 4 * (LARGEST - SMALLEST + 1)
    assert {size_of(n) for n in range(count)} == set(range(SMALLEST, LARGEST + 1))
    assert {version_of(n) for n in range(8)} == {4, 6}
    for number in range(0, count, 97):
        assert parse(build(FLOW, number)) is not None


# What parse() must not overlook: addresses, ports, lengths and the payload. Header fields that routers may
# change (TTL, TOS, header checksum) are free.
@given(numbers, st.data())
def test_any_flipped_bit_in_addresses_or_payload_is_seen(number: int, data: st.DataObject) -> None:
    packet = bytearray(build(FLOW, number))
    v6 = version_of(number) == 6
    start = 40 if v6 else 20
    free_udp_checksum = {start + 6, start + 7}
    covered = [
        *range(8 if v6 else 12, start),
        *(i for i in range(start, len(packet)) if i not in free_udp_checksum),
    ]
    packet[data.draw(st.sampled_from(covered))] ^= 1 << data.draw(st.integers(0, 7))
    assert parse(bytes(packet)) is None


@given(st.binary(max_size=200))
def test_noise_is_never_a_packet(noise: bytes) -> None:
    assert parse(noise) is None


@given(numbers, st.integers(0, LARGEST))
def test_a_truncated_packet_is_damaged(number: int, keep: int) -> None:
    packet = build(FLOW, number)
    assert parse(packet[: min(keep, len(packet) - 1)]) is None


def test_a_flow_tells_new_again_and_late() -> None:
    flow = FlowTally()
    for number in (0, 1, 5, 3, 5, 100_000, 2):
        flow.add(number)
    assert (flow.received, flow.duplicated, flow.reordered) == (6, 1, 2)
    assert flow.gaps(7) == ((4, 4), (6, 6))


@given(st.lists(st.integers(0, 3000), max_size=300))
def test_a_flow_counts_what_a_set_counts(arrivals: list[int]) -> None:
    flow = FlowTally()
    for number in arrivals:
        flow.add(number)
    assert flow.received == len(set(arrivals))
    assert flow.duplicated == len(arrivals) - len(set(arrivals))
    missing = set(range(3001)) - set(arrivals)
    gaps = flow.gaps(3001, most=3001)
    assert [number for first, last in gaps for number in range(first, last + 1)] == sorted(missing)
    assert all(last + 2 <= first for (_, last), (first, _) in pairwise(gaps))
    assert flow.gaps(3001, most=2) == gaps[:2]


def test_each_packet_is_judged_by_where_it_arrived() -> None:
    here, elsewhere = Flow(1, 0, Direction.IN), Flow(2, 0, Direction.IN)
    tally = Tally([here, elsewhere])
    tally.add(here, build(here, 0))
    tally.add(here, build(elsewhere, 0))
    tally.add(here, build(here._replace(direction=Direction.OUT), 0))
    tally.add(here, b"nonsense")
    assert (tally.flows[here].received, tally.flows[elsewhere].received) == (1, 0)
    assert (tally.misdelivered, tally.corrupted) == (2, 1)
