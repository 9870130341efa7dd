"""`protego doctor`: what this machine can run of the cluster, and what is set wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from protego_cli.cli.options import AsJson, ClusterFile, complete_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protego_cli.roles.doctor import Finding

COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}


def doctor(
    node: Annotated[
        str | None,
        typer.Option(
            metavar="NODE",
            help="Look for this node alone, also one whose address is not here yet.",
            show_default=False,
            autocompletion=complete_node,
        ),
    ] = None,
    cluster: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether this machine is fit for its nodes, and how to mend what is not.

    Its nodes are those of the file whose address it has. Run it as the user that the nodes run as: it tells
    what that user may do. It changes nothing. Exit code 1: something is wrong.
    """
    import msgspec

    from protego_cli.cli.clusters import load_with_plugins, named_node
    from protego_cli.cli.render import print_json
    from protego_cli.errors import Exit, NotFound
    from protego_cli.roles.doctor import examine
    from protego_cli.roles.machine import addresses, local_nodes, survey

    loaded, plugins = load_with_plugins(cluster)
    here = addresses()
    if node is None:
        nodes = local_nodes(loaded, here)
        if not nodes:
            raise NotFound(
                f"no node of {loaded.file} has an address of this machine; name one with --node, to be told "
                "how to give it one"
            )
    else:
        nodes = [named_node(loaded, node)]
    findings = examine(loaded, nodes, survey(loaded, nodes, plugins.steering_backends(), here))
    if as_json:
        print_json([msgspec.to_builtins(finding) for finding in findings])
    else:
        _print(findings)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(Exit.FAILED)


def _print(findings: Sequence[Finding]) -> None:
    """A table, and below it the commands that mend what is in it."""
    from rich.table import Table
    from rich.text import Text

    from protego_cli.cli.render import show

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("node", "check", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("")
    for each in findings:
        table.add_row(each.node, each.check, Text(each.state, style=COLOURS[each.state]), each.says)
    mends = dict.fromkeys(each.mend for each in findings if each.mend and each.state != "ok")
    show(table, *([Text("\nTo mend it:", style="bold")] if mends else []), *(f"    {mend}" for mend in mends))
