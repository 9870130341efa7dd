"""Checks of TUN attachments: devices that do not collide, and routes that take nobody else's packets.

The prefixes behind a tenant's peers are routed to its device. So tenants whose devices are in one network
namespace share one table, and what is routed in the machine's own namespace must not be what the cluster
itself has to reach.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from protego_cli.config.fields import tenant_key, tunnel_key
from protego_cli.config.model import Cluster, TenantConfig, TunAttach
from protego_cli.config.networks import overlaps
from protego_cli.config.values import AnyNetwork
from protego_cli.errors import Problem

Place = tuple[str, str | None]  # a GEN, and a network namespace of its machine


def check_attachments(cluster: Cluster) -> Iterator[Problem]:
    """What two attachments, or one and the rest of the cluster, have wrong between them."""
    devices: dict[tuple[Place, str], str] = {}
    routed: dict[Place, list[_Routed]] = {}
    reached = _reached(cluster)
    for tenant in cluster.tenants:
        attach = tenant.attach
        if not isinstance(attach, TunAttach):
            continue
        place = attach.node, attach.netns
        if tenant.gateway:
            yield Problem(
                tenant_key(tenant, "gateway"),
                "has no use with a TUN attachment, where nobody asks for a gateway: leave it out",
            )
        if attach.device and devices.setdefault((place, attach.device), tenant.name) != tenant.name:
            yield Problem(
                tenant_key(tenant, "attach.device"),
                f'"{attach.device}" is the device of tenant {devices[place, attach.device]} already',
            )
        routed.setdefault(place, []).extend(
            _Routed(key, network, tenant.name) for key, network in _remote(tenant)
        )
        if attach.netns is None:
            yield from _own_table(tenant, reached)
    for routes in routed.values():
        yield from _routes(routes)


class _Routed(NamedTuple):
    """A prefix behind a tenant's peers."""

    key: str
    network: AnyNetwork
    tenant: str


def _remote(tenant: TenantConfig) -> Iterator[tuple[str, AnyNetwork]]:
    for tunnel in tenant.tunnels:
        for index, prefix in enumerate(tunnel.remote_ts):
            yield tunnel_key(tunnel, f"remote_ts[{index}]"), ipaddress.ip_network(prefix)


def _routes(routes: Sequence[_Routed]) -> Iterator[Problem]:
    """Tenants of one place against one another; within a tenant, `checks.py` compares them."""
    for at, other in overlaps([route.network for route in routes]):
        route, earlier = routes[at], routes[other]
        if route.tenant != earlier.tenant:
            yield Problem(
                route.key,
                f"{route.network} overlaps {earlier.network} of tenant {earlier.tenant}, whose TUN device is "
                "in the same network namespace: give one of the two a netns of its own",
            )


def _reached(cluster: Cluster) -> dict[ipaddress.IPv4Address, str]:
    """What the cluster sends to, and what that is."""
    found = {node.address: f"the address of {node.name}" for node in cluster.nodes if node.address}
    found |= dict.fromkeys(cluster.vips, "a VIP")
    found |= {tunnel.peer: f"the peer of {tunnel.id}" for tunnel in cluster.tunnels() if tunnel.peer}
    found |= {
        vtep.address: f"a VTEP of {tenant.name}"
        for tenant in cluster.tenants
        for vtep in tenant.vteps
        if vtep.address
    }
    return {ipaddress.IPv4Address(address): what for address, what in found.items()}


def _own_table(tenant: TenantConfig, reached: dict[ipaddress.IPv4Address, str]) -> Iterator[Problem]:
    for key, network in _remote(tenant):
        for address, what in reached.items():
            if address in network:
                yield Problem(
                    key,
                    f"{network} holds {address}, {what}, which could no longer be reached once {network} is "
                    "routed to the TUN device: name a netns in attach, so that the machine keeps its routes",
                )
                break
