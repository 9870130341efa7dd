"""Fragments of IPv4 packets; scapy puts them together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption, defragment
from scapy.packet import Raw

from protego_cli.errors import Malformed
from protego_cli.wire.fragments import fragment, may_be_cut

RECORD_ROUTE = b"\x07\x07\x04\0\0\0\0"  # in the first fragment only
STREAM = b"\x88\x04\x12\x34"  # in all of them


def packet(size: int, **fields: object) -> bytes:
    load = (bytes(range(256)) * (size // 256 + 1))[:size]
    return bytes(IP(src="10.1.0.5", dst="10.2.0.9", id=77, **fields) / UDP(sport=7, dport=9) / Raw(load))


def data(packet: bytes) -> bytes:
    return bytes(IP(packet).payload)


@given(size=st.integers(0, 9000), mtu=st.integers(68, 1500), tos=st.integers(0, 255))
def test_scapy_puts_together_what_was_cut(size: int, mtu: int, tos: int) -> None:
    whole = packet(size, tos=tos)
    pieces = fragment(whole, mtu)
    assert all(len(piece) <= mtu for piece in pieces)
    assert (len(pieces) == 1) == (len(whole) <= mtu)
    for piece in pieces:
        read = IP(piece)
        checksum = read.chksum
        del read.chksum
        assert IP(bytes(read)).chksum == checksum
        assert (read.src, read.dst, read.id, read.tos, read.ttl) == ("10.1.0.5", "10.2.0.9", 77, tos, 64)
    (together,) = defragment([IP(piece) for piece in pieces])
    assert data(bytes(together)) == data(whole)


def test_a_fragment_is_cut_on() -> None:
    whole = packet(3000)
    again = [piece for part in fragment(whole, 1500) for piece in fragment(part, 600)]
    (together,) = defragment([IP(piece) for piece in again])
    assert data(bytes(together)) == data(whole)
    assert [int(IP(piece).flags.MF) for piece in again] == [1] * (len(again) - 1) + [0]


def test_later_fragments_keep_the_options_that_are_to_be_copied() -> None:
    whole = packet(3000, options=[IPOption(RECORD_ROUTE), IPOption(b"\x01"), IPOption(STREAM)])
    first, *later = fragment(whole, 600)
    assert first[20:32] == whole[20:32]
    assert {piece[20 : (piece[0] & 15) * 4] for piece in later} == {STREAM}
    assert b"".join(piece[(piece[0] & 15) * 4 :] for piece in (first, *later)) == whole[32:]


def changed(packet: bytes, at: int, value: bytes) -> bytes:
    """The packet with other bytes there, and a right header checksum."""
    header = (packet[0] & 15) * 4
    read = IP(packet[:at] + value + packet[at + len(value) :])
    head = bytearray(bytes(read)[:header])
    head[10:12] = b"\0\0"
    total = sum(int.from_bytes(head[i : i + 2]) for i in range(0, header, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = (0xFFFF - total).to_bytes(2)
    return bytes(head) + packet[header:]


@pytest.mark.parametrize(
    "broken",
    [
        packet(3000)[:8] + b"\x09" + packet(3000)[9:],  # the checksum does not hold
        changed(packet(3000), 6, b"\x1f\xff"),  # would end beyond 65,535
        changed(packet(3000, options=[IPOption(STREAM)]), 21, b"\0"),  # an option of no length
        changed(packet(3000, options=[IPOption(STREAM)]), 21, b"\x09"),  # and one beyond the header
    ],
)
def test_what_must_not_be_sent_on_is_malformed(broken: bytes) -> None:
    with pytest.raises(Malformed):
        fragment(broken, 1400)


def test_no_room_is_malformed_and_ends() -> None:
    with pytest.raises(Malformed):
        fragment(packet(3000), 27)


def test_df_and_ipv6_are_not_for_cutting() -> None:
    assert may_be_cut(packet(100))
    assert not may_be_cut(packet(100, flags="DF"))
    assert not may_be_cut(b"\x60" + bytes(39))


@given(st.binary(min_size=40, max_size=400), st.integers(20, 200))
def test_any_bytes_come_to_pieces_or_are_malformed(body: bytes, mtu: int) -> None:
    try:
        pieces = fragment(changed(b"\x46\0" + len(body).to_bytes(2) + body[4:], 9, b"\x11"), mtu)
    except Malformed:
        return
    assert all(len(piece) <= mtu for piece in pieces)
