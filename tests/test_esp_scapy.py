"""ESP against scapy, an implementation that shares no line with ours."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite
from protego_cli.esp.peer import PeerTunnel
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_scapy import scapy_open, scapy_seal
from tests.support.esp_suites import SUITES, key

HERE = tuple(map(TrafficSelector.from_prefix, ("10.1.0.0/24", "fd00:1::/64")))
THERE = tuple(map(TrafficSelector.from_prefix, ("10.2.0.0/24", "fd00:2::/64")))
SPI_IN, SPI_OUT = 0xC0FFEE01, 0xC0FFEE02
IN = {"v4": IP(src="10.2.0.9", dst="10.1.0.5"), "v6": IPv6(src="fd00:2::9", dst="fd00:1::5")}
OUT = {"v4": IP(src="10.1.0.5", dst="10.2.0.9"), "v6": IPv6(src="fd00:1::5", dst="fd00:2::9")}


def tunnel(suite: EspSuite, lo: int = 1) -> PeerTunnel:
    made = PeerTunnel(os.urandom, Counters())
    keys = key(suite, 1), key(suite, 101)
    made.install(SPI_IN, SPI_OUT, suite, *keys, HERE, THERE, seal_lo=lo, seal_hi=lo + 1)
    made.select(SPI_IN)
    return made


@pytest.mark.parametrize("suite", SUITES, ids=str)
@settings(max_examples=15)
@given(st.sampled_from(["v4", "v6"]), st.binary(max_size=80), st.integers(1, 2**32 - 2))
def test_we_open_what_scapy_seals(suite: EspSuite, version: str, payload: bytes, number: int) -> None:
    inner = bytes(IN[version] / UDP(sport=7, dport=9) / Raw(payload))
    sealed = scapy_seal(suite, key(suite, 1), SPI_IN, number, inner)
    gateway = tunnel(suite)
    assert gateway.open([sealed]) == [inner]
    assert gateway.counters.nonzero() == {}


@pytest.mark.parametrize("suite", SUITES, ids=str)
@settings(max_examples=15)
@given(st.sampled_from(["v4", "v6"]), st.binary(max_size=80), st.data())
def test_scapy_opens_what_we_seal(suite: EspSuite, version: str, payload: bytes, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 2**64 - 2 if suite.esn else 2**32 - 2))
    inner = bytes(OUT[version] / UDP(sport=7, dport=9) / Raw(payload))
    (sealed,) = tunnel(suite, number).seal([inner])
    assert scapy_open(suite, key(suite, 101), SPI_OUT, sealed, number >> 32) == (number, inner)
    again = scapy_seal(suite, key(suite, 101), SPI_OUT, number, inner)
    assert len(sealed) == len(again)
    if suite.integrity is None:
        assert sealed == again, "and both put the same bytes on the wire"


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite.esn], ids=str)
def test_we_follow_scapy_past_a_wrap_of_the_low_half(suite: EspSuite) -> None:
    inner = bytes(IN["v4"] / UDP(sport=7, dport=9) / Raw(b"wrap"))
    gateway = tunnel(suite)
    steps = [1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1, (1 << 32) + 1, 3 << 31, (1 << 33) - 5, (1 << 33) + 7]
    for number in steps:
        sealed = scapy_seal(suite, key(suite, 1), SPI_IN, number, inner)
        assert gateway.open([sealed]) == [inner], number
        assert gateway.open([sealed]) == [], number
    assert gateway.counters.nonzero() == {"gpn_drop_replay": len(steps)}
