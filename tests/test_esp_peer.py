from __future__ import annotations

import os

import pytest

from protego_cli.crypto.algorithms import EspSuite
from protego_cli.esp.peer import PeerTunnel
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_packets import ipv4, ipv6, summed
from tests.support.esp_suites import SUITES

A = (TrafficSelector.from_prefix("10.1.0.0/24"), TrafficSelector.from_prefix("fd00:1::/64"))
B = (TrafficSelector.from_prefix("10.2.0.0/24"), TrafficSelector.from_prefix("fd00:2::/64"))


def key(suite: EspSuite, byte: int) -> bytes:
    return bytes([byte]) * (suite.keymat_length)


def couple(suite: EspSuite = SUITES[0], spi: int = 0x1000) -> tuple[PeerTunnel, PeerTunnel]:
    left, right = PeerTunnel(os.urandom), PeerTunnel(os.urandom)
    left.install(spi, spi + 1, suite, key(suite, 1), key(suite, 2), A, B)
    right.install(spi + 1, spi, suite, key(suite, 2), key(suite, 1), B, A)
    left.select(spi)
    right.select(spi + 1)
    return left, right


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_what_one_side_seals_the_other_opens(suite: EspSuite) -> None:
    left, right = couple(suite)
    packets = [ipv4("10.1.0.5", "10.2.0.9", bytes(size)) for size in range(9)]
    packets.append(ipv6("fd00:1::5", "fd00:2::9", b"six"))
    assert right.open(left.seal(packets)) == packets
    assert right.take_first() == [0x1001]
    assert right.take_first() == []


def test_a_replay_opens_nothing() -> None:
    left, right = couple()
    sealed = left.seal([ipv4("10.1.0.5", "10.2.0.9", b"once")])
    assert len(right.open(sealed)) == 1
    assert right.open(sealed) == []
    assert right.counters["gpn_drop_replay"] == 1


@pytest.mark.parametrize(
    ("source", "destination"),
    [("10.1.1.5", "10.2.0.9"), ("10.1.0.5", "10.2.1.9"), ("fd00:1::1", "fd00:3::1")],
)
def test_selectors_hold_in_both_directions(source: str, destination: str) -> None:
    left, right = couple()
    packet = ipv6(source, destination, b"") if ":" in source else ipv4(source, destination, b"")
    assert left.seal([packet]) == []
    assert left.counters["gpn_drop_selector_out"] == 1
    everything = (TrafficSelector.from_prefix("0.0.0.0/0"), TrafficSelector.from_prefix("::/0"))
    suite = SUITES[0]
    left.install(0x1000, 0x1001, suite, key(suite, 1), key(suite, 2), everything, everything)
    left.select(0x1000)
    assert right.open(left.seal([packet])) == []
    assert right.counters["gpn_drop_selector_in"] == 1


def test_generations_live_side_by_side() -> None:
    left, right = couple()
    suite = SUITES[0]
    packet = ipv4("10.1.0.5", "10.2.0.9", b"x")
    old = left.seal([packet])
    left.install(0x2000, 0x2001, suite, key(suite, 3), key(suite, 4), A, B)
    right.install(0x2001, 0x2000, suite, key(suite, 4), key(suite, 3), B, A)
    assert left.seal([packet])[0][:4] == bytes.fromhex("00001001"), "sealing moves only when told"
    left.select(0x2000)
    new = left.seal([packet])
    assert right.open(new) == right.open(old) == [packet]
    assert right.take_first() == [0x2001, 0x1001]
    right.drop(0x1001)
    assert right.installed() == [0x2001]
    assert right.open(old) == []
    assert right.counters["gpn_drop_unknown_spi"] == 1


def test_a_dropped_generation_seals_nothing() -> None:
    left, _ = couple()
    left.drop(0x1000)
    assert left.seal([ipv4("10.1.0.5", "10.2.0.9", b"x")]) == []
    assert left.counters["gpn_drop_no_rule"] == 1


def test_short_and_forged_datagrams_are_counted() -> None:
    left, right = couple()
    sealed = left.seal([ipv4("10.1.0.5", "10.2.0.9", b"x")])[0]
    forged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    assert right.open([b"", sealed[:15], sealed[:16], forged]) == []
    assert right.counters.nonzero() == {"gpn_drop_short": 3, "gpn_drop_auth": 1}
    assert right.open([sealed]), "what did not open left no mark in the window"


def test_congestion_on_the_way_reaches_the_inner_packet() -> None:
    left, right = couple()
    able, unable = (summed(ipv4("10.1.0.5", "10.2.0.9", b"any", tos=tos)) for tos in (0xBA, 0xB8))
    assert right.open(left.seal([able, unable]), tos=3) == [
        summed(ipv4("10.1.0.5", "10.2.0.9", b"any", tos=0xBB))
    ]
    assert right.counters.nonzero() == {"gpn_drop_ecn_in": 1}
    assert right.open(left.seal([able, unable]), tos=0xFE) == [able, unable]
