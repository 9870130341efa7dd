"""`protego explain`: why a tunnel is up, or is not."""

from __future__ import annotations

from typing import Annotated

import typer

from protego_cli.cli.options import AsJson, ClusterFile, complete_tunnel


def explain(
    tunnel: Annotated[
        str | None,
        typer.Argument(
            metavar="[TUNNEL]",
            help="The tunnel's id, TENANT/NAME.",
            show_default=False,
            autocompletion=complete_tunnel,
        ),
    ] = None,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Those who dialled and are no tunnel's peer.")
    ] = False,
    cluster: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Explain a tunnel's last negotiation, and which line of which side would mend it.

    Compares what both sides want: every transform, identity and traffic selector. Shows no secrets.
    """
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.explain_view import print_explanations
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.operator_messages import Explain, Explanations
    from protego_cli.errors import UsageError

    if (tunnel is None) is not unknown:
        raise UsageError("say which tunnel, or --unknown")
    loaded = load(find(cluster))
    found = ask_once(loaded, Explain(tunnel), Explanations)
    print_explanations(found, tunnel, as_json=as_json)
