"""Nodes that come and go: the pools, and the tokens with which their nodes join."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from protego_cli.cli.options import AsJson, ClusterFile, complete_pool

if TYPE_CHECKING:
    from protego_cli.control.pools.joining import Token


def pool(cluster: ClusterFile = None, as_json: AsJson = False) -> None:
    """Show the pools: which nodes they have in use, and what stands in the way."""
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.pool_view import print_pools
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.pool_messages import GetPools, Pools

    print_pools(ask_once(load(find(cluster)), GetPools(), Pools), as_json=as_json)


def plan(cluster: ClusterFile = None, as_json: AsJson = False) -> None:
    """Show what the elastic controller would do now, and do nothing.

    The cluster file's packing policy plans a consolidation by the present loads: which tunnels would move,
    which GPNs be launched for them, and which be empty.
    """
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.pool_view import print_elastic_plan
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.pool_messages import ElasticPlan, GetPlan

    print_elastic_plan(ask_once(load(find(cluster)), GetPlan(), ElasticPlan), as_json=as_json)


def pki_token(
    pool_name: Annotated[
        str,
        typer.Option(
            "--pool", metavar="POOL", help="The pool.", show_default=False, autocompletion=complete_pool
        ),
    ],
    node: Annotated[
        str | None,
        typer.Option(metavar="NODE", help="Which of its nodes [default: the first without a certificate]."),
    ] = None,
    valid: Annotated[
        str, typer.Option(metavar="TIME", help="For how long it is good, such as 15m; at most 1d.")
    ] = "15m",
    cluster: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a one-time token with which a node of a pool joins the cluster.

    Give it to the node alone: `protego up --role gpn --join TOKEN`. The node makes its own key, and gets its
    certificate for the token. For nodes that a provisioner launches, the control node makes tokens by itself.
    """
    from protego_cli.cli.asking import ask_once
    from protego_cli.cli.pool_view import print_token
    from protego_cli.cli.times import seconds
    from protego_cli.config.load import find, load
    from protego_cli.control.channel.pool_messages import JoinToken, MakeToken

    lasts = seconds(f"{valid}s" if valid.isdecimal() else valid, "--valid", 1, 86400)
    reply = ask_once(load(find(cluster)), MakeToken(pool_name, node, lasts), JoinToken)
    print_token(reply, as_json=as_json)


def read_token(text: str) -> Token:
    """A token as it was given: itself, or @FILE. Raises UsageError or EnvironmentFault."""
    from pathlib import Path

    from protego_cli.control.pools.joining import parse_token_untrusted
    from protego_cli.errors import EnvironmentFault, Malformed, UsageError

    source = "--join"
    if text.startswith("@"):
        source = text[1:]
        try:
            text = Path(source).read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise EnvironmentFault(f"{source} cannot be read: {error.strerror}") from None
    try:
        return parse_token_untrusted(text)
    except Malformed as error:
        raise UsageError(f"{source}: this is no join token: {error}; `protego pki token` makes one") from None
