"""TCP's maximum segment size, changed in passing; scapy computes the checksums anew."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from protego_cli.errors import Malformed
from protego_cli.wire.inner import parse
from protego_cli.wire.mss import Ceiling, any_syn, clamp, clamp_row, flags_at
from tests.support.esp_scapy import syn

CEILING = Ceiling(1300, 1280)
V4, V6 = IP(src="10.1.0.5", dst="10.2.0.9"), IPv6(src="fd00:1::5", dst="fd00:2::9")
OPTED = IP(src="10.1.0.5", dst="10.2.0.9", options=[IPOption(b"\x88\x04\x12\x34")])


@given(
    network=st.sampled_from([V4, V6, OPTED]),
    mss=st.integers(0, 65535),
    before=st.integers(0, 5),
    flags=st.sampled_from(["S", "SA", "SEC"]),
    load=st.binary(max_size=9),
)
def test_a_syn_says_no_more_than_the_ceiling(
    network: Packet, mss: int, before: int, flags: str, load: bytes
) -> None:
    most = min(mss, CEILING.v6 if network is V6 else CEILING.v4)
    assert clamp(syn(network, mss, before, flags, load), CEILING) == syn(network, most, before, flags, load)


def test_a_wrong_checksum_stays_wrong() -> None:
    wrong = bytearray(syn(V4, 1460))
    wrong[36] ^= 0x40
    right = bytearray(syn(V4, 1300))
    right[36] ^= 0x40
    changed = clamp(bytes(wrong), CEILING)
    assert changed[40:] == bytes(right)[40:]
    assert changed[36:38] != syn(V4, 1300)[36:38]


@pytest.mark.parametrize(
    "packet",
    [
        syn(V4, 1460, flags="A"),
        syn(IP(src="10.1.0.5", dst="10.2.0.9", frag=3), 1460),
        bytes(V4 / TCP(flags="S")),
        bytes(V4 / UDP() / Raw(syn(V4, 1460)[20:])),
        bytes(V6 / UDP() / Raw(syn(V4, 1460)[20:])),
        bytes(V4 / TCP(flags="S", dataofs=6) / Raw(b"\x02\x03\x40\x00")),  # an MSS of one byte
        bytes(V4 / TCP(flags="S", dataofs=6) / Raw(b"\x03\x01\x02\x04\x40\x00")),  # no length before it
        bytes(V4 / TCP(flags="S", dataofs=6) / Raw(b"\x01\x01\x02\x04\x40\x00")),  # half of it is data
        bytes(V4 / TCP(flags="S", dataofs=7) / Raw(b"\x00\x01\x02\x04\x40\x00\x00\x00")),  # behind the end
        bytes(V4 / TCP(flags="S"))[:-1].replace(b"\0\x28", b"\0\x27", 1),  # no whole TCP header
    ],
)
def test_all_else_stays_as_it_is(packet: bytes) -> None:
    assert clamp(packet, CEILING) == packet


def test_flags_are_found_behind_options_and_not_in_fragments() -> None:
    for network, start in ((V4, 20), (OPTED, 24), (V6, 40)):
        assert flags_at(syn(network, 1460)) == start + 13
        assert flags_at(bytes(network / UDP() / Raw(bytes(40)))) == 0
    assert flags_at(syn(IP(src="10.1.0.5", dst="10.2.0.9", frag=3), 1460)) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from([V4, V6]), st.sampled_from(["S", "A", "SA"]), st.booleans()), min_size=1
    )
)
def test_a_row_comes_out_as_its_packets_would_alone(kinds: list[tuple[Packet, str, bool]]) -> None:
    row = [
        syn(network, 1460, flags=flags) if tcp else bytes(network / UDP(sport=7, dport=0x202))
        for network, flags, tcp in kinds
    ]
    length = max(map(len, row))
    row = [packet + bytes(length - len(packet)) for packet in row]  # as behind a trailer
    assert list(clamp_row(row, CEILING)) == [clamp(packet, CEILING) for packet in row]


def test_a_syn_is_seen_among_others() -> None:
    assert not any_syn(bytes((0x10, 0x18, 0x11, 0x04)))
    assert any_syn(bytes((0x10, 0x12, 0x10)))


@given(st.sampled_from([b"\x45", b"\x46", b"\x60"]), st.binary(max_size=100))
def test_any_packet_keeps_its_length(first: bytes, rest: bytes) -> None:
    packet = first + rest
    try:
        parse(packet)
    except Malformed:
        return
    assert len(clamp(packet, CEILING)) == len(packet)
