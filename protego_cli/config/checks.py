"""Checks of the cluster file that look at several values together.

Each takes the cluster as read and yields problems. Values that were wrong by themselves are placeholders by
now (empty text, no entries) and are skipped: they are reported already.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from pathlib import Path

from protego_cli.config.attach_checks import check_attachments
from protego_cli.config.fields import join, tenant_key, tunnel_key
from protego_cli.config.limits import unreachable
from protego_cli.config.model import Cluster, Node, TenantConfig, TunnelConfig
from protego_cli.config.networks import inside, joined, overlaps
from protego_cli.config.pools import check_pools, pool_nodes
from protego_cli.config.secrets import read_secret
from protego_cli.config.values import AnyNetwork
from protego_cli.errors import EnvironmentFault, Problem


def check_cluster(cluster: Cluster) -> Iterator[Problem]:
    """Everything that one value alone cannot show."""
    yield from _roles(cluster)
    yield from _names(cluster)
    yield from check_pools(cluster)
    yield from _addresses(cluster)
    yield from _ports(cluster)
    yield from _tenants(cluster)
    yield from check_attachments(cluster)
    for tenant in cluster.tenants:
        yield from _vteps(tenant)
        yield from _gateway(tenant)
        yield from _remote_prefixes(tenant)
        served = _served(tenant)
        for tunnel in tenant.tunnels:
            yield from _tunnel(cluster, tenant, served, tunnel)
    yield from _peers(cluster)


def check_secrets(cluster: Cluster) -> Iterator[Problem]:
    """The files only the GMN needs, so other nodes do without them."""
    for tunnel in cluster.tunnels():
        if tunnel.auth.file == Path():
            continue
        try:
            read_secret(tunnel.auth.file)
        except EnvironmentFault as fault:
            yield Problem(tunnel_key(tunnel, "auth.file"), str(fault))


def _node_key(node: Node, rest: str) -> str:
    return f"{join('pools', node.pool) if node.pool else join('nodes', node.name)}.{rest}"


def _roles(cluster: Cluster) -> Iterator[Problem]:
    gmns = cluster.nodes_of("gmn")
    if not gmns and all(node.role for node in cluster.nodes):
        yield Problem(
            "nodes", 'expected one node with role = "gmn", which holds all IKE state; there is none'
        )
    for extra in gmns[1:]:
        yield Problem(_node_key(extra, "role"), f'expected exactly one "gmn"; {gmns[0].name} is one already')


def _names(cluster: Cluster) -> Iterator[Problem]:
    """Instances get names of their own; all others are keys of one table."""
    names = {node.name for node in cluster.nodes if not node.group}
    for node in cluster.nodes:
        if node.group and node.name in names:
            yield Problem(
                f"{join('nodes', node.group)}.instances",
                f"one of them would be {node.name}, which is another node's name; rename either",
            )


def _addresses(cluster: Cluster) -> Iterator[Problem]:
    for index, vip in enumerate(cluster.vips):
        if vip in cluster.vips[:index]:
            yield Problem(f"cluster.vips[{index}]", f"{vip} is listed twice")
    for node in cluster.nodes:
        if node.address in cluster.vips:
            yield Problem(
                _node_key(node, "address"),
                f"{node.address} is one of cluster.vips; a node's own address must be another one, "
                "because peers must not reach the fabric",
            )


def _ports(cluster: Cluster) -> Iterator[Problem]:
    taken: dict[tuple[str, str, int], str] = {}
    for node in [*cluster.nodes, *pool_nodes(cluster)]:
        for name, protocol, port in node.listens() if node.address else []:
            here = (node.address, protocol, port)
            if here in taken:
                yield Problem(
                    _node_key(node, f"ports.{name}"),
                    f"{node.address} {protocol}/{port} is taken by {taken[here]} already; "
                    "give one of them another address or port",
                )
            taken.setdefault(here, f"{node.name} ({name})")
    yield from _same_natt(cluster)
    for tenant in cluster.tenants:
        for index, vtep in enumerate(tenant.vteps):
            owner = taken.get((vtep.address, "udp", vtep.port))
            if owner:
                yield Problem(
                    tenant_key(tenant, f"attach.vteps[{index}].address"),
                    f"{vtep.address} udp/{vtep.port} is the node {owner}, not a VTEP of the tenant",
                )


def _same_natt(cluster: Cluster) -> Iterator[Problem]:
    """A peer must get ESP from the port it sends to: a GPN's own is the one that the GINs listen on."""
    edge = [(node, "natt", node.ports.natt) for node in cluster.nodes_of("gin")]
    for node in [*cluster.nodes_of("gpn"), *(pool.node(1) for pool in cluster.pools)]:
        edge += [(node, "natt", node.ports.natt), (node, "esp", node.ports.esp)]
    for node, name, port in edge[1:]:
        first, _, expected = edge[0]
        if port and expected and port != expected:
            yield Problem(
                _node_key(node, f"ports.{name}"),
                f"expected {expected}, the natt of {first.name}, got {port}: peers must get ESP from the "
                "port that they send to",
            )


def _tenants(cluster: Cluster) -> Iterator[Problem]:
    first: dict[int, str] = {}
    for tenant in cluster.tenants:
        if tenant.vni and first.setdefault(tenant.vni, tenant.name) != tenant.name:
            yield Problem(
                tenant_key(tenant, "vni"),
                f"{tenant.vni} is the VNI of tenant {first[tenant.vni]} already; each tenant needs its own",
            )


