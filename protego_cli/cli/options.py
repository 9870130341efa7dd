"""Options that several commands share, and the completion of their values.

Names of tunnels and nodes are asked of the running cluster, which answers fast or not at all; then the
cluster file is read instead. Completion never fails: no names are better than a message in the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from protego_cli.config.model import Cluster
    from protego_cli.control.channel.operator_messages import Names

COMPLETION_TIMEOUT = 0.25  # seconds to wait for the live cluster; with the start, half a second

ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        "-c",
        metavar="FILE",
        help="The cluster file [default: $PROTEGO_CLUSTER, ./cluster.toml, /etc/protego/cluster.toml].",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def complete_tunnel(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of tunnels, TENANT/TUNNEL."""
    cluster = _cluster(ctx)
    return _starting(incomplete, _names(cluster).tunnels) if cluster else []


def complete_tenant(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of tenants: the file's."""
    cluster = _cluster(ctx)
    return _starting(incomplete, (tenant.name for tenant in cluster.tenants)) if cluster else []


def complete_gpn(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the nodes that a tunnel can be on."""
    cluster = _cluster(ctx)
    if cluster is None:
        return []
    others = {node.name for node in cluster.nodes if node.role != "gpn"}
    return _starting(incomplete, (name for name in _names(cluster).nodes if name not in others))


def complete_any_node(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of nodes of the running cluster."""
    cluster = _cluster(ctx)
    return _starting(incomplete, _names(cluster).nodes) if cluster else []


def complete_node(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of nodes that can be started: the file's."""
    cluster = _cluster(ctx)
    return _starting(incomplete, (node.name for node in cluster.nodes)) if cluster else []


def complete_pool(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of pools: the file's."""
    cluster = _cluster(ctx)
    return _starting(incomplete, (pool.name for pool in cluster.pools)) if cluster else []


def complete_policy(ctx: typer.Context, incomplete: str) -> list[str]:
    """Packing policies: those that are built in, and those of the cluster file's plugins."""
    from protego_cli.config.load import find, load_plugins_section
    from protego_cli.errors import ProtegoError
    from protego_cli.plugins.manager import load_plugins

    try:
        plugins = load_plugins(load_plugins_section(find(ctx.params.get("cluster"))))
    except ProtegoError:
        return []
    return _starting(incomplete, sorted(plugins.packing_policies()))


def complete_policies(ctx: typer.Context, incomplete: str) -> list[str]:
    """Several of them, separated by commas."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in complete_policy(ctx, last)]


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _cluster(ctx: typer.Context) -> Cluster | None:
    from protego_cli.config.load import find, load
    from protego_cli.errors import ProtegoError

    try:
        return load(find(ctx.params.get("cluster")))
    except ProtegoError:
        return None


def _names(cluster: Cluster) -> Names:
    """As the running cluster has them, or else its file."""
    import trio

    from protego_cli.control.channel.client import ask
    from protego_cli.control.channel.operator_messages import ListNames, Names
    from protego_cli.errors import ProtegoError

    async def live() -> Names | None:
        with trio.move_on_after(COMPLETION_TIMEOUT):
            reply = await ask(cluster, ListNames())
            return reply if isinstance(reply, Names) else None
        return None

    try:
        names = trio.run(live)
    except (ProtegoError, OSError, ExceptionGroup):
        names = None
    return names or Names(
        tunnels=tuple(tunnel.id for tunnel in cluster.tunnels()),
        nodes=tuple(node.name for node in cluster.nodes),
    )
