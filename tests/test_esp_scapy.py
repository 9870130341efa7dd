"""ESP against scapy, an implementation that shares no line with ours."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Encryption
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.esp.peer import PeerTunnel
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_scapy import scapy_open, scapy_seal

SUITES = {a.keyword: a for a in ALGORITHMS if isinstance(a, Encryption)}
HERE = tuple(map(TrafficSelector.from_prefix, ("10.1.0.0/24", "fd00:1::/64")))
THERE = tuple(map(TrafficSelector.from_prefix, ("10.2.0.0/24", "fd00:2::/64")))
SPI_IN, SPI_OUT = 0xC0FFEE01, 0xC0FFEE02
IN = {"v4": IP(src="10.2.0.9", dst="10.1.0.5"), "v6": IPv6(src="fd00:2::9", dst="fd00:1::5")}
OUT = {"v4": IP(src="10.1.0.5", dst="10.2.0.9"), "v6": IPv6(src="fd00:1::5", dst="fd00:2::9")}


def key(suite: str, seed: int) -> bytes:
    return bytes((seed + place) & 255 for place in range(SUITES[suite].key_length + 4))


def tunnel(suite: str, lo: int = 1) -> PeerTunnel:
    made = PeerTunnel(Counters())
    keys = key(suite, 1), key(suite, 101)
    made.install(SPI_IN, SPI_OUT, SUITES[suite], *keys, HERE, THERE, seal_lo=lo)
    made.select(SPI_IN)
    return made


@pytest.mark.parametrize("suite", SUITES)
@settings(max_examples=25)
@given(st.sampled_from(["v4", "v6"]), st.binary(max_size=80), st.integers(1, 2**32 - 2))
def test_we_open_what_scapy_seals(suite: str, version: str, payload: bytes, number: int) -> None:
    inner = bytes(IN[version] / UDP(sport=7, dport=9) / Raw(payload))
    sealed = scapy_seal(suite, key(suite, 1), SPI_IN, number, inner)
    gateway = tunnel(suite)
    assert gateway.open([sealed]) == [inner]
    assert gateway.counters.nonzero() == {}


@pytest.mark.parametrize("suite", SUITES)
@settings(max_examples=25)
@given(st.sampled_from(["v4", "v6"]), st.binary(max_size=80), st.integers(1, 2**32 - 2))
def test_scapy_opens_what_we_seal(suite: str, version: str, payload: bytes, number: int) -> None:
    inner = bytes(OUT[version] / UDP(sport=7, dport=9) / Raw(payload))
    (sealed,) = tunnel(suite, number).seal([inner])
    assert scapy_open(suite, key(suite, 101), SPI_OUT, sealed) == (number, inner)
    again = scapy_seal(suite, key(suite, 101), SPI_OUT, number, inner)
    assert sealed == again, "and both put the same bytes on the wire"
