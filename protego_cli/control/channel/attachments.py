"""From a tenant of the cluster file to the records that say how its network is attached. Pure.

GENs and GPNs hear of VTEPs alone. A TUN attachment is one: the GEN that owns the device, for every inner
address (a GPN checks the selectors of the SA). Only that GEN gets the device itself; the others hear of no
VTEP, and so take nothing for that tenant.
"""

from __future__ import annotations

import msgspec

from protego_cli.config.model import Cluster, Node, TenantConfig, TunAttach
from protego_cli.control.channel.desired_records import Tenant, Tun, Vtep
from protego_cli.net.tun import INNER_MTU

_EVERYWHERE = ("0.0.0.0/0", "::/0")
_MAC_PREFIX = bytes((0x02, 0x54, 0x4E))  # locally administered


def tenant_record(cluster: Cluster, tenant: TenantConfig) -> Tenant:
    """What GENs and GPNs know of the tenant."""
    attach = tenant.attach
    owner = cluster.node(attach.node) if isinstance(attach, TunAttach) else None
    if owner is None:
        vteps = tuple(Vtep(vtep.prefix, vtep.address, vtep.port, vtep.mac) for vtep in tenant.vteps)
    else:
        mac = _mac(tenant.vni)
        vteps = tuple(Vtep(prefix, owner.address, owner.ports.vxlan, mac) for prefix in _EVERYWHERE)
    return Tenant(tenant.name, tenant.vni, tenant.gateway_mac, vteps, tenant.gateway)


def known_to(node: Node, tenant: TenantConfig, record: Tenant) -> Tenant:
    """The tenant's record, as that node gets it."""
    attach = tenant.attach
    if node.role == "gen" and isinstance(attach, TunAttach) and attach.node != node.name:
        return msgspec.structs.replace(record, vteps=())
    return record


def tun_records(cluster: Cluster, gen: Node) -> list[Tun]:
    """The devices of a GEN."""
    return [
        Tun(
            tenant=tenant.name,
            vni=tenant.vni,
            mac=_mac(tenant.vni),
            gateway_mac=tenant.gateway_mac,
            device=attach.device,
            netns=attach.netns,
            addresses=attach.address,
            mtu=attach.mtu or INNER_MTU,
        )
        for tenant in cluster.tenants
        if isinstance(attach := tenant.attach, TunAttach) and attach.node == gen.name
    ]


def _mac(vni: int) -> bytes:
    """Of the VTEP inside the GEN: one for each tenant."""
    return _MAC_PREFIX + vni.to_bytes(3)
