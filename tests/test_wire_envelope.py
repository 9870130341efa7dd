"""Envelopes: layout, what the MAC covers, and that hostile bytes raise Malformed and nothing else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import Malformed
from protego_cli.wire.envelope import Envelope, open_envelope, seal_envelope

KEY = bytes(range(32))
SAMPLE = Envelope("203.0.113.10", 4500, "198.51.100.7", 61234, b"an IKE message")

ports = st.integers(0, 65535)


def paths(version: int) -> st.SearchStrategy[Envelope]:
    address = st.ip_addresses(v=version).map(str)
    return st.builds(Envelope, address, ports, address, ports, st.binary(min_size=1, max_size=200))


def test_layout_is_the_documented_one() -> None:
    data = seal_envelope(KEY, SAMPLE, hmac_sha256)
    head = bytes([0, 1, 0, 4]) + (4500).to_bytes(2) + (61234).to_bytes(2)
    body = bytes([203, 0, 113, 10, 198, 51, 100, 7]) + SAMPLE.data
    assert data == head + hmac_sha256(KEY, head + body)[:16] + body


@given(paths(4) | paths(6))
def test_round_trip(envelope: Envelope) -> None:
    data = seal_envelope(KEY, envelope, hmac_sha256)
    opened = open_envelope(KEY, memoryview(data), hmac_sha256)
    assert opened._replace(local="", remote="") == envelope._replace(local="", remote="")
    for theirs, ours in ((opened.local, envelope.local), (opened.remote, envelope.remote)):
        assert ipaddress.ip_address(theirs) == ipaddress.ip_address(ours)


@given(st.data())
def test_any_changed_byte_is_refused(draw: st.DataObject) -> None:
    data = bytearray(seal_envelope(KEY, SAMPLE, hmac_sha256))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(Malformed):
        open_envelope(KEY, bytes(data), hmac_sha256)


@given(st.binary(max_size=120) | st.binary(max_size=120).map(lambda rest: bytes([0, 1, 0, 4]) + rest))
def test_hostile_bytes_raise_only_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        open_envelope(KEY, data, hmac_sha256)


@pytest.mark.parametrize("cut", range(1, len(SAMPLE.data) + 33))
def test_every_truncation_is_refused(cut: int) -> None:
    data = seal_envelope(KEY, SAMPLE, hmac_sha256)
    with pytest.raises(Malformed):
        open_envelope(KEY, data[:-cut], hmac_sha256)


def test_another_key_is_refused() -> None:
    with pytest.raises(Malformed, match="MAC"):
        open_envelope(bytes(32), seal_envelope(KEY, SAMPLE, hmac_sha256), hmac_sha256)