def _vteps(tenant: TenantConfig) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, vtep in enumerate(tenant.vteps):
        twice = vtep.prefix in seen
        seen.add(vtep.prefix)
        if vtep.prefix and twice:
            yield Problem(
                tenant_key(tenant, f"attach.vteps[{index}].prefix"), f"{vtep.prefix} is listed twice"
            )


def _gateway(tenant: TenantConfig) -> Iterator[Problem]:
    """The tenant's machines ask for these addresses and send to them, so no tunnel may lead there."""
    prefixes = _networks(vtep.prefix for vtep in tenant.vteps)
    for index, address in enumerate(tenant.gateway):
        key = tenant_key(tenant, f"gateway[{index}]")
        if address in tenant.gateway[:index]:
            yield Problem(key, f"{address} is listed twice")
        host = ipaddress.ip_address(address)
        if any(host in prefix for prefix in prefixes):
            continue
        for tunnel in tenant.tunnels:
            for prefix in _networks(tunnel.remote_ts):
                if host in prefix:
                    yield Problem(
                        key,
                        f"{address} is in {prefix}, which is behind the peer of tunnel {tunnel.id}; the "
                        "gateway's address belongs to the tenant's own network",
                    )


def _networks(prefixes: Iterable[str]) -> list[AnyNetwork]:
    return [ipaddress.ip_network(prefix) for prefix in prefixes if prefix]


def _remote_prefixes(tenant: TenantConfig) -> Iterator[Problem]:
    """A packet from the tenant must belong to one tunnel: its prefixes may overlap with no other's."""
    places = [(tunnel, index) for tunnel in tenant.tunnels for index in range(len(tunnel.remote_ts))]
    networks = [ipaddress.ip_network(tunnel.remote_ts[index]) for tunnel, index in places]
    for at, other in overlaps(networks):
        tunnel, index = places[at]
        yield Problem(
            tunnel_key(tunnel, f"remote_ts[{index}]"),
            f"{networks[at]} overlaps {networks[other]} of tunnel {places[other][0].id}; within a tenant "
            "each remote prefix belongs to one tunnel",
        )


def _served(tenant: TenantConfig) -> list[AnyNetwork]:
    """What the tenant's VTEPs serve; nothing where that is not known."""
    prefixes = [vtep.prefix for vtep in tenant.vteps]
    return [] if "" in prefixes else joined(prefixes)


def _tunnel(
    cluster: Cluster, tenant: TenantConfig, served: list[AnyNetwork], tunnel: TunnelConfig
) -> Iterator[Problem]:
    if tunnel.peer in cluster.vips:
        yield Problem(
            tunnel_key(tunnel, "peer"), f"{tunnel.peer} is one of cluster.vips: that is our own side"
        )
    if tunnel.start == "auto" and tunnel.peer is None:
        yield Problem(
            tunnel_key(tunnel, "start"),
            'expected "wait": a peer whose address is not known cannot be dialled',
        )
    if served:
        yield from _covered(tenant, served, tunnel)
    yield from _families(tunnel)
    for key, problem in unreachable(tenant, tunnel):
        yield Problem(tunnel_key(tunnel, key), problem)


def _covered(tenant: TenantConfig, served: list[AnyNetwork], tunnel: TunnelConfig) -> Iterator[Problem]:
    """The tenant's side of a tunnel must be reachable through the tenant's VTEPs."""
    for index, prefix in enumerate(tunnel.local_ts):
        network = ipaddress.ip_network(prefix)
        if not any(inside(network, other) for other in served):
            prefixes = ", ".join(vtep.prefix for vtep in tenant.vteps)
            yield Problem(
                tunnel_key(tunnel, f"local_ts[{index}]"),
                f"{network} is not inside the prefixes of tenants.{tenant.name}.attach.vteps "
                f"({prefixes}), so its packets could not be delivered",
            )


def _families(tunnel: TunnelConfig) -> Iterator[Problem]:
    local = {network.version for network in _networks(tunnel.local_ts)}
    remote = {network.version for network in _networks(tunnel.remote_ts)}
    if local and remote and local != remote:
        yield Problem(
            tunnel_key(tunnel, "remote_ts"),
            f"expected the address families of local_ts ({_spoken(local)}), got {_spoken(remote)}",
        )


def _spoken(versions: Iterable[int]) -> str:
    return " and ".join(f"IPv{version}" for version in sorted(versions))


def _peers(cluster: Cluster) -> Iterator[Problem]:
    """IKE_AUTH picks the tunnel by the peer's address and identity, so the two must decide it."""
    tunnels = [tunnel for tunnel in cluster.tunnels() if tunnel.remote_id and tunnel.peer != ""]
    by_id: dict[str, list[TunnelConfig]] = {}
    for tunnel in tunnels:
        for other in by_id.setdefault(tunnel.remote_id, []):
            if tunnel.peer == other.peer or None in (tunnel.peer, other.peer):
                yield Problem(
                    tunnel_key(tunnel, "remote_id"),
                    f'tunnel {other.id} expects "{tunnel.remote_id}" from {other.peer or "any address"} too, '
                    "so the two could be confused: give them different remote_ids or peers",
                )
        by_id[tunnel.remote_id].append(tunnel)
