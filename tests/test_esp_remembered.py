"""What is remembered of flows: bounded, and forgotten by VNI."""

from __future__ import annotations

import pytest

from protego_cli.config.model import Rate
from protego_cli.esp.remembered import Remembered
from tests.support.esp_packets import ipv4
from tests.support.esp_site import frame
from tests.support.esp_world import ACME, BLUE, BLUE_VTEP, NOW, VTEP, world


def test_a_vni_is_forgotten_without_the_others() -> None:
    flows: Remembered[str, int] = Remembered(4)
    for vni, key in ((1, "a"), (2, "b"), (1, "c"), (1, "a")):
        flows.put(vni.to_bytes(3), key, vni)
    flows.forget(1)
    assert [flows.get(key) for key in "abc"] == [None, 2, None]
    assert "b" in flows
    flows.forget(1)
    flows.put((1).to_bytes(3), "a", 7)
    assert flows.get("a") == 7
    flows.clear()
    assert len(flows) == 0


def test_it_is_bounded_and_a_decision_may_be_replaced() -> None:
    flows: Remembered[int, int] = Remembered(4)
    for key in range(9):
        flows.put(b"vni", key, key)
        flows.put(b"vni", key, -key)
        assert flows.get(key) == -key
        assert len(flows) <= 4


@pytest.mark.parametrize("vni", [ACME, BLUE])
def test_a_gpn_decides_anew_only_where_something_has_changed(vni: int) -> None:
    w = world()
    packet = ipv4("10.1.0.5", "10.2.0.9", bytes(40))
    frames = {ACME: frame(packet), BLUE: frame(packet)[:4] + BLUE.to_bytes(3) + frame(packet)[7:]}
    for each, source in ((ACME, VTEP), (BLUE, BLUE_VTEP)):
        assert w.receive_vxlan(frames[each], source=source)
    flows = w.gateway._outbound._flows
    assert len(flows) == 2
    tunnel = {ACME: "acme/hq", BLUE: "blue/hq"}[vni]
    w.gateway.put_limit(tunnel, None, Rate(10**9, 10**9), NOW)
    assert len(flows) == 2, "limits are asked for each packet"
    w.gateway.drop_rule(tunnel)
    assert len(flows) == 1
    (key,) = flows._decided
    assert int.from_bytes(key[2][0][4:7]) == ACME + BLUE - vni
