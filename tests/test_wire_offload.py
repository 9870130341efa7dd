"""The inner checksums and segments that a virtual link's sender leaves undone; scapy is the judge."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from protego_cli.wire.offload import INNER_MTU, finish, mark
from tests.support.esp_packets import partial

ETHER = Ether(src="02:00:00:00:00:05", dst="02:50:00:00:10:01")
NETWORKS = {"v4": IP(src="10.1.0.5", dst="10.2.0.1", id=65535), "v6": IPv6(src="fd00:1::5", dst="fd00:2::1")}
TRANSPORTS = {"tcp": TCP(sport=1, dport=2, seq=0xFFFFFF00, flags="PAFC"), "udp": UDP(sport=1, dport=2)}
INNER = [(network, transport) for network in NETWORKS for transport in TRANSPORTS]


def unfinished(frame: memoryview) -> bool:
    """Whether the packet's checksum was left to a card."""
    found = mark(frame)
    return found is not None and frame[found.at : found.at + 2] == found.value


def whole(network: str, transport: str, payload: bytes) -> bytes:
    """A VXLAN packet with every checksum right, as scapy computes it."""
    return bytes(VXLAN(vni=1001) / ETHER / NETWORKS[network] / TRANSPORTS[transport] / Raw(payload))


@given(pair=st.sampled_from(INNER), payload=st.binary(max_size=1200))
def test_a_partial_checksum_is_seen_and_made_right(pair: tuple[str, str], payload: bytes) -> None:
    right = whole(*pair, payload)
    left = partial(right)
    assert unfinished(memoryview(left))
    assert finish(memoryview(left)) == [right]


@given(pair=st.sampled_from(INNER), payload=st.binary(max_size=1200))
def test_a_finished_packet_stays_as_it_is(pair: tuple[str, str], payload: bytes) -> None:
    right = whole(*pair, payload)
    assert finish(memoryview(right)) == [right]
    if unfinished(memoryview(right)):  # one in 65,536 is equal by chance, and comes out the same
        assert partial(right) == right


@pytest.mark.parametrize("pair", INNER, ids="-".join)
@pytest.mark.parametrize("size", [INNER_MTU, 5000, 63000])
@pytest.mark.parametrize("segment", [0, 500])
def test_a_packet_never_segmented_is_cut_as_a_card_would(
    pair: tuple[str, str], size: int, segment: int
) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    frame = partial(whole(*pair, payload))
    packets = [VXLAN(data) for data in finish(memoryview(frame), segment)]
    assert b"".join(bytes(packet[Raw].load) for packet in packets) == payload
    position = 0
    for index, packet in enumerate(packets):
        inner: Any = packet[Ether].payload
        assert len(inner) <= INNER_MTU or (pair[1] == "udp" and len(packets) == 1 and not segment)
        assert bytes(whole_again(inner)) == bytes(inner), "lengths and checksums as scapy computes them"
        if pair[1] == "tcp":
            last = index == len(packets) - 1
            assert packet[TCP].seq == (0xFFFFFF00 + position) % 2**32
            assert ("F" in packet[TCP].flags) == last
            assert ("C" in packet[TCP].flags) == (index == 0)
        if pair[0] == "v4":
            assert inner.id == (65535 + index) % 65536
        position += len(packet[Raw].load)


def whole_again(inner: Any) -> Any:
    """The packet with lengths and checksums computed anew."""
    copy = inner.copy()
    for name in ("len", "plen", "chksum"):
        layer = copy
        while layer:
            if name in layer.fields:
                del layer.fields[name]
            layer = layer.payload
    return type(inner)(bytes(copy))


@given(data=st.binary(max_size=200), segment=st.integers(0, 2000))
def test_any_bytes_are_taken(data: bytes, segment: int) -> None:
    unfinished(memoryview(data))
    assert all(len(packet) <= len(data) + 60 for packet in finish(memoryview(data), segment))


@pytest.mark.parametrize("words", range(5))
def test_a_tcp_header_shorter_than_can_be_is_not_cut(words: int) -> None:
    for last in range(60):
        frame = bytearray(whole("v4", "tcp", bytes(2 * INNER_MTU - 120 + last)))
        frame[54] = words << 4
        left = partial(bytes(frame))
        assert finish(memoryview(left)) == [left]


def test_fragments_and_other_protocols_are_left_alone() -> None:
    fragment = bytes(VXLAN() / ETHER / IP(frag=10, proto=17) / Raw(b"x" * 64))
    icmp = bytes(VXLAN() / ETHER / IP(proto=1) / Raw(b"x" * 64))
    for frame in (fragment, icmp):
        assert not unfinished(memoryview(frame))
        assert finish(memoryview(frame)) == [frame]
