"""TUN attachments without a device: packets into VXLAN batches, the largest MTU, the records."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.config.load import load
from protego_cli.control.channel.attachments import known_to, tenant_record, tun_records
from protego_cli.control.channel.desired_records import Vtep
from protego_cli.counters import Counters
from protego_cli.net.attachment import Attachments, frames
from protego_cli.net.gso import MAX_BYTES, MAX_SEGMENTS
from protego_cli.net.tun import INNER_MTU, inner_mtu
from protego_cli.wire.vxlan import FRAME_LENGTH
from tests.support.clusters import ACME, SECOND_GEN, write_cluster

HEADER4, HEADER6 = b"4" * FRAME_LENGTH, b"6" * FRAME_LENGTH


def packet(version: int, flow: int, length: int, number: int = 0, tos: int = 0) -> bytes:
    """An IP packet as `frames` sees it; its end tells it from others."""
    head = bytes([4 << 4, tos]) if version == 4 else (6 << 12 | tos << 4).to_bytes(2)
    at, width = (12, 8) if version == 4 else (8, 32)
    return head + bytes(at - 2) + bytes([flow]) * width + bytes(length - at - width - 2) + number.to_bytes(2)


def cut(batches: list[tuple[bytes, int, int]]) -> list[bytes]:
    return [data[at : at + size] for data, size, _ in batches for at in range(0, len(data), size)]


def test_equal_packets_of_one_flow_are_one_batch_and_a_shorter_one_ends_it() -> None:
    row = [packet(4, 1, 1000, number) for number in range(5)]
    last, next_one = packet(4, 1, 300), packet(4, 1, 400)
    first, second = frames([*row, last, next_one], HEADER4, HEADER6)
    assert first == (b"".join(HEADER4 + each for each in [*row, last]), 1022, 0)
    assert second == (HEADER4 + next_one, 422, 0)


def test_flows_that_interleave_are_taken_apart() -> None:
    data = [packet(6, 1, 1000, number) for number in range(20)]
    acks = [packet(6, 2, 80, number) for number in range(20)]
    mixed = [each for pair in zip(data, acks, strict=True) for each in pair]
    assert frames(mixed, HEADER4, HEADER6) == [
        (b"".join(HEADER6 + each for each in data), 1022, 0),
        (b"".join(HEADER6 + each for each in acks), 102, 0),
    ]


SPECS = st.tuples(
    st.sampled_from([4, 6]), st.integers(1, 3), st.integers(44, 1500), st.sampled_from([0, 0, 2, 3, 0xB8])
)


@given(st.lists(SPECS, max_size=300))
def test_no_packet_is_lost_and_each_flow_keeps_its_order(specs: list[tuple[int, int, int, int]]) -> None:
    packets = [packet(*spec[:3], number, spec[3]) for number, spec in enumerate(specs)]
    batches = frames(packets, HEADER4, HEADER6)
    marks = {
        header + each: spec[3]
        for each, spec in zip(packets, specs, strict=True)
        for header in (HEADER4, HEADER6)
    }
    for data, size, tos in batches:
        assert {marks[each] for each in cut([(data, size, tos)])} == {tos}
        assert len(data) <= MAX_BYTES
        assert len(data) <= MAX_SEGMENTS * size
    out = cut(batches)
    for version, header in ((4, HEADER4), (6, HEADER6)):
        for flow in (1, 2, 3):
            of_flow = [header + p for p, s in zip(packets, specs, strict=True) if s[:2] == (version, flow)]
            assert [each for each in out if each in of_flow] == of_flow
    assert len(out) == len(packets)


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_what_is_no_ip_packet_is_left_out(packets: list[bytes]) -> None:
    known = [each for each in packets if len(each) > 1 and each[0] >> 4 in (4, 6)]
    assert sum(len(data) for data, _, _ in frames(packets, HEADER4, HEADER6)) == sum(
        FRAME_LENGTH + len(each) for each in known
    )


@pytest.mark.parametrize("path", [1500, 1492, 1450, 9000])
def test_the_mtu_fits_every_suite_and_the_next_larger_packet_does_not(path: int) -> None:
    def sealed(inner: int) -> int:
        """In AES-CBC with HMAC-SHA-512 (RFC 4303 2.4, RFC 3948): the trailer ends a block."""
        padded = -(-(inner + 2) // 16) * 16
        return 20 + 8 + 8 + 16 + padded + 32

    def in_vxlan(inner: int) -> int:
        return 20 + 8 + 8 + 14 + inner

    inner = inner_mtu(path)
    assert max(sealed(inner), in_vxlan(inner)) <= path
    assert max(sealed(inner + 1), in_vxlan(inner + 1)) > path
    assert inner_mtu(1500) == INNER_MTU == 1406


def test_only_its_gen_gets_a_device_and_all_hear_of_a_vtep(tmp_path: Path) -> None:
    text = (ACME + SECOND_GEN).replace('device = "acme0"', 'device = "acme0"\nnode = "gen-2"')
    cluster = load(write_cluster(tmp_path, text))
    first, second = cluster.nodes_of("gen")
    assert tun_records(cluster, first) == []
    (tun,) = tun_records(cluster, second)
    assert (tun.key, tun.tenant, tun.device, tun.netns) == (("tun", 1001), "acme", "acme0", "acme")
    assert (tun.addresses, tun.mtu) == (("10.1.0.1/24",), INNER_MTU)
    record = tenant_record(cluster, cluster.tenants[0])
    assert record.vteps == (
        Vtep("0.0.0.0/0", "10.10.0.4", 4789, tun.mac),
        Vtep("::/0", "10.10.0.4", 4789, tun.mac),
    )
    gpn = cluster.nodes_of("gpn")[0]
    assert [known_to(node, cluster.tenants[0], record).vteps for node in (first, second, gpn)] == [
        (), record.vteps, record.vteps,
    ]  # fmt: skip
    assert tun.mac != record.gateway_mac
    assert tun.mac[0] & 3 == 2, "locally administered, of one machine"


def test_without_a_device_what_comes_is_counted() -> None:
    counters = Counters()
    with ExitStack() as stack:
        attachments = Attachments(counters, stack)
        attachments.put_route("acme/hq", 1001, ("10.2.0.0/24",))
        attachments.drop_route("acme/hq")
        attachments.drop_route("acme/hq")
        attachments.deliver(1001, memoryview(bytes(300)), 100)
        attachments.drop(1001)
    assert counters.nonzero() == {"gen_drop_tun": 3}
