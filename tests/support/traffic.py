"""Traffic through a real tunnel while something is done to it: numbered UDP both ways and a TCP transfer.

A bounded number of packets is in flight. A run is void, at most twice, only when the kernel's own counters
outside of Protego show that it dropped as many; any other loss fails at once.

How fast that went depends on the machine as much as on Protego, so the rates are printed, and held against
the figures of docs/benchmarks.md only with PROTEGO_ACCEPTANCE=1 (`make acceptance`), on a machine at rest.
"""

from __future__ import annotations

import os
from typing import Any

from tests.support.site import CUSTOMER_INNER, TENANT_INNER, LanProgram, Site

MIGRATIONS = 10
PPS = "5500"
WINDOW = "256"
LEAST_PPS = 5000  # each way, on a machine at rest
STILL = 0.2  # seconds a TCP transfer may stand still there
ATTEMPTS = 3


def traffic(place: Site, action: Any) -> dict[str, Any]:
    """Run `action` under numbered UDP both ways and a TCP transfer; returns what the ends counted."""
    before = place.outside_drops()
    reflector = LanProgram(place.tenant, "reflect", TENANT_INNER, "7001")
    sink = LanProgram(place.tenant, "sink", TENANT_INNER, "7002")
    source = LanProgram(place.customer, "source", CUSTOMER_INNER, TENANT_INNER, "7002", "1250000")
    pump = LanProgram(place.customer, "pump", CUSTOMER_INNER, TENANT_INNER, "7001", PPS, WINDOW)
    outcome = action()
    udp, tcp = pump.finish(), source.finish()
    sunk, reflected = sink.result(), reflector.finish()
    after = place.outside_drops()
    return {
        "action": outcome,
        "udp": udp,
        "reflected": reflected,
        "tcp": sunk | {"sent": tcp["bytes"]},
        "outside": {name: after[name] - before[name] for name in after if after[name] != before[name]},
    }


def without_loss(place: Site, action: Any) -> dict[str, Any]:
    """`traffic`, void and repeated at most twice when only the kernel outside of Protego dropped."""
    for attempt in range(ATTEMPTS):
        seen = traffic(place, action)
        udp, tcp = seen["udp"], seen["tcp"]
        print(seen)
        if 0 < udp["lost"] <= sum(seen["outside"].values()) and attempt + 1 < ATTEMPTS:
            continue
        assert udp["lost"] == udp["corrupted"] == udp["duplicated"] == 0, seen
        assert seen["reflected"]["received"] == udp["sent"], seen
        assert seen["reflected"]["duplicated"] == seen["reflected"]["corrupted"] == 0, seen
        assert tcp["intact"], seen
        assert tcp["bytes"] == tcp["sent"], seen
        if os.environ.get("PROTEGO_ACCEPTANCE"):
            assert udp["pps"] >= LEAST_PPS, seen
            assert tcp["longest_gap"] < STILL, seen
        return seen
    raise AssertionError("unreachable")


def migrate_many(place: Site) -> list[dict[str, Any]]:
    here = place.tunnel()["gpn"]
    moves = []
    for _ in range(MIGRATIONS):
        here = next(name for name in place.gpns if name != here)
        moves.append(place.migrate(here))
    return moves


def check_moves(moves: list[dict[str, Any]]) -> None:
    assert len(moves) == MIGRATIONS
    for move in moves:
        assert move["tunnel"] == "acme/hq"
        assert move["method"] == "rekey"
        assert move["from"] != move["to"]
        assert 0 < move["rekey_ms"] < move["total_ms"]
        assert 0 < move["distribute_ms"] < move["total_ms"]
