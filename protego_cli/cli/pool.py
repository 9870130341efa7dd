"""What an operator does with the pool of GPNs: drain, undrain, rebalance."""

from __future__ import annotations

from typing import Annotated

import typer

from protego_cli.cli.options import AsJson, ClusterFile, complete_gpn, complete_policy

Gpn = Annotated[
    str, typer.Argument(metavar="NODE", help="A GPN of the cluster.", autocompletion=complete_gpn)
]


def drain(node: Gpn, cluster: ClusterFile = None, as_json: AsJson = False) -> None:
    """Empty a GPN while traffic flows: it takes no tunnels, and its own move to others.

    Ends with exit code 1 when tunnels are left whose peers do not let themselves be rekeyed. Ctrl-C begins no
    more moves; the GPN stays draining, and the same command goes on. `undrain` takes it back.
    """
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.jobs import follow
    from protego_cli.cli.render import print_drained
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.pool_messages import Drain, JobStatus

    loaded = load(find(cluster))
    request = Drain(node)
    job = ask_once(loaded, request, JobStatus).id
    status, interrupted = follow(loaded, job, quiet=as_json, again=request)
    print_drained(node, status, as_json=as_json)
    _leave(status.state, interrupted=interrupted, failed=bool(status.failed))


def undrain(node: Gpn, cluster: ClusterFile = None) -> None:
    """Let a GPN take tunnels again; a drain that is under way ends."""
    from protego_cli.cli.asking import ask_once
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.pool_messages import Undrain, Undrained

    reply = ask_once(load(find(cluster)), Undrain(node), Undrained)
    typer.echo(f"{node} takes tunnels again" if reply.was_draining else f"{node} is not draining")


def rebalance(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would move.")] = False,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="The packing policy to apply [default: that of the cluster file].",
            show_default=False,
            autocompletion=complete_policy,
        ),
    ] = None,
    cluster: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Apply a packing policy to all tunnels now, by measured load.

    Shows the moves, then makes them while traffic flows. Ctrl-C begins no more of them. Ends with exit code 1
    when some failed.
    """
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.jobs import follow
    from protego_cli.cli.render import print_plan, print_rebalanced
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.pool_messages import Plan, Rebalance

    loaded = load(find(cluster))
    plan = ask_once(loaded, Rebalance(policy, dry_run), Plan)
    if not as_json:
        print_plan(plan, dry_run=dry_run)
    status, interrupted = follow(loaded, plan.job, quiet=as_json) if plan.job else (None, False)
    print_rebalanced(plan, status, dry_run=dry_run, as_json=as_json)
    if status is not None:
        _leave(status.state, interrupted=interrupted, failed=bool(status.failed))


def _leave(state: str, *, interrupted: bool, failed: bool) -> None:
    """The exit code of a job that has ended."""
    from protego_cli.errors import INTERRUPTED, Exit

    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if failed or state != "done":
        raise typer.Exit(Exit.FAILED)
