"""What an operator asks of the running cluster: its status, and migrations."""

from __future__ import annotations

from typing import Annotated

import typer

from protego_cli.cli.options import AsJson, ClusterFile, complete_gpn, complete_tunnel


def status(
    cluster: ClusterFile = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it every second until Ctrl-C.")] = False,
) -> None:
    """Show the nodes and tunnels of the running cluster."""
    from protego_cli.cli.asking import ask_once, watch_status
    from protego_cli.cli.render import print_status
    from protego_cli.config.load import find, load
    from protego_cli.control.messages import GetStatus, Status

    loaded = load(find(cluster))
    if watch:
        watch_status(loaded, as_json=as_json)
    else:
        print_status(ask_once(loaded, GetStatus(), Status), as_json=as_json)


def migrate(
    tunnel: Annotated[
        str,
        typer.Argument(
            metavar="TUNNEL", help="The tunnel's id, TENANT/NAME.", autocompletion=complete_tunnel
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="NODE", help="The GPN to move it to.", autocompletion=complete_gpn)
    ],
    cluster: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Move a tunnel to another GPN while its traffic flows."""
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.render import print_migrated
    from protego_cli.config.load import find, load
    from protego_cli.control.messages import Migrate, Migrated

    loaded = load(find(cluster))
    print_migrated(ask_once(loaded, Migrate(tunnel=tunnel, to=to), Migrated), as_json=as_json)
