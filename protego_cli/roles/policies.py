"""From tunnels of the cluster file to the policies of the IKE engine."""

from __future__ import annotations

from protego_cli.config.model import TunnelConfig
from protego_cli.ike.events import Policy
from protego_cli.wire.selectors import TrafficSelector


def policy_of(tunnel: TunnelConfig, psk: bytes) -> Policy:
    """A tunnel of the cluster file as the IKE engine needs it."""
    return Policy(
        tunnel=tunnel.id,
        remote=tunnel.peer,
        local_id=tunnel.local_id,
        remote_id=tunnel.remote_id,
        psk=psk,
        local_ts=tuple(map(TrafficSelector.from_prefix, tunnel.local_ts)),
        remote_ts=tuple(map(TrafficSelector.from_prefix, tunnel.remote_ts)),
        ike=tunnel.ike,
        esp=tunnel.esp,
        encapsulation=tunnel.encapsulation,
        ike_lifetime=tunnel.lifetimes.ike,
        jitter=tunnel.lifetimes.jitter,
    )
