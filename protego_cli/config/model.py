"""The cluster file as data. `load.py` fills it from TOML; nothing here reads a file.

Addresses are validated text, prefixes canonical CIDR text, MACs 6 bytes, paths absolute.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

import msgspec

Role = Literal["gmn", "gin", "gen", "gpn"]
MAX_PROPOSALS = 64  # for an SA: as many as we take from a peer
MAX_SELECTORS = 64  # of a side of a tunnel: work and messages of IKE stay bounded
AUTO = "auto"  # as a steering backend: the best that can run
Encapsulation = Literal["auto", "force"]
"""Of ESP in UDP: where there is a NAT, or always (RFC 7296 2.23)."""
ROLES: tuple[Role, ...] = ("gmn", "gin", "gen", "gpn")


class Ports(msgspec.Struct, frozen=True):
    """UDP and TCP ports of a node; 0 for `ike` means that port is not listened on."""

    ike: int = 500  # GIN, on each VIP
    natt: int = 4500  # GIN, on each VIP
    esp: int = 4500  # GPN; the source port of its ESP to peers, so the same as natt
    vxlan: int = 4789  # GPN, GEN
    fabric: int = 4501  # GIN, GEN: echoes and envelopes come here; GMN: envelopes
    control: int = 7443  # GMN, TCP


class Node(msgspec.Struct, frozen=True):
    """One process of the cluster: an entry of [nodes], an instance of one, or a pool's."""

    name: str
    role: Role
    address: str
    ports: Ports = Ports()
    ingress: str = ""  # GIN: its steering backend, where it is not that of the cluster
    capacity: float = 1.0  # GPN: CPU seconds per second that its tunnels may take; 1.0 is one core
    group: str = ""  # the entry of the file, where `instances` made several nodes of it
    pool: str = ""  # the pool that starts and stops it
    bandwidth: int = 0  # GPN: bits per second of inner packets, both ways together; 0: what its CPU takes

    def listens(self) -> list[tuple[str, str, int]]:
        """(port's name, protocol, port) bound on its own address; several nodes may serve a VIP."""
        ports = self.ports
        return {
            "gmn": [("control", "tcp", ports.control), ("fabric", "udp", ports.fabric)],
            "gin": [("fabric", "udp", ports.fabric)],
            "gen": [("vxlan", "udp", ports.vxlan)],
            "gpn": [("esp", "udp", ports.esp), ("vxlan", "udp", ports.vxlan)],
        }.get(self.role, [])


Setting = str | int | float | bool | tuple[str, ...]


class ProvisionerConfig(msgspec.Struct, frozen=True):
    """Who starts and stops a pool's nodes; what the settings mean, the plugin of this kind knows."""

    kind: str
    settings: tuple[tuple[str, Setting], ...] = ()


class PoolConfig(msgspec.Struct, frozen=True):
    """Nodes that come and go: NAME-1, NAME-2 and so on, at consecutive addresses."""

    name: str
    role: Role
    addresses: tuple[str, str]  # the first and the last
    minimum: int
    maximum: int
    provisioner: ProvisionerConfig
    ports: Ports = Ports()
    capacity: float = 1.0  # of each
    launch: float = 120.0  # seconds that one may take from its launch until it is connected
    bandwidth: int = 0

    @property
    def room(self) -> int:
        """How many nodes the addresses are enough for."""
        first, last = map(ipaddress.IPv4Address, self.addresses)
        return int(last) - int(first) + 1

    def node(self, number: int) -> Node:
        """Its node of this number, from 1 on."""
        address = str(ipaddress.IPv4Address(self.addresses[0]) + number - 1)
        return Node(
            f"{self.name}-{number}",
            self.role,
            address,
            self.ports,
            capacity=self.capacity,
            pool=self.name,
            bandwidth=self.bandwidth,
        )

    def nodes(self, count: int | None = None) -> list[Node]:
        """The first nodes; all that it may have when left out."""
        return [self.node(number) for number in range(1, (self.maximum if count is None else count) + 1)]

    def number(self, name: str) -> int | None:
        """Which of its nodes this is; None for none that its addresses are enough for."""
        own, _, number = name.rpartition("-")
        fits = own == self.name and number.isdecimal() and not number.startswith("0") and len(number) < 7
        return int(number) if fits and int(number) <= self.room else None


