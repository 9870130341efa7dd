"""`protego up`: run one node of the cluster in this process until SIGTERM or SIGINT.

1. Read the cluster file and load the plugins it names.
2. Settle which node this is.
3. Set up logging: lines to read on a terminal, JSON elsewhere.
4. Run the role; a signal ends it cleanly, with exit code 0.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from protego_cli.cli.options import ClusterFile, complete_node

if TYPE_CHECKING:
    from protego_cli.config.model import Cluster, Node


class RoleName(StrEnum):
    GMN = "gmn"
    GIN = "gin"
    GEN = "gen"
    GPN = "gpn"


class LogFormat(StrEnum):
    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def up(
    role: Annotated[RoleName | None, typer.Option(help="What this node does.", show_default=False)] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NODE",
            help="Which node this is; may be left out when the role has one.",
            show_default=False,
            autocompletion=complete_node,
        ),
    ] = None,
    cluster: ClusterFile = None,
    instances: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="With --role gpn: run the GPNs whose address this machine has, each a process on a core of "
            "its own (auto: as many as there are cores), and start again any that ends.",
            show_default=False,
        ),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN|@FILE",
            envvar="PROTEGO_JOIN",
            help="Which node of a pool this is, and what it gets its certificate for: the token of "
            "`protego pki token`, or a file that holds it.",
            show_default=False,
            show_envvar=True,
        ),
    ] = None,
    lifeline: Annotated[bool, typer.Option("--lifeline", hidden=True, help="End when stdin closes.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="How much to log, to stderr.")] = LogLevel.INFO,
    log_format: Annotated[
        LogFormat, typer.Option(help="Lines to read, or JSON objects; auto: text on a terminal.")
    ] = LogFormat.AUTO,
) -> None:
    """Run one node of the cluster, or this machine's GPNs, until SIGTERM or SIGINT."""
    with _ended_by_signals():
        from protego_cli.cli.clusters import load_with_plugins
        from protego_cli.cli.logs import configure_logging
        from protego_cli.cli.pools import read_token
        from protego_cli.cli.serve import join_cluster, serve, serve_instances

        loaded, plugins = load_with_plugins(cluster)
        if instances is not None:
            configure_logging(log_level.upper(), log_format.value, "gpn", "supervisor")
            arguments = ["-c", os.fspath(loaded.file), "--log-level", log_level.value]
            arguments += ["--log-format", log_format.value]
            group, count = _group(loaded, role, name), _count(instances)
            serve_instances(loaded, group, count, arguments, lifeline=lifeline)
            return
        token = read_token(join) if join is not None else None
        os.environ.pop("PROTEGO_JOIN", None)
        node = choose(loaded, role, name if token is None else name or token.node)
        configure_logging(log_level.upper(), log_format.value, node.role, node.name)
        if token is not None:
            join_cluster(loaded, node, token)
        serve(loaded, node, plugins, lifeline=lifeline)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Until trio takes the signals, and after it gives them back, there is nothing to end but the process."""
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, lambda *_: os._exit(0)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _group(cluster: Cluster, role: str | None, name: str | None) -> str | None:
    """Which entry of the file is meant, None for all GPNs. Raises UsageError."""
    from protego_cli.errors import UsageError

    named = {node.role for node in cluster.nodes if name in (node.name, node.group)}
    if (role or "gpn") != "gpn" or not named <= {"gpn"} or (role is None and name is None):
        raise UsageError("only GPNs have instances: --role gpn --instances auto")
    return name


def _count(instances: str) -> int | None:
    from protego_cli.errors import UsageError

    if instances == "auto":
        return None
    if not instances.isdecimal() or not int(instances):
        raise UsageError(f"--instances {instances}: expected auto or a number from 1 on")
    return int(instances)


def choose(cluster: Cluster, role: str | None, name: str | None) -> Node:
    """The node that role and name mean. Raises NotFound, or UsageError where they leave it open."""
    from protego_cli.cli.clusters import named_node
    from protego_cli.errors import NotFound, UsageError

    if name is not None:
        if members := [node.name for node in cluster.nodes if node.group == name]:
            raise UsageError(
                f"{name} has {len(members)} instances: --instances auto runs those of this machine, "
                f"and --name one of them: {members[0]} to {members[-1]}"
            )
        node = named_node(cluster, name)
        if role is not None and node.role != role:
            raise UsageError(f"{name} is a {node.role.upper()} in {cluster.file}, not a {role.upper()}")
        return node
    if role is None:
        raise UsageError("say which node this is: --role, or --name")
    nodes = [node for node in cluster.nodes if node.role == role]
    if not nodes:
        raise NotFound(f"{cluster.file} has no node whose role is {role}")
    if len(nodes) > 1:
        known = ", ".join(node.name for node in nodes)
        raise UsageError(f"the role {role} has {len(nodes)} nodes, so say which with --name: {known}")
    return nodes[0]
