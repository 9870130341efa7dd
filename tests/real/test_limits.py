"""A rate limit under a real strongSwan's traffic: it lands by reload, holds, and is lifted again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.netns import wait_until
from tests.support.site import CUSTOMER_INNER, TENANT_INNER, LanProgram, Site, site, swanctl_conf

pytestmark = pytest.mark.root

RATE, BURST = 1_000_000, 100_000  # bits per second, bytes
LIMIT = f"limit = {{ in = {RATE}, burst = {BURST} }}\n"
PPS, WINDOW = 2000, 1 << 20  # of about 600 bytes, so ten times the limit; whatever is lost


def reload(place: Site, old: str, new: str) -> None:
    text = place.cluster.read_text()
    assert old in text
    place.cluster.write_text(text.replace(old, new, 1))
    assert json.loads(place.protego("reload", "--json"))["applied"]


def pump(place: Site, until: Callable[[], bool]) -> dict[str, int]:
    """Numbered packets from the customer to the tenant and back until something holds."""
    reflector = LanProgram(place.tenant, "reflect", TENANT_INNER, "7001")
    program = LanProgram(place.customer, "pump", CUSTOMER_INNER, TENANT_INNER, "7001", str(PPS), str(WINDOW))
    try:
        wait_until(until, "the traffic seen in status", every=0.2)
    finally:
        result = program.finish()
        reflected = reflector.finish()
    return {"sent": result["sent"], "back": result["received"], "there": reflected["received"]}


def test_a_limit_comes_holds_and_goes_by_reload(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        reload(place, 'start = "wait"\n', f'start = "wait"\n{LIMIT}')
        before, began = place.tunnel(), time.monotonic()
        seen = pump(place, lambda: place.tunnel()["limited_in"] > before["limited_in"] + 1000)
        wait_until(lambda: place.tunnel()["packets_in"] == seen["there"], "the last report", every=0.2)
        after, took = place.tunnel(), time.monotonic() - began
        assert (after["spi_in"], after["spi_out"]) == (before["spi_in"], before["spi_out"])
        assert 0 < after["bytes_in"] - before["bytes_in"] <= RATE / 8 * took + BURST
        assert seen["back"] == seen["there"] < seen["sent"]
        assert after["limited_out"] == 0
        counters = place.counters(after["gpn"])
        assert counters["gpn_drop_limit_in"] == after["limited_in"]
        reload(place, LIMIT, "")
        limited, passed = place.tunnel()["limited_in"], place.tunnel()["packets_in"]
        seen = pump(place, lambda: place.tunnel()["packets_in"] > passed + 2000)
        assert seen["sent"] == seen["there"] == seen["back"]
        assert place.tunnel()["limited_in"] == limited