class ElasticConfig(msgspec.Struct, frozen=True):
    """When the pools grow, shrink and are packed anew. Times in seconds."""

    mode: Literal["off", "dry-run", "on"] = "off"
    interval: float = 180.0  # between consolidations
    high: float = 0.9  # of its capacity: what a GPN beyond it carries is too much, and goes elsewhere at once
    low: float = 0.8  # below it, a GPN that was too hot counts as relieved
    hold: float = 60.0  # that an empty GPN is kept for what may come
    moves_per_hour: int = 20  # of one tunnel
    at_once: int = 16  # migrations side by side
    window: float = 10.0  # over which loads are averaged


class VtepConfig(msgspec.Struct, frozen=True):
    prefix: str
    address: str
    mac: bytes
    port: int = 4789


class VxlanAttach(msgspec.Struct, frozen=True, tag="vxlan", tag_field="kind"):
    vteps: tuple[VtepConfig, ...]


class TunAttach(msgspec.Struct, frozen=True, tag="tun", tag_field="kind"):
    """A TUN device that a GEN makes, so that a network namespace of its machine is the tenant's network."""

    device: str
    node: str  # the GEN; filled with the first one when left out
    netns: str | None = None  # as `ip netns` names it; None for the machine's own
    address: tuple[str, ...] = ()  # with prefix lengths
    mtu: int | None = None  # None: what reaches every peer whole


class PskAuth(msgspec.Struct, frozen=True, tag="psk", tag_field="kind"):
    file: Path


class Lifetimes(msgspec.Struct, frozen=True):
    """Hard limits; an SA is rekeyed at 80 to 90 % of them (`ike/lifetimes.py`)."""

    ike: float = 4 * 3600.0  # seconds
    child: float = 3600.0
    bytes: int = 0  # of both directions of a CHILD_SA; 0 for no limit
    packets: int = 0
    jitter: float = 0.1  # share of a lifetime over which rekeys are spread


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """A token bucket for IP packets."""

    bits: int  # per second
    burst: int  # bytes that may come at once


class LimitConfig(msgspec.Struct, frozen=True):
    """What a tunnel, or all tunnels of a tenant together, may carry of inner packets; None for no limit."""

    inward: Rate | None = None  # from the peer
    outward: Rate | None = None


class TunnelConfig(msgspec.Struct, frozen=True):
    """A tunnel to a peer; `config/cluster.toml` says what each key is for."""

    name: str
    tenant: str
    peer: str | None  # None for "any"
    local_id: str
    remote_id: str
    auth: PskAuth
    local_ts: tuple[str, ...]  # prefixes on the tenant's side
    remote_ts: tuple[str, ...]  # behind the peer
    ike: tuple[str, ...] = ("aes256gcm16-prfsha256-x25519",)  # proposals, the best first
    esp: tuple[str, ...] = ("aes256gcm16-x25519", "aes256gcm16")
    start: Literal["wait", "auto"] = "wait"
    vip: str = ""  # filled with the first VIP when left out
    window: int = 1024  # of the replay check, in packets
    dscp: Literal["copy", "clear"] | int = "copy"  # of sealed packets: that of the inner one, none, or this
    mtu: int = 1500  # of the path to the peer
    fragment: Literal["inner", "outer"] = "inner"  # what is cut where a sealed packet would not fit
    mss: int | Literal["auto"] | None = None  # the largest that TCP may announce through the tunnel
    encapsulation: Encapsulation = "force"  # filled with that of [cluster] where left out
    lifetimes: Lifetimes = Lifetimes()  # filled with those of [ike] where left out
    limit: LimitConfig = LimitConfig()
    apart: str = ""  # tunnels that name the same share no GPN where that can be helped

    @property
    def path(self) -> tuple[int | str | None, ...]:
        """What decides about long packets and SYNs; it may change while an SA lives."""
        return self.mtu, self.fragment, self.mss

    @property
    def id(self) -> str:
        """TENANT/TUNNEL."""
        return f"{self.tenant}/{self.name}"


