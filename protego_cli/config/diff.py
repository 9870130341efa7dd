"""What differs between two cluster files, and how each difference lands in a running cluster. Pure.

- `now`: from now on, and nothing else happens;
- `rekey`: the tunnel's CHILD_SA or IKE_SA is rekeyed under the new terms, while its packets flow;
- `reconnect`: the tunnel's IKE_SA is closed and made anew, because it stands for something that is not so any
  more: another peer, another secret, another VNI, or selectors that the file does not allow any more. A rekey
  must not narrow these (RFC 7296 2.9.2), so the SA has to go;
- `restart`: a process reads it when it starts, and only then.

Each field of the cluster file has its landing in one of the tables below; a test holds them complete. Secrets
are compared by whoever has read them: the difference says that one has changed, never what it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

import msgspec

from protego_cli.config.limits import described
from protego_cli.config.model import (
    Cluster,
    LimitConfig,
    Node,
    ProvisionerConfig,
    Role,
    TenantConfig,
    TunnelConfig,
)
from protego_cli.config.networks import inside, joined

Lands = Literal["now", "rekey", "reconnect", "restart"]
ORDER: Final[tuple[Lands, ...]] = ("now", "rekey", "reconnect", "restart")


class FieldChange(msgspec.Struct, frozen=True):
    """One value, as text; empty where there is none."""

    name: str
    old: str
    new: str


class Change(msgspec.Struct, frozen=True):
    what: Literal["setting", "node", "pool", "tenant", "tunnel"]
    name: str  # "cluster.packing", "gpn-3", "acme", "acme/hq"
    kind: Literal["added", "changed", "removed"]
    lands: Lands
    note: str  # one sentence
    fields: tuple[FieldChange, ...] = ()
    restart: tuple[str, ...] = ()  # the nodes whose processes know of it when they are started anew


Outcome = Literal["planned", "refused", "done", "under way", "at restart"]


class Landed(Change, frozen=True):
    """A change of the cluster file, and what became of it."""

    outcome: Outcome = "planned"
    reason: str = ""  # of a refusal

    @classmethod
    def of(cls, change: Change, outcome: Outcome, reason: str = "") -> Landed:
        return cls(**msgspec.structs.asdict(change), outcome=outcome, reason=reason)


class Landing(NamedTuple):
    lands: Lands
    note: str


_EVERYWHERE: Final = "Every node reads it when it starts."
_RETRANSMISSION: Final = "Holds for new IKE_SAs; those that stand keep the times that they began with."
_DECISION: Final = "Holds from the next decision on."
_DEFAULT: Final = "Is what tunnels have that say nothing else."

SETTINGS: Final[dict[str, tuple[Landing, tuple[Role, ...]]]] = {
    "cluster.name": (Landing("restart", "It is in every certificate: this is another cluster."), ("gmn",)),
    "cluster.vips": (Landing("now", "A GIN listens on a new VIP once it is started anew."), ()),
    "cluster.pki": (Landing("restart", _EVERYWHERE), ("gmn", "gin", "gen", "gpn")),
    "cluster.state": (Landing("restart", "The GMN reads it when it starts."), ("gmn",)),
    "cluster.store": (Landing("restart", "The GMN reads it when it starts."), ("gmn",)),
    "cluster.state_key": (Landing("restart", "The GMN reads it when it starts."), ("gmn",)),
    "cluster.ingress": (Landing("restart", "A GIN or GEN reads it when it starts."), ("gin", "gen")),
    "cluster.return": (Landing("restart", "A GPN reads it when it starts."), ("gpn",)),
    "cluster.encapsulation": (Landing("now", _DEFAULT), ()),
    "cluster.packing": (Landing("now", "Tunnels that need a place get it from the new policy."), ()),
    "plugins.paths": (Landing("restart", _EVERYWHERE), ("gmn", "gin", "gen", "gpn")),
    "ike.retransmit_first": (Landing("now", _RETRANSMISSION), ()),
    "ike.retransmit_base": (Landing("now", _RETRANSMISSION), ()),
    "ike.retransmit_tries": (Landing("now", _RETRANSMISSION), ()),
    "ike.liveness": (Landing("now", "Holds for every IKE_SA from now on."), ()),
    "ike.half_open_timeout": (Landing("now", "Holds for handshakes that begin from now on."), ()),
    "ike.half_open_max": (Landing("now", "Holds for handshakes that begin from now on."), ()),
    "ike.linger": (Landing("now", "Holds for SAs that are replaced from now on."), ()),
    "ike.ike_lifetime": (Landing("now", _DEFAULT), ()),
    "ike.child_lifetime": (Landing("now", _DEFAULT), ()),
    "ike.child_bytes": (Landing("now", _DEFAULT), ()),
    "ike.child_packets": (Landing("now", _DEFAULT), ()),
    "ike.jitter": (Landing("now", _DEFAULT), ()),
    "elastic.mode": (Landing("now", "Says whether the pools change by themselves."), ()),
    "elastic.interval": (Landing("now", _DECISION), ()),
    "elastic.high": (Landing("now", _DECISION), ()),
    "elastic.low": (Landing("now", _DECISION), ()),
    "elastic.hold": (Landing("now", _DECISION), ()),
    "elastic.moves_per_hour": (Landing("now", _DECISION), ()),
    "elastic.at_once": (Landing("now", _DECISION), ()),
    "elastic.window": (Landing("now", "Holds for tunnels and GPNs that are first heard of from now on."), ()),
}

_BOUND: Final = Landing(
    "restart", "It reads this when it starts: stop it, reload, and start it with the new file."
)

NODE: Final[dict[str, Landing]] = {
    "role": _BOUND,
    "address": _BOUND,
    "ports": _BOUND,
    "ingress": Landing("restart", "It is chosen when the node starts."),
    "capacity": Landing("now", "Placement counts with it from now on."),
    "group": Landing("now", "Says which `protego up` starts it."),
    "bandwidth": Landing("now", "Placement counts with it from now on."),
    "pool": Landing("restart", "A node of a pool is another node."),
}

_LAUNCHED: Final = Landing("restart", "Its nodes and the GMN read it when they start.")

POOL: Final[dict[str, Landing]] = {
    "role": _LAUNCHED,
    "addresses": _LAUNCHED,
    "ports": _LAUNCHED,
    "provisioner": Landing("restart", "The GMN reads it when it starts."),
    "minimum": Landing("now", "Holds from now on."),
    "maximum": Landing("now", "Holds from now on; nodes beyond it are emptied and retired."),
    "capacity": Landing("now", "Placement counts with it from now on."),
    "bandwidth": Landing("now", "Placement counts with it from now on."),
    "launch": Landing("now", "Holds for launches from now on."),
}

TENANT: Final[dict[str, Landing]] = {
    "vni": Landing("now", "Its tunnels are made anew in the new VNI."),
    "gateway_mac": Landing("now", "The GPNs use it from now on."),
    "attach": Landing("now", "GENs and GPNs use it from now on."),
    "gateway": Landing("now", "GENs answer for it from now on."),
    "limit": Landing("now", "Holds from now on; no SA is touched."),
}

TUNNEL: Final[dict[str, Landing]] = {
    "peer": Landing("reconnect", "It has another peer."),
    "local_id": Landing("reconnect", "The peers' identities are proven when an IKE_SA is made."),
    "remote_id": Landing("reconnect", "The peers' identities are proven when an IKE_SA is made."),
    "auth": Landing("now", "The secret is the same."),
    "local_ts": Landing("rekey", "The peer is offered the new selectors by a rekey."),
    "remote_ts": Landing("rekey", "The peer is offered the new selectors by a rekey."),
    "ike": Landing("rekey", "The peer is offered the new proposals by a rekey of the IKE_SA."),
    "esp": Landing("rekey", "The peer is offered the new proposals by a rekey."),
    "window": Landing("rekey", "An SA keeps its window, so a rekey makes one that has the new one."),
    "dscp": Landing("now", "Its GPN seals by it from now on."),
    "mtu": Landing("now", "Its GPN seals by it from now on."),
    "fragment": Landing("now", "Its GPN seals by it from now on."),
    "mss": Landing("now", "Its GPN seals by it from now on."),
    "encapsulation": Landing(
        "now", "Is agreed on when an IKE_SA is made: `protego tunnel down` and `up` make a new one."
    ),
    "start": Landing("now", "Says who dials when it is down."),
    "lifetimes": Landing("now", "Hold for SAs that are made from now on, in bytes and packets for all."),
    "vip": Landing("reconnect", "It has another VIP."),
    "limit": Landing("now", "Holds from now on; no SA is touched."),
    "apart": Landing("now", "Placement heeds it from now on."),
}
SECRET: Final = Landing("reconnect", "It has another secret.")
NARROWED: Final = Landing("reconnect", "The SA carries what is not allowed any more.")
MOVED: Final = Landing("reconnect", "An SA belongs to one VNI.")


def diff(old: Cluster, new: Cluster, secrets: Collection[str] = ()) -> tuple[Change, ...]:
    """All changes, in the order of the new file, what is removed last within its sort. `secrets`: the ids of
    tunnels whose secret is another one now.
    """
    return (
        *_settings(old, new),
        *_nodes(old, new),
        *_pools(old, new),
        *_tenants(old, new),
        *_tunnels(old, new, secrets),
    )


def _settings(old: Cluster, new: Cluster) -> Iterator[Change]:
    was, now = _flat(old), _flat(new)
    for name, value in now.items():
        if value == was[name]:
            continue
        landing, roles = SETTINGS[name]
        if name == "cluster.vips" and not set(new.vips) - set(old.vips):
            landing = Landing("now", "No tunnel uses it any more.")
        elif name == "cluster.vips":
            roles = ("gin",)
        restart = tuple(node.name for node in new.nodes if node.role in roles)
        field = FieldChange(name, as_text(was[name]), as_text(value))
        yield Change("setting", name, "changed", landing.lands, landing.note, (field,), restart)


def _flat(cluster: Cluster) -> dict[str, object]:
    """The settings by their keys in the file."""
    tables = {
        "cluster": cluster,
        "plugins": cluster.plugins,
        "ike": cluster.ike,
        "elastic": cluster.elastic,
    }
    named = {field.encode_name: field.name for field in msgspec.structs.fields(Cluster)}
    keys = {key: key.split(".") for key in SETTINGS}
    return {key: getattr(tables[table], named.get(own, own)) for key, (table, own) in keys.items()}


def _nodes(old: Cluster, new: Cluster) -> Iterator[Change]:
    was = {node.name: node for node in old.nodes}
    everybody = tuple(node.name for node in new.nodes)
    for node in new.nodes:
        before = was.pop(node.name, None)
        if before is None:
            yield _appearing(node, "added", everybody)
        elif before != node:
            fields = tuple(_fields(before, node))
            if "gmn" in (before.role, node.role):
                yield _other_gmn(node, "changed", fields, everybody)
            else:
                landing = _decisive(NODE[field.name.partition(".")[0]] for field in fields)
                restart = (node.name,) if landing.lands == "restart" else ()
                yield Change("node", node.name, "changed", landing.lands, landing.note, fields, restart)
    for node in was.values():
        yield _appearing(node, "removed", everybody)


def _pools(old: Cluster, new: Cluster) -> Iterator[Change]:
    """A pool that comes or goes, or gets another provisioner, needs a GMN that starts with it."""
    was = {pool.name: pool for pool in old.pools}
    gmns = tuple(node.name for node in new.nodes_of("gmn"))
    note = "The GMN begins with it when it starts."
    for pool in new.pools:
        before = was.pop(pool.name, None)
        if before is None:
            yield Change("pool", pool.name, "added", "restart", note, (), gmns)
        elif before != pool:
            fields = tuple(_fields(before, pool))
            landing = _decisive(POOL[field.name.partition(".")[0]] for field in fields)
            restart = gmns if landing.lands == "restart" else ()
            yield Change("pool", pool.name, "changed", landing.lands, landing.note, fields, restart)
    for name in was:
        yield Change("pool", name, "removed", "restart", "The GMN lets it be when it starts.", (), gmns)


def _appearing(node: Node, kind: Literal["added", "removed"], everybody: tuple[str, ...]) -> Change:
    if node.role == "gmn":
        return _other_gmn(node, kind, (), everybody)
    note = (
        f"Takes part once it runs: `protego pki init`, then `protego up --name {node.name}` there."
        if kind == "added"
        else "Is let in no more; stop it."
    )
    return Change("node", node.name, kind, "now", note)


def _other_gmn(
    node: Node,
    kind: Literal["added", "changed", "removed"],
    fields: tuple[FieldChange, ...],
    everybody: tuple[str, ...],
) -> Change:
    note = "Every node learns when it starts where the GMN is."
    return Change("node", node.name, kind, "restart", note, fields, everybody)


def _tenants(old: Cluster, new: Cluster) -> Iterator[Change]:
    was = {tenant.name: tenant for tenant in old.tenants}
    for tenant in new.tenants:
        before = was.pop(tenant.name, None)
        if before is None:
            yield Change("tenant", tenant.name, "added", "now", "GENs and GPNs serve it from now on.")
        elif fields := tuple(_fields(before, tenant, but=("tunnels",))):
            landing = _decisive(TENANT[field.name] for field in fields)
            yield Change("tenant", tenant.name, "changed", landing.lands, landing.note, fields)
    for name in was:
        yield Change("tenant", name, "removed", "now", "No node takes its packets any more.")


def _tunnels(old: Cluster, new: Cluster, secrets: Collection[str]) -> Iterator[Change]:
    was = {tunnel.id: (tenant, tunnel) for tenant in old.tenants for tunnel in tenant.tunnels}
    for tenant in new.tenants:
        for tunnel in tenant.tunnels:
            before = was.pop(tunnel.id, None)
            if before is None:
                note = "Protego dials it." if tunnel.start == "auto" else "Waits for its peer."
                yield Change("tunnel", tunnel.id, "added", "now", note)
            elif change := _tunnel(*before, tenant, tunnel, secret=tunnel.id in secrets):
                yield change
    for name in was:
        yield Change("tunnel", name, "removed", "now", "Its IKE_SA is closed.")


def _tunnel(
    old_tenant: TenantConfig, old: TunnelConfig, tenant: TenantConfig, tunnel: TunnelConfig, *, secret: bool
) -> Change | None:
    fields = list(_fields(old, tunnel))
    landings = [
        NARROWED if field.name.endswith("_ts") and _narrowed(old, tunnel, field.name) else TUNNEL[field.name]
        for field in fields
    ]
    if secret:
        fields.append(FieldChange("pre-shared key", "(not shown)", "(another one)"))
        landings.append(SECRET)
    if tenant.vni != old_tenant.vni:
        fields.append(FieldChange("vni", str(old_tenant.vni), str(tenant.vni)))
        landings.append(MOVED)
    if not landings:
        return None
    landing = _decisive(landings)
    return Change("tunnel", tunnel.id, "changed", landing.lands, landing.note, tuple(fields))


def leaving(changes: Iterable[Change]) -> list[str]:
    """The tunnels whose IKE_SAs have to be closed: they are removed, or have to be made anew."""
    return [
        change.name
        for change in changes
        if change.what == "tunnel" and (change.kind == "removed" or change.lands == "reconnect")
    ]


def _decisive(landings: Iterable[Landing]) -> Landing:
    """The first of those that do most."""
    return max(landings, key=lambda landing: ORDER.index(landing.lands))


def _narrowed(old: TunnelConfig, new: TunnelConfig, name: str) -> bool:
    """Whether some address that the old selectors allow is outside of the new ones."""
    allowed = joined(getattr(new, name))
    return not all(any(inside(net, wide) for wide in allowed) for net in joined(getattr(old, name)))


def _fields(old: msgspec.Struct, new: msgspec.Struct, but: Collection[str] = ()) -> Iterator[FieldChange]:
    """The fields of two structs that differ; a port as a field of its own."""
    for name in new.__struct_fields__:
        was, now = getattr(old, name), getattr(new, name)
        if was == now or name in but:
            continue
        if name == "ports":
            for field in _fields(was, now):
                yield FieldChange(f"ports.{field.name}", field.old, field.new)
        else:
            yield FieldChange(name, as_text(was, name), as_text(now, name))


def as_text(value: Any, name: str = "") -> str:
    """A value of the cluster file, for people; empty where there is none."""
    match value:
        case None:
            return "any" if name == "peer" else ""
        case bytes():
            return value.hex(":")
        case LimitConfig():
            return described(value)
        case ProvisionerConfig():
            return " ".join((value.kind, *(f"{key}={as_text(each)}" for key, each in value.settings)))
        case tuple():
            return ", ".join(map(as_text, value))
        case msgspec.Struct():
            return " ".join(f"{name}={as_text(getattr(value, name))}" for name in value.__struct_fields__)
        case float():
            return f"{value:.12g}"
        case _:
            return str(value)
