"""A real strongSwan with two CHILD_SAs in one IKE_SA, whose customer side is one prefix: both carry traffic
while the tunnel moves, each is rekeyed, and one goes on when the other is deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import wait_until
from tests.support.site import CUSTOMER_INNER, TENANT_INNER, LanProgram, Site, site, swanctl_conf

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

SECOND_INNER = "10.1.0.130"
SECOND = """\
children {
      second {
        local_ts = 10.2.0.0/24
        remote_ts = 10.1.0.128/25
        esp_proposals = aes256gcm16-x25519
      }
"""
PPS, WINDOW = "400", "64"
ATTEMPTS = 3


def traffic(place: Site, addresses: tuple[str, ...], action: Callable[[], None]) -> dict[str, dict[str, Any]]:
    """Numbered UDP both ways through the CHILD_SA of each address while `action` runs."""
    reflectors = {each: LanProgram(place.tenant, "reflect", each, "7001") for each in addresses}
    pumps = {
        each: LanProgram(place.customer, "pump", CUSTOMER_INNER, each, "7001", PPS, WINDOW)
        for each in addresses
    }
    action()
    results = {each: pump.finish() for each, pump in pumps.items()}
    for reflector in reflectors.values():
        reflector.finish()
    return results


def without_loss(place: Site, addresses: tuple[str, ...], action: Callable[[], None]) -> None:
    """Void, at most twice, only when the kernel outside of Protego dropped as many."""
    for attempt in range(ATTEMPTS):
        before = place.outside_drops()
        seen = traffic(place, addresses, action)
        after = place.outside_drops()
        print(seen)
        lost = sum(result["lost"] for result in seen.values())
        if 0 < lost <= sum(after[name] - before[name] for name in after) and attempt + 1 < ATTEMPTS:
            continue
        for result in seen.values():
            assert result["received"] > 0, seen
            assert result["lost"] == result["corrupted"] == result["duplicated"] == 0, seen
        return


def children(place: Site) -> list[dict[str, Any]]:
    shown = json.loads(place.protego("tunnel", "show", "acme/hq", "--json"))
    return [sa for sa in shown["child_sas"] if sa["state"] == "sealing"]


def agreed(place: Site, count: int) -> bool:
    """Whether both ends have the same CHILD_SAs, and no others."""
    if not place.swan.at_rest() or len(place.swan.installed_spis()) != count:
        return False
    return {sa["spi_out"] for sa in children(place)} == set(place.swan.installed_spis())


def test_two_child_sas_move_live_and_end_apart(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.tenant.ip("addr", "add", f"{SECOND_INNER}/32", "dev", "vx0")
        conf = swanctl_conf(local_ts="10.2.0.0/24", remote_ts="10.1.0.0/25")
        place.swan.load(conf.replace("children {\n", SECOND, 1))
        place.swan.initiate()
        place.swan.initiate("second")
        wait_until(lambda: agreed(place, 2), "both CHILD_SAs", every=0.2)
        assert {tuple(sa["local_ts"]) for sa in children(place)} == {("10.1.0.0/25",), ("10.1.0.128/25",)}
        here = place.tunnel()["gpn"]
        both = TENANT_INNER, SECOND_INNER

        def act() -> None:
            for target in sorted(place.gpns, key=lambda name: name == here):  # there and back
                place.migrate(target)
                assert {sa["gpn"] for sa in children(place)} == {target}
            for name in ("lan", "second"):
                wait_until(lambda: agreed(place, 2), "rest", every=0.1)
                place.swan.rekey_child(name)
            wait_until(lambda: agreed(place, 2), "rest", every=0.1)
            place.protego("tunnel", "rekey", "acme/hq")
            wait_until(lambda: agreed(place, 2), "rest", every=0.1)

        without_loss(place, both, act)

        def end() -> None:
            place.swan.swanctl("--terminate", "--child", "second")
            wait_until(lambda: agreed(place, 1), "the other one alone", every=0.1)
            place.migrate(next(name for name in place.gpns if name != here))

        without_loss(place, (TENANT_INNER,), end)
        assert place.tunnel()["state"] == "up"
