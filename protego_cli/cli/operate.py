"""What an operator asks of the running cluster: its status, migrations, and to read its file again."""

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
    from protego_cli.control.channel.operator_messages import GetStatus, Status

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
    from protego_cli.control.channel.operator_messages import Migrate, Migrated

    loaded = load(find(cluster))
    print_migrated(ask_once(loaded, Migrate(tunnel=tunnel, to=to), Migrated), as_json=as_json)


def reload(
    cluster: ClusterFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only show what would change, and how it would land.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let the control node read its cluster file again.

    Shows each change and how it lands: now; by a rekey of its tunnel; by closing its IKE_SA, which is then
    made anew; or when a process is restarted. What the file does not change is not touched. With an error in
    the file, or a change that the running cluster cannot take, nothing changes at all.
    """
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.render import print_reloaded
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.operator_messages import Reload, Reloaded
    from protego_cli.errors import Exit

    loaded = load(find(cluster))
    reloaded = ask_once(loaded, Reload(dry_run=dry_run), Reloaded)
    print_reloaded(reloaded, as_json=as_json)
    if reloaded.problems:
        raise typer.Exit(Exit.USAGE)
    if any(change.outcome == "refused" for change in reloaded.changes):
        raise typer.Exit(Exit.FAILED)
