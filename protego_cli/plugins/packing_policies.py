"""Built-in packing policies.

`spread` gives each tunnel to the GPN that has the fewest, the lowest name among equals.
"""

from __future__ import annotations

from collections.abc import Sequence

from protego_cli.control.placement import GpnLoad, PackingPolicy
from protego_cli.hookspecs import hookimpl


class Spread:
    name = "spread"

    def place(self, tunnel: str, nodes: Sequence[GpnLoad]) -> str | None:
        return min(nodes, key=lambda node: (node.tunnels, node.name)).name if nodes else None


@hookimpl
def protego_packing_policies() -> Sequence[PackingPolicy]:
    return [Spread()]
