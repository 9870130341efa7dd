"""RFC 6040's tables, exhaustively; scapy judges what becomes of the headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from protego_cli.wire.checksum import amended, intact
from protego_cli.wire.ecn import around, leave, telling, tos
from tests.support.esp_packets import ipv4, ipv6, summed

NAMES = {"Not-ECT": 0, "ECT(1)": 1, "ECT(0)": 2, "CE": 3}
EGRESS = {  # RFC 6040, figure 4: by the inner field, under outer Not-ECT, ECT(0), ECT(1), CE
    "Not-ECT": ("Not-ECT", "Not-ECT", "Not-ECT", "drop"),
    "ECT(0)": ("ECT(0)", "ECT(0)", "ECT(1)", "CE"),
    "ECT(1)": ("ECT(1)", "ECT(1)", "ECT(1)", "CE"),
    "CE": ("CE", "CE", "CE", "CE"),
}
TABLE = [
    (NAMES[inner], NAMES[outer], NAMES.get(outgoing))
    for inner, row in EGRESS.items()
    for outer, outgoing in zip(("Not-ECT", "ECT(0)", "ECT(1)", "CE"), row, strict=True)
]


def packet(version: int, traffic_class: int, payload: bytes = b"any") -> Packet:
    if version == 4:
        return IP(src="10.2.0.9", dst="10.1.0.5", tos=traffic_class, id=77) / Raw(payload)
    return IPv6(src="fd00:2::9", dst="fd00:1::5", tc=traffic_class, fl=0xFEDCB) / Raw(payload)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("inner", "outer", "outgoing"), TABLE)
def test_leaving_a_tunnel(version: int, inner: int, outer: int, outgoing: int | None) -> None:
    for dscp in range(64):
        arrived = bytes(packet(version, dscp << 2 | inner))
        expected = None if outgoing is None else bytes(packet(version, dscp << 2 | outgoing))
        for outer_dscp in (0, 46, 63):
            assert leave(arrived, outer_dscp << 2 | outer) == expected
            framed = leave(b"\x45header" + arrived, outer_dscp << 2 | outer, at=7)
            assert framed == (None if expected is None else b"\x45header" + expected)


def test_only_a_telling_field_changes_anything() -> None:
    changing = {outer for inner, outer, outgoing in TABLE if outgoing != inner}
    assert {outer & 3 for outer in range(256) if telling(outer)} == changing


@pytest.mark.parametrize("version", [4, 6])
def test_entering_a_tunnel(version: int) -> None:
    for inner in range(256):
        arrived = bytes(packet(version, inner))
        assert tos(arrived) == around(arrived, None) == inner
        for dscp in (0, 46, 63):
            assert around(arrived, dscp) == dscp << 2 | inner & 3


@given(st.binary(min_size=20, max_size=20), st.integers(0, 255))
def test_a_checksum_that_is_right_stays_so_and_a_wrong_one_wrong(header: bytes, outer: int) -> None:
    arrived = b"\x45" + header[1:]
    for before in (arrived, summed(arrived)):
        left = leave(before, outer)
        assert left is None or intact(left) == intact(before)


@given(st.integers(0, 0xFFFF), st.integers(-3, 3), st.integers(0, 0xFFFF))
def test_an_amended_checksum_is_the_computed_one(word: int, change: int, other: int) -> None:
    """RFC 1624 4: -0 does not come out where anything but zero is summed."""
    if not (0 <= word + change <= 0xFFFF and word + other and word + change + other):
        return
    before, after = word + other, word + change + other

    def computed(total: int) -> bytes:
        return (0xFFFF - (total % 0xFFFF or 0xFFFF)).to_bytes(2)

    assert amended(computed(before), change) == computed(after)


@pytest.mark.parametrize("data", [b"", b"\x45", bytes(20), b"\x45" * 19, b"\x75" * 60, b"\x00" * 60])
def test_what_is_no_ip_packet_is_left_alone(data: bytes) -> None:
    for outer in range(4):
        assert leave(data, outer) is data


def test_nothing_is_copied_where_nothing_changes() -> None:
    for arrived in (ipv4("10.2.0.9", "10.1.0.5", b"", tos=1), ipv6("fd00:2::9", "fd00:1::5", b"", tos=3)):
        assert leave(arrived, 1) is arrived
