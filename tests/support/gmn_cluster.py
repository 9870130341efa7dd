"""The cluster that `gmn_world` runs: two GINs, two GENs, three GPNs, tunnels of one tenant each."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Literal

from protego_cli.config.model import (
    Cluster,
    IkeSettings,
    Lifetimes,
    Node,
    Ports,
    PskAuth,
    TenantConfig,
    TunnelConfig,
    VxlanAttach,
)
from protego_cli.ike.events import Policy
from protego_cli.roles import policies

VIP = "203.0.113.10"


def make_cluster(
    tunnels: int = 1,
    start: Literal["wait", "auto"] = "wait",
    gins: int = 2,
    lifetimes: Lifetimes | None = None,
    **settings: float,
) -> Cluster:
    names = [*(f"gin-{i + 1}" for i in range(gins)), "gen-1", "gen-2", "gpn-1", "gpn-2", "gpn-3"]
    nodes = [Node("gmn-1", "gmn", "10.0.0.1")]
    nodes += [Node(name, name[:3], f"10.0.1.{i}", Ports()) for i, name in enumerate(names)]  # type: ignore[arg-type]
    return Cluster(
        name="demo",
        file=FilePath("cluster.toml"),
        vips=(VIP,),
        pki=FilePath("pki"),
        state=FilePath("state"),
        nodes=tuple(nodes),
        tenants=tuple(make_tenant(i, start, lifetimes) for i in range(tunnels)),
        ike=IkeSettings(**settings),  # type: ignore[arg-type]
    )


def make_tenant(
    i: int, start: Literal["wait", "auto"] = "wait", lifetimes: Lifetimes | None = None
) -> TenantConfig:
    """The tenant of this number, with one tunnel."""
    return TenantConfig(
        name=_tenant(i),
        vni=1001 + i,
        gateway_mac=bytes(6),
        attach=VxlanAttach(()),
        tunnels=(_tunnel(i, start, lifetimes or Lifetimes()),),
    )


def _tenant(i: int) -> str:
    return "acme" if i == 0 else f"tenant{i}"


def _tunnel(i: int, start: Literal["wait", "auto"], lifetimes: Lifetimes) -> TunnelConfig:
    peer = f"198.51.100.{i + 7}"
    return TunnelConfig(
        name="hq",
        tenant=_tenant(i),
        peer=peer,
        local_id=VIP,
        remote_id=peer,
        auth=PskAuth(FilePath("psk")),
        local_ts=("10.1.0.0/24",),
        remote_ts=("10.2.0.0/24",),
        start=start,
        vip=VIP,
        lifetimes=lifetimes,
    )


def policy_of(tunnel: TunnelConfig) -> Policy:
    return policies.policy_of(tunnel, b"a secret both sides hold")


def peers_policy_of(tunnel: TunnelConfig) -> Policy:
    """The tunnel as its peer has it."""
    return policy_of(tunnel).mirrored(tunnel.vip)
