"""`protego events`: what happened in the gateway, and what is happening."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated

import typer

from protego_cli.cli.options import AsJson, ClusterFile, complete_any_node, complete_tunnel

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    number: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--number",
            metavar="N",
            min=0,
            help="No more than the last N [default: 20, with --since all].",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only since then: 10m, 2h, 1d ago, or a time as 2025-06-30T14:05.",
            show_default=False,
        ),
    ] = None,
    tunnel: Annotated[
        str | None,
        typer.Option(
            metavar="TUNNEL",
            help="Only of this tunnel.",
            autocompletion=complete_tunnel,
            show_default=False,
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(
            metavar="NODE",
            help="Only about this node.",
            autocompletion=complete_any_node,
            show_default=False,
        ),
    ] = None,
    cluster: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened: tunnels and nodes up and down, rekeys, migrations, failures.

    The control node keeps the last 10,000 events of its present life. With --json every event is a line.
    """
    from protego_cli.cli.follow import Printer, follow_events, show_events
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.operator_messages import GetEvents

    loaded = load(find(cluster))
    last = 20 if number is None and since is None else number
    request = GetEvents(
        last=last,
        since=None if since is None else instant(since, datetime.now().astimezone()).timestamp(),
        tunnel=tunnel,
        node=node,
    )
    printer = Printer(as_json=as_json)
    if follow:
        follow_events(loaded, request, printer)
    else:
        show_events(loaded, request, printer)


def instant(text: str, now: datetime) -> datetime:
    """What --since means. Raises UsageError."""
    from protego_cli.errors import UsageError

    ago = re.fullmatch(r"(\d{1,9})([smhd])", text)
    try:
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {text!r} is no time: write 30s, 10m, 2h, 1d, or 2025-06-30T14:05"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=now.tzinfo)
