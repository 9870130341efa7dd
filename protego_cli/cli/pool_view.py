"""Pools and tokens for people, and as JSON."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from protego_cli.cli.counting import counted
from protego_cli.cli.render import print_json, print_message, show, wide_console
from protego_cli.control.channel.pool_messages import ElasticPlan, JoinToken, PlannedMove, Pools

_STYLES = {"up": "green", "launching": "yellow", "leaving": "yellow", "retiring": "dim"}


def print_pools(pools: Pools, *, as_json: bool) -> None:
    if as_json:
        print_message(pools)
        return
    console = wide_console()
    if not pools.pools:
        console.print("the cluster file has no pools")
    for pool in pools.pools:
        console.print(
            f"{pool.name}: {counted(len(pool.nodes), 'node')}, {pool.minimum} to {pool.maximum}, "
            f"by {pool.provisioner}",
            markup=False,
        )
        if pool.nodes:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for name in ("node", "state", "for", "tunnels", "load", "note"):
                table.add_column(name, justify="right" if name in ("for", "tunnels", "load") else "left")
            for node in pool.nodes:
                away = node.state == "up" and not node.connected
                state = Text("up, not connected" if away else node.state)
                state.stylize("red" if away else _STYLES[node.state])
                table.add_row(
                    node.name,
                    state,
                    f"{max(0.0, time.time() - node.since):.0f} s",
                    str(node.tunnels),
                    f"{node.load:.2f}",
                    Text(node.note),
                )
            show(table)


def print_elastic_plan(plan: ElasticPlan, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "mode": plan.mode,
                "policy": plan.policy,
                "obstacle": plan.obstacle,
                "moves": [_move(move) for move in plan.moves],
                "launch": list(plan.launch),
                "retire": list(plan.retire),
                "waiting": [_move(move) for move in plan.waiting],
            }
        )
        return
    console = wide_console()
    console.print(f"policy {plan.policy}, elastic.mode is {plan.mode}")
    if plan.obstacle:
        console.print(f"nothing would be done: {plan.obstacle}")
    for what, names in (("launch", plan.launch), ("retire", plan.retire)):
        if names:
            console.print(f"{what}: {', '.join(names)}")
    if not plan.moves and not plan.waiting:
        console.print("nothing would move")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("tunnel", "from", "to", "load", ""):
        table.add_column(name, justify="right" if name == "load" else "left")
    for moves, note in ((plan.waiting, "waits for its GPN"), (plan.moves, "")):
        for move in moves:
            table.add_row(move.tunnel, move.source, move.to, f"{move.load:.3f}", note)
    show(table)


def _move(move: PlannedMove) -> dict[str, object]:
    return {"tunnel": move.tunnel, "from": move.source, "to": move.to, "load": move.load}


def print_token(token: JoinToken, *, as_json: bool) -> None:
    """The token is a secret, and the command's purpose: stdout gets it, and nothing else."""
    expires = datetime.fromtimestamp(token.expires, UTC)
    if as_json:
        print_json({"node": token.node, "token": token.token, "expires": token.expires})
    else:
        sys.stderr.write(f"for {token.node}, once, until {expires:%Y-%m-%d %H:%M:%S} UTC\n")
        wide_console().print(token.token, markup=False, soft_wrap=True)
