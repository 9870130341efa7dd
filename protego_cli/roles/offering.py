"""What a GIN or GEN reports of what has come for tunnels."""

from __future__ import annotations

from protego_cli.control.channel.node_messages import OfferedLoad
from protego_cli.net.steering import Egress, Ingress


def offered(steering: Ingress | Egress) -> tuple[OfferedLoad, ...]:
    """The counts that have changed, of inner packets."""
    return tuple(
        OfferedLoad(each.of, max(0, each.bytes - each.outer * each.packets)) for each in steering.offered()
    )