class TenantConfig(msgspec.Struct, frozen=True):
    """A customer: one VXLAN network, whose inner addresses may be other tenants' too."""

    name: str
    vni: int
    gateway_mac: bytes
    attach: VxlanAttach | TunAttach
    tunnels: tuple[TunnelConfig, ...]
    gateway: tuple[str, ...] = ()  # inner addresses that GENs answer for, from gateway_mac
    limit: LimitConfig = LimitConfig()  # of all its tunnels together

    @property
    def vteps(self) -> tuple[VtepConfig, ...]:
        """None where a GEN itself is the VTEP."""
        return self.attach.vteps if isinstance(self.attach, VxlanAttach) else ()


class PluginsConfig(msgspec.Struct, frozen=True):
    paths: tuple[Path, ...] = ()  # Python files or packages with hook implementations


class IkeSettings(msgspec.Struct, frozen=True):
    """Times in seconds (RFC 7296 2.4)."""

    retransmit_first: float = 1.0
    retransmit_base: float = 1.8
    retransmit_tries: int = 6
    liveness: float = 30.0  # silence of a peer before we ask
    half_open_timeout: float = 30.0
    half_open_max: int = 1000
    linger: float = 5.0  # how long a replaced inbound SA still opens
    ike_lifetime: float = Lifetimes().ike
    child_lifetime: float = Lifetimes().child
    child_bytes: int = Lifetimes().bytes
    child_packets: int = Lifetimes().packets
    jitter: float = Lifetimes().jitter

    @property
    def lifetimes(self) -> Lifetimes:
        """Those of a tunnel that has none of its own."""
        return Lifetimes(
            self.ike_lifetime, self.child_lifetime, self.child_bytes, self.child_packets, self.jitter
        )

    @property
    def patience(self) -> float:
        """How long a request is repeated before its peer counts as dead."""
        return self.retransmit_first * sum(
            self.retransmit_base**sent for sent in range(self.retransmit_tries + 1)
        )


class Cluster(msgspec.Struct, frozen=True):
    """All that the cluster file says, paths absolute."""

    name: str
    file: Path
    vips: tuple[str, ...]
    pki: Path
    state: Path
    nodes: tuple[Node, ...]  # without those of pools, which are there or not
    tenants: tuple[TenantConfig, ...]
    returns: Literal["direct", "gin"] = msgspec.field(default="direct", name="return")
    """How what GPNs seal reaches the peers: straight from the GPN, or through a GIN."""
    ingress: str = "mux"  # steering backend, or "auto"
    encapsulation: Encapsulation = "force"  # of tunnels that say nothing else
    packing: str = "spread"  # packing policy
    store: str = "sqlite"  # state store
    state_key: Path | None = None  # what the GMN's state is sealed under; None: `state.key` in `pki`
    ike: IkeSettings = IkeSettings()
    plugins: PluginsConfig = PluginsConfig()
    pools: tuple[PoolConfig, ...] = ()
    elastic: ElasticConfig = ElasticConfig()

    @property
    def master_key(self) -> Path:
        """The file of the key that the GMN's state is sealed under."""
        return self.state_key or self.pki / "state.key"

    def nodes_of(self, role: Role) -> list[Node]:
        return [node for node in self.nodes if node.role == role]

    def node(self, name: str) -> Node | None:
        """A node of the file, or one that a pool may have."""
        named = next((node for node in self.nodes if node.name == name), None)
        return named or self.pooled(name)

    def pooled(self, name: str) -> Node | None:
        """A node that a pool may have."""
        for pool in self.pools:
            if (number := pool.number(name)) is not None:
                return pool.node(number)
        return None

    def pool(self, name: str) -> PoolConfig | None:
        return next((pool for pool in self.pools if pool.name == name), None)

    def tunnels(self) -> list[TunnelConfig]:
        return [tunnel for tenant in self.tenants for tunnel in tenant.tunnels]

    @property
    def wants_raw_esp(self) -> bool:
        """Whether some tunnel is to do without UDP where it can."""
        return any(tunnel.encapsulation == "auto" for tunnel in self.tunnels())
