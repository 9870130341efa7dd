"""What a decision costs the GMN of a large cluster, from its own state to the checked moves: the loads of all
tunnels added up, the view made of them, the policy asked, its answer checked.

The tunnels and the nodes' reports are the GMN's own objects; no node and no peer is there.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import trio

from protego_cli.config.model import PskAuth, Role, TunnelConfig
from protego_cli.control.channel.fabric import NodeState
from protego_cli.control.channel.message import Key
from protego_cli.control.packing.load import Passed
from protego_cli.control.packing.placement import Packer
from protego_cli.control.packing.seats import Seats
from protego_cli.control.sas.ranges import SealingRange
from protego_cli.control.sas.tunnel import Placed, Totals, Tunnel
from protego_cli.ike.events import ChildSa, Path
from protego_cli.sim.generator import PRESETS, generate

FILL: Final = 0.8  # of a GPN's capacity, as `elastic.low` has it
MOVES: Final = 6.0  # per hour and tunnel
BEST_OF: Final = 3
SUITE: Final = "aes256gcm16"


class _Nodes:
    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._nodes = [NodeState(name, "gpn", "", True, "boot", None, ()) for name in names]

    def nodes(self) -> list[NodeState]:
        return self._nodes

    def connected(self, role: Role) -> list[str]:
        return self._names if role == "gpn" else []

    def refusing(self, keys: Sequence[Key]) -> set[str]:
        return set()


def live_decision(packer: Packer, tunnels: int = 10_000, gpns: int = 500) -> float:
    """CPU seconds, the best of three."""
    return trio.run(_measure, packer, tunnels, gpns)


async def _measure(packer: Packer, tunnels: int, gpns: int) -> float:
    names = [f"gpn-{number}" for number in range(1, gpns + 1)]
    held = {tunnel.id: tunnel for tunnel in (_tunnel(at, names[at % gpns]) for at in range(tunnels))}
    seats = Seats(_Nodes(names), packer, held, dict.fromkeys(names, tunnels // gpns))
    trace = generate(replace(PRESETS["paper"], tunnels=tunnels, mean=40.0, duration=60.0), 0)
    amounts = (trace.demand[-1] * 1e6 / 8).tolist()  # bytes a second
    for at, name in enumerate(names):
        passed = [
            Passed(f"t{each}/hq", SUITE, Totals(int(amounts[each] / 1000), int(amounts[each])))
            for each in range(at, tunnels, gpns)
        ]
        seats.loads.report(name, 0.7, passed, trio.current_time())
    best = math.inf
    for _ in range(BEST_OF):
        seats.stale()
        began = time.process_time()
        packer.plan(seats.view(fill=FILL, moves_per_hour=MOVES))
        best = min(best, time.process_time() - began)
    return best


def _tunnel(number: int, gpn: str) -> Tunnel:
    """One that is up on this GPN."""
    config = TunnelConfig("hq", f"t{number}", None, "", "", PskAuth(pathlib.Path()), (), ())
    tunnel = Tunnel(config, number)
    child = ChildSa(config.id, number, number, SUITE, b"", b"", (), (), Path("", 0, "", 0), SUITE)
    placed = Placed(child, 1, gpn, SealingRange(1, 2), ("", 0), standing=True)
    tunnel.add(placed, tunnel.strands[0])
    tunnel.strands[0].sealing = placed
    return tunnel
