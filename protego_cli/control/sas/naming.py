"""Tunnels and GPNs by the names that operators give; for a name that is none, what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from protego_cli.control.channel.fabric import NodeState
from protego_cli.control.sas.distribution import DesiredState
from protego_cli.control.sas.tunnel import Tunnel
from protego_cli.errors import NotFound, Refused


def find_tunnel(tunnels: Mapping[str, Tunnel], name: str) -> Tunnel:
    """The tunnel of that name. Raises NotFound."""
    tunnel = tunnels.get(name)
    if tunnel is None:
        raise NotFound(f"there is no tunnel {name!r}{_close(name, tunnels)}")
    return tunnel


def find_gpn(fabric: DesiredState, name: str) -> NodeState:
    """The GPN that an operator named. Raises NotFound or Refused."""
    nodes = {node.name: node for node in fabric.nodes()}
    node = nodes.get(name)
    if node is None:
        gpns = [other.name for other in nodes.values() if other.role == "gpn"]
        raise NotFound(f"there is no node {name!r}{_close(name, gpns)}")
    if node.role != "gpn":
        raise Refused(f"{name} is a {node.role.upper()}; tunnels live on GPNs")
    return node


def _close(name: str, known: Iterable[str]) -> str:
    """The names that may have been meant, as the end of a sentence."""
    listed = list(known)
    matches = [other for other in listed if other.endswith(f"/{name}")][:3]  # a tunnel without its tenant
    matches = matches or difflib.get_close_matches(name, listed, 3, 0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
