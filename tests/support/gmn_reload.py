"""Other cluster files for the GMN of `gmn_world`, reloads, and what must not change by them."""

from __future__ import annotations

from typing import Any

import msgspec

from protego_cli.config.diff import Landed
from protego_cli.config.model import Node, TenantConfig, TunnelConfig
from protego_cli.control.channel.desired_records import AnyRecord
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.operator_messages import Reload, Reloaded
from protego_cli.control.sas.tunnel import Placed
from tests.support.gmn_world import TUNNEL, World

OTHER = "tenant1/hq"


# ---- other files


def edited(w: World, name: str = TUNNEL, vni: int | None = None, **fields: Any) -> TunnelConfig:
    """The file with other values of a tunnel."""
    (before,) = (tunnel for tunnel in w.file.tunnels() if tunnel.id == name)
    after = msgspec.structs.replace(before, **fields)
    tenants = tuple(
        msgspec.structs.replace(tenant, tunnels=(after,), vni=vni or tenant.vni)
        if tenant.name == after.tenant
        else tenant
        for tenant in w.file.tenants
    )
    w.file = msgspec.structs.replace(w.file, tenants=tenants)
    return after


def without_tunnel(w: World, name: str = TUNNEL) -> None:
    tenants = tuple(tenant for tenant in w.file.tenants if not name.startswith(tenant.name + "/"))
    w.file = msgspec.structs.replace(w.file, tenants=tenants)


def with_tenants(w: World, *tenants: TenantConfig) -> None:
    w.file = msgspec.structs.replace(w.file, tenants=(*w.file.tenants, *tenants))


def with_nodes(w: World, *nodes: Node) -> None:
    w.file = msgspec.structs.replace(w.file, nodes=(*w.file.nodes, *nodes))


def without_node(w: World, name: str) -> None:
    w.file = msgspec.structs.replace(w.file, nodes=tuple(n for n in w.file.nodes if n.name != name))


def with_settings(w: World, **settings: float) -> None:
    w.file = msgspec.structs.replace(w.file, ike=msgspec.structs.replace(w.file.ike, **settings))


async def reload(w: World, *, dry_run: bool = False) -> Reloaded:
    found = await w.operations.answer(Reload(dry_run))
    assert isinstance(found, Reloaded)
    return found


async def applied(w: World) -> list[str]:
    """Reload, and what came of each change."""
    found = await reload(w)
    assert found.applied, found
    return [told(change) for change in found.changes]


def told(change: Landed) -> str:
    return f"{change.what} {change.name} {change.kind} {change.lands}: {change.outcome}"


# ---- what must not change


def footprint(w: World, tunnel: str) -> list[object]:
    """Everything that nodes and the peer have of a tunnel; equal as long as nobody touched it."""
    found = w.sad.tunnels[tunnel]
    peer = w.peers[found.config.peer or ""]
    placed = found.sealing
    assert placed is not None
    keys: list[Key] = [("sa", placed.spi), ("steer", placed.spi), ("rule", tunnel), ("route", tunnel)]
    records: dict[tuple[str, Key], AnyRecord] = {
        (node.name, key): node.held[key] for node in w.nodes.all.values() for key in keys if key in node.held
    }
    return [found, placed, list(found.sas), list(found.ikes), dict(peer.opens), len(peer.events), records]


def sealing(w: World, tunnel: str = TUNNEL) -> Placed:
    placed = w.sad.tunnels[tunnel].sealing
    assert placed is not None
    return placed


def nothing_sent(w: World) -> bool:
    return not [entry for entry in w.log if entry[0] in ("sent", "wire", "reload")]
