"""The cluster file: from TOML to `model.Cluster`, with every fault found in one pass.

1. `find` settles which file is meant.
2. `load` parses TOML, converts each value (`values.py`, `fields.py`), then checks values against each other
   (`checks.py`). It raises one `ConfigError` with all problems, each with its key and what was expected.
3. The files of the secrets are looked at only where the caller says so: only the GMN needs them.

What depends on plugins (proposals, backends, policies) is checked by `Known`, which the caller fills: this
layer knows no plugin. `load_plugins_section` reads the one table that is needed before.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import tomli
from msgspec import structs

from protego_cli.config import values
from protego_cli.config.checks import check_cluster, check_secrets
from protego_cli.config.fields import Table
from protego_cli.config.limits import rate, read_limit
from protego_cli.config.model import (
    MAX_PROPOSALS,
    MAX_SELECTORS,
    ROLES,
    Cluster,
    Encapsulation,
    IkeSettings,
    Lifetimes,
    Node,
    PluginsConfig,
    Ports,
    PskAuth,
    Role,
    TenantConfig,
    TunAttach,
    TunnelConfig,
    VtepConfig,
    VxlanAttach,
)
from protego_cli.config.pools import CheckProvisioner, read_elastic, read_pools
from protego_cli.errors import ConfigError, EnvironmentFault, Problem, UsageError

ENVIRONMENT = "PROTEGO_CLUSTER"
PLACES = (Path("cluster.toml"), Path("/etc/protego/cluster.toml"))

MAX_INSTANCES = 256
LIFETIME = values.duration(10, 30 * 86400)  # above a rekey's margin, below what keys should ever serve
COUNT = values.integer(0, 2**62)
JITTER = values.number(0, 0.5)
PKI_NAMES = frozenset({"ca", "operator"})  # beside NODE.pem in cluster.pki

CheckProposal = Callable[[str, Literal["ike", "esp"]], str | None]
"""Says what is wrong with a proposal, or None."""


@dataclass(frozen=True)
class Known:
    """What the loaded plugins provide; None where it is not to be checked."""

    check_proposal: CheckProposal | None = None
    ingress: Collection[str] | None = None  # names of steering backends
    packing: Collection[str] | None = None  # of packing policies
    store: Collection[str] | None = None  # of state stores
    check_provisioner: CheckProvisioner | None = None


UNCHECKED: Final = Known()


@dataclass(frozen=True)
class _Around:
    """What the rest of the file and the plugins are to a tenant and its tunnels."""

    base: Path  # that paths are relative to
    vips: tuple[str, ...]
    gens: list[str]
    lifetimes: Lifetimes  # where a tunnel says nothing
    encapsulation: Encapsulation  # likewise
    known: Known


def find(path: Path | None = None) -> Path:
    """The cluster file: as given, or $PROTEGO_CLUSTER, ./cluster.toml, /etc/protego/cluster.toml."""
    if path is not None:
        return path
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    for place in PLACES:
        if place.exists():
            return place
    raise UsageError(
        f"no cluster file: name one with -c or ${ENVIRONMENT} (looked for {' and '.join(map(str, PLACES))})"
    )


def load(path: Path, known: Known = UNCHECKED, *, secrets: bool = False) -> Cluster:
    """The cluster that a file describes; with `secrets`, their files must be there and fit, too. Raises
    ConfigError with every problem.
    """
    cluster, problems = _read(path, known)
    if secrets:
        problems.extend(check_secrets(cluster))
    if problems:
        raise ConfigError(str(path), problems)
    return cluster


def load_plugins_section(path: Path) -> PluginsConfig:
    """Only `[plugins]`: what must be loaded before the rest of the file can be judged."""
    problems: list[Problem] = []
    plugins = _plugins(Table(_parse(path), "", problems), path.absolute().parent)
    if problems:
        raise ConfigError(str(path), problems)
    return plugins


def _parse(path: Path) -> dict[str, Any]:
    text = ""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a mark
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:  # its text names line and column, but for the very end
        lines = text.split("\n")
        end = f"at line {len(lines)}, column {len(lines[-1]) + 1}"
        what = str(error).replace("at end of document", end)
        raise ConfigError(str(path), [Problem("", f"is not valid TOML: {what}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Problem("", f"is not UTF-8 text at byte {error.start}")]) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, tables without end
        raise ConfigError(str(path), [Problem("", f"is not valid TOML: {error}")]) from None
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; -c names the cluster file") from None
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror}") from None


def _read(path: Path, known: Known) -> tuple[Cluster, list[Problem]]:
    problems: list[Problem] = []
    top = Table(_parse(path), "", problems)
    file = path.absolute()
    base = file.parent
    section = top.table("cluster", needed="a table [cluster] with name and vips")
    name, vips = "", cast("tuple[str, ...]", ())
    if "cluster" in top:
        name = section.need("name", values.name, "", example='a name such as "demo"')
        vips = section.sequence(
            "vips", values.address, example='a list of addresses such as ["203.0.113.10"]'
        )
    pki = section.take("pki", values.path(base), base / "pki")
    state = section.take("state", values.path(base), base / "state")
    ingress = section.take("ingress", _named(known.ingress, "a steering backend"), "mux")
    packing = section.take("packing", _named(known.packing, "a packing policy"), "spread")
    returns = section.take("return", values.choice(["direct", "gin"]), "direct")
    store = section.take("store", _named(known.store, "a state store"), "sqlite")
    state_key = section.take("state_key", values.path(base), None)
    encapsulation = _encapsulation(section, "force")
    section.done()
    nodes = _nodes(top.table("nodes", needed="a table [nodes.NAME] for each node"), known)
    gens = [node.name for node in nodes if node.role == "gen"]
    ike = _ike(top.table("ike"))
    around = _Around(base, vips, gens, ike.lifetimes, encapsulation, known)
    cluster = Cluster(
        name=name,
        file=file,
        vips=vips,
        pki=pki,
        state=state,
        nodes=nodes,
        tenants=tuple(_tenant(own, table, around) for own, table in top.table("tenants").named()),
        ingress=ingress,
        encapsulation=encapsulation,
        packing=packing,
        returns=cast('Literal["direct", "gin"]', returns),
        store=store,
        state_key=state_key,
        ike=ike,
        plugins=_plugins(top, base),
        pools=read_pools(top.table("pools"), _ports, known.check_provisioner),
        elastic=read_elastic(top.table("elastic")),
    )
    top.done()
    problems.extend(check_cluster(cluster))
    return cluster, problems


def _named(known: Collection[str] | None, what: str) -> Callable[[object], str]:
    return values.name if known is None else values.choice(sorted(known), what=what)


def _nodes(collection: Table, known: Known) -> tuple[Node, ...]:
    nodes = []
    for name, table in collection.named():
        table.check_name(name)
        if name in PKI_NAMES:
            table.fault(f'"{name}" names other files of the PKI; give the node another name')
        role = table.need("role", values.choice(ROLES), "", example=f"one of {', '.join(ROLES)}")
        address = table.need("address", values.address, "", example='an IP address such as "10.10.0.1"')
        ports = _ports(table.table("ports"))
        capacity = table.take("capacity", values.number(0.01, 1024), 1.0) if role in ("gpn", "") else 1.0
        bandwidth = table.take("bandwidth", rate, 0) if role in ("gpn", "") else 0
        own = _named(known.ingress, "a steering backend")
        ingress = table.take("ingress", own, "") if role in ("gin", "") else ""
        node = Node(
            name, cast("Role", role), address, ports, ingress=ingress, capacity=capacity, bandwidth=bandwidth
        )
        nodes += _instances(node, table)
        table.done()
    return tuple(nodes)


def _instances(node: Node, table: Table) -> list[Node]:
    """A GPN for each of its instances, at consecutive addresses; the node itself where it says nothing."""
    count = table.take("instances", values.integer(1, MAX_INSTANCES), 1)
    if "instances" not in table or not node.address:
        return [node]
    if node.role != "gpn":
        table.problem("instances", "only a GPN can have several instances")
        return [node]
    try:
        first = ipaddress.ip_address(node.address)
        addresses = [str(first + place) for place in range(count)]
    except ValueError:
        table.problem("address", f"expected {count} consecutive addresses from {node.address} on")
        return [node]
    table.check_room(node.name, count)
    return [
        structs.replace(node, name=f"{node.name}-{place}", address=address, group=node.name)
        for place, address in enumerate(addresses, start=1)
    ]


def _ports(table: Table) -> Ports:
    default = Ports()
    port = values.integer(1, 65535)
    ports = Ports(
        ike=table.take("ike", values.integer(0, 65535), default.ike),
        natt=table.take("natt", port, default.natt),
        esp=table.take("esp", port, default.esp),
        vxlan=table.take("vxlan", port, default.vxlan),
        fabric=table.take("fabric", port, default.fabric),
        control=table.take("control", port, default.control),
    )
    table.done()
    return ports


def _tenant(name: str, table: Table, around: _Around) -> TenantConfig:
    table.check_name(name)
    attach = table.table("attach", needed='a table such as { kind = "vxlan", vteps = [...] }')
    tenant = TenantConfig(
        name=name,
        vni=table.need(
            "vni", values.integer(1, values.MAX_VNI), 0, example=f"a whole number from 1 to {values.MAX_VNI}"
        ),
        gateway_mac=table.need(
            "gateway_mac", values.mac, b"", example='a MAC address such as "02:50:00:00:10:01"'
        ),
        gateway=table.sequence(
            "gateway", values.inner_address, example='a list of addresses such as ["10.1.0.1"]', default=()
        ),
        attach=_attach(attach, around.gens) if "attach" in table else VxlanAttach(vteps=()),
        tunnels=tuple(_tunnel(name, own, entry, around) for own, entry in table.table("tunnels").named()),
        limit=read_limit(table.table("limit")),
    )
    table.done()
    return tenant


def _attach(table: Table, gens: list[str]) -> VxlanAttach | TunAttach:
    kind = table.need("kind", values.choice(["vxlan", "tun"]), "", example='"vxlan" or "tun"')
    if kind == "vxlan":
        return _vxlan(table)
    return _tun(table, gens) if kind else VxlanAttach(vteps=())


def _tun(table: Table, gens: list[str]) -> TunAttach:
    if not gens:
        table.fault('expected a node with role = "gen", which makes the device; there is none')
    attach = TunAttach(
        device=table.need("device", values.device, "", example='a name for the device such as "acme0"'),
        node=table.take("node", values.choice(gens, what="a GEN"), gens[0] if gens else ""),
        netns=table.take("netns", values.netns, None),
        address=table.sequence(
            "address", values.interface, example='a list of addresses such as ["10.1.0.1/24"]', default=()
        ),
        mtu=table.take("mtu", values.integer(1280, 9000), None),  # RFC 8200 5: IPv6 needs 1280
    )
    table.done()
    return attach


def _vxlan(table: Table) -> VxlanAttach:
    vteps = []
    example = 'a list of { prefix = "10.1.0.0/24", address = "10.20.0.5", mac = "02:00:00:00:00:05" }'
    for entry in table.tables("vteps", example=example):
        vteps.append(
            VtepConfig(
                prefix=entry.need("prefix", values.prefix, "", example='a prefix such as "10.1.0.0/24"'),
                address=entry.need(
                    "address", values.address, "", example='an IP address such as "10.20.0.5"'
                ),
                mac=entry.need("mac", values.mac, b"", example='a MAC address such as "02:00:00:00:00:05"'),
                port=entry.take("port", values.integer(1, 65535), 4789),
            )
        )
        entry.done()
    table.done()
    return VxlanAttach(vteps=tuple(vteps))


def _tunnel(tenant: str, name: str, table: Table, around: _Around) -> TunnelConfig:
    table.check_name(name)
    vips, known = around.vips, around.known
    unread: str | None = ""
    peer = table.need("peer", values.peer, unread, example='the peer\'s address, or "any"')
    tunnel = TunnelConfig(
        name=name,
        tenant=tenant,
        peer=peer,
        local_id=table.need("local_id", values.text, "", example='our identity, such as "203.0.113.10"'),
        remote_id=table.need(
            "remote_id", values.text, "", example='the peer\'s identity, such as "198.51.100.7"'
        ),
        auth=_auth(table, around.base),
        local_ts=table.sequence(
            "local_ts",
            values.prefix,
            example='a list of prefixes such as ["10.1.0.0/24"]',
            most=MAX_SELECTORS,
        ),
        remote_ts=table.sequence(
            "remote_ts",
            values.prefix,
            example='a list of prefixes such as ["10.2.0.0/24"]',
            most=MAX_SELECTORS,
        ),
        ike=_proposals(table, "ike", ("aes256gcm16-prfsha256-x25519",), known),
        esp=_proposals(table, "esp", ("aes256gcm16-x25519", "aes256gcm16"), known),
        start=cast('Literal["wait", "auto"]', table.take("start", values.choice(["wait", "auto"]), "wait")),
        vip=table.take("vip", values.choice(vips, what="one of cluster.vips"), vips[0] if vips else ""),
        window=table.take("window", values.power_of_two(32, 1 << 14), 1024),
        dscp=table.take("dscp", values.dscp, "copy"),
        mtu=table.take("mtu", values.integer(576, 9000), 1500),
        fragment=cast(
            'Literal["inner", "outer"]', table.take("fragment", values.choice(["inner", "outer"]), "inner")
        ),
        mss=table.take("mss", values.mss, None),
        encapsulation=_encapsulation(table, around.encapsulation),
        lifetimes=_lifetimes(table.table("lifetimes"), around.lifetimes),
        limit=read_limit(table.table("limit")),
        apart=table.take("apart", values.name, ""),
    )
    table.done()
    return tunnel


def _encapsulation(table: Table, default: Encapsulation) -> Encapsulation:
    chosen: str = table.take("encapsulation", values.choice(["auto", "force"]), str(default))
    return cast("Encapsulation", chosen)


def _auth(tunnel: Table, base: Path) -> PskAuth:
    table = tunnel.table("auth", needed='{ kind = "psk", file = "secrets/NAME.psk" }')
    if "auth" not in tunnel:
        return PskAuth(file=Path())
    table.need("kind", values.choice(["psk"]), "psk", example='"psk"')
    file = table.need("file", values.path(base), Path(), example='a path such as "secrets/NAME.psk"')
    table.done()
    return PskAuth(file=file)


def _proposals(
    table: Table, kind: Literal["ike", "esp"], default: tuple[str, ...], known: Known
) -> tuple[str, ...]:
    def convert(value: object) -> str:
        proposal = values.text(value)
        if known.check_proposal is not None and (wrong := known.check_proposal(proposal, kind)):
            raise ValueError(wrong)
        return proposal

    return table.sequence(
        kind,
        convert,
        example=f'a list of proposals such as ["{default[0]}"]',
        default=default,
        most=MAX_PROPOSALS,
    )


def _ike(table: Table) -> IkeSettings:
    default = IkeSettings()
    settings = IkeSettings(
        retransmit_first=table.take("retransmit_first", values.number(0.05, 60), default.retransmit_first),
        retransmit_base=table.take("retransmit_base", values.number(1, 10), default.retransmit_base),
        retransmit_tries=table.take("retransmit_tries", values.integer(1, 20), default.retransmit_tries),
        liveness=table.take("liveness", values.number(1, 86400), default.liveness),
        half_open_timeout=table.take("half_open_timeout", values.number(1, 600), default.half_open_timeout),
        half_open_max=table.take("half_open_max", values.integer(1, 1_000_000), default.half_open_max),
        linger=table.take("linger", values.number(0, 300), default.linger),
        ike_lifetime=table.take("ike_lifetime", LIFETIME, default.ike_lifetime),
        child_lifetime=table.take("child_lifetime", LIFETIME, default.child_lifetime),
        child_bytes=table.take("child_bytes", COUNT, default.child_bytes),
        child_packets=table.take("child_packets", COUNT, default.child_packets),
        jitter=table.take("jitter", JITTER, default.jitter),
    )
    table.done()
    return settings


def _lifetimes(table: Table, default: Lifetimes) -> Lifetimes:
    lifetimes = Lifetimes(
        ike=table.take("ike", LIFETIME, default.ike),
        child=table.take("child", LIFETIME, default.child),
        bytes=table.take("bytes", COUNT, default.bytes),
        packets=table.take("packets", COUNT, default.packets),
        jitter=table.take("jitter", JITTER, default.jitter),
    )
    table.done()
    return lifetimes


def _plugins(top: Table, base: Path) -> PluginsConfig:
    table = top.table("plugins")
    paths = table.sequence(
        "paths", values.path(base), example='a list of paths such as ["plugins/packing.py"]', default=()
    )
    table.done()
    return PluginsConfig(paths=paths)
