"""Reading the cluster file for a command that needs the plugins it names."""

from __future__ import annotations

from pathlib import Path

from protego_cli.config.load import find, load_plugins_section
from protego_cli.config.model import Cluster, Node
from protego_cli.errors import NotFound
from protego_cli.plugins.manager import Plugins, load_plugins
from protego_cli.roles.clusters import read_cluster


def named_node(cluster: Cluster, name: str) -> Node:
    """The node of the cluster file with this name. Raises NotFound."""
    node = cluster.node(name)
    if node is None:
        known = ", ".join(node.name for node in cluster.nodes)
        raise NotFound(f"{cluster.file} has no node {name!r}; it has {known}")
    return node


def load_with_plugins(file: Path | None, *, secrets: bool = False) -> tuple[Cluster, Plugins]:
    """The cluster, judged with all plugins at hand; with `secrets`, their files are judged too."""
    path = find(file)
    plugins = load_plugins(load_plugins_section(path))
    return read_cluster(path, plugins, secrets=secrets), plugins
