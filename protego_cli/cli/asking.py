"""Asking the control node, once or again and again."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import trio
from rich.console import Console
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from protego_cli.cli.render import print_status, status_view
from protego_cli.config.model import Cluster
from protego_cli.control.channel.client import ask, expect
from protego_cli.control.channel.message import Reply, Request
from protego_cli.control.channel.operator_messages import GetStatus, Status

R = TypeVar("R", bound=Reply)

WATCH_INTERVAL = 1.0  # seconds: as often as nodes report


def ask_once(cluster: Cluster, request: Request, expected: type[R]) -> R:
    """Ask with the operator's certificate. Raises what the control node answered, or Unreachable."""
    return trio.run(_ask, cluster, request, expected)


async def _ask(cluster: Cluster, request: Request, expected: type[R]) -> R:
    return await expect(partial(ask, cluster), request, expected)


async def ask_status(cluster: Cluster) -> Status:
    return await _ask(cluster, GetStatus(), Status)


def ask_patiently(cluster: Cluster, request: Request, expected: type[R], doing: str) -> R:
    """The same for what may take a while: on a terminal, `doing` and the time are shown meanwhile."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return ask_once(cluster, request, expected)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with progress:
        progress.add_task(doing)
        return ask_once(cluster, request, expected)


def watch_status(cluster: Cluster, *, as_json: bool) -> None:
    """Show the status every second until Ctrl-C."""
    try:
        trio.run(_watch, cluster, as_json)
    except* KeyboardInterrupt:  # alone, or in the group of a nursery
        pass


async def _watch(cluster: Cluster, as_json: bool) -> None:
    console = Console()
    if as_json or not console.is_terminal:
        while True:
            print_status(await ask_status(cluster), as_json=as_json)
            await trio.sleep(WATCH_INTERVAL)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(status_view(await ask_status(cluster), live.console), refresh=True)
            await trio.sleep(WATCH_INTERVAL)
