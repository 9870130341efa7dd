from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.errors import Malformed
from protego_cli.wire import vxlan


@given(st.integers(0, vxlan.MAX_VNI))
def test_a_header_says_its_vni(vni: int) -> None:
    header = vxlan.build_header(vni)
    assert len(header) == vxlan.HEADER_LENGTH
    assert vxlan.parse(header) == vxlan.parse(memoryview(header + bytes(100))) == vni


@given(st.binary(max_size=40))
def test_any_bytes_parse_or_are_malformed(data: bytes) -> None:
    try:
        vni = vxlan.parse(data)
    except Malformed:
        assert len(data) < 8 or not data[0] & vxlan.I_FLAG
    else:
        assert data[4:7] == vni.to_bytes(3)


def test_reserved_fields_are_ignored() -> None:
    assert vxlan.parse(bytes.fromhex("ffeeddcc 0003e9 77")) == 1001


@pytest.mark.parametrize("vni", [-1, 1 << 24])
def test_a_vni_has_24_bits(vni: int) -> None:
    with pytest.raises(ValueError, match="24 bits"):
        vxlan.build_header(vni)


def test_a_frame_header_is_vxlan_and_ethernet() -> None:
    header = vxlan.build_frame_header(1001, b"\x02" * 6, b"\x04" * 6, vxlan.ETHERTYPE_IPV6)
    assert header.hex(" ", 2) == "0800 0000 0003 e900 0202 0202 0202 0404 0404 0404 86dd"
    assert len(header) == vxlan.FRAME_LENGTH
