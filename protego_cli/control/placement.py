"""Which GPN a tunnel goes to: the interface of packing policies, and the question as it is put to one.

A policy is pure: it sees the connected GPNs with their load and names one of them, or none. It is asked once
per tunnel that has no place yet, never per packet. One that raises, or names a GPN that it was not offered,
fails closed: the tunnel is not placed, and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)


class GpnLoad(NamedTuple):
    """A connected GPN: how many tunnels it has, and the CPU seconds per second that its process used."""

    name: str
    tunnels: int
    cpu: float


class PackingPolicy(Protocol):
    @property
    def name(self) -> str:
        """What `cluster.packing` selects it by."""
        ...

    def place(self, tunnel: str, nodes: Sequence[GpnLoad]) -> str | None:
        """The GPN for a tunnel, one of `nodes`; None when it should be placed nowhere."""
        ...


def choose(policy: PackingPolicy, tunnel: str, nodes: Sequence[GpnLoad]) -> str | None:
    """The policy's choice among connected GPNs; None when there is none, or the policy fails."""
    if not nodes:
        return None
    try:
        chosen = policy.place(tunnel, nodes)
    except Exception:  # a plugin's code: whatever it raises must not stop the gateway
        log.exception("packing policy failed policy=%s tunnel=%s", policy.name, tunnel)
        return None
    if chosen is not None and all(chosen != node.name for node in nodes):
        log.error(
            "packing policy chose no connected GPN policy=%s tunnel=%s node=%s", policy.name, tunnel, chosen
        )
        return None
    return chosen
