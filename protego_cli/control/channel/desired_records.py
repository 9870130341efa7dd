"""The records of desired state: what a data node is to hold, each with a type and a key.

A node holds under a key what the GMN last put there. Which roles a record is for is said of it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protego_cli.config.model import Rate, Role
from protego_cli.control.channel.message import Key, Record
from protego_cli.wire.selectors import TrafficSelector

# ---- several roles


class Neighbour(Record, frozen=True):
    """A node this one exchanges tags with, and the key of the pair."""

    name: str
    role: Role
    address: str
    esp_port: int  # of a GPN; 0 otherwise
    vxlan_port: int  # of a GPN or GEN; 0 otherwise
    tag_key: bytes

    @property
    def key(self) -> Key:
        return "neighbour", self.name

    def __repr__(self) -> str:
        return f"Neighbour({self.name}, {self.role}, {self.address})"


class Vtep(msgspec.Struct, frozen=True, array_like=True):
    """Where packets for an inner prefix go on the tenant's side."""

    prefix: str
    address: str
    port: int
    mac: bytes


class Tenant(Record, frozen=True):
    """A tenant's network (GEN and GPN)."""

    name: str
    vni: int
    gateway_mac: bytes
    vteps: tuple[Vtep, ...]
    gateway: tuple[str, ...] = ()  # inner addresses that a GEN answers for

    @property
    def key(self) -> Key:
        return "tenant", self.vni


class Limit(Record, frozen=True):
    """GPN: what a tunnel may carry, by its id; or what all tunnels of a tenant may on this GPN, by the VNI.
    GEN: the coarse ceiling of the same, outward alone. Rates are of inner packets; None for no limit.
    """

    of: str | int
    inward: Rate | None
    outward: Rate | None

    @property
    def key(self) -> Key:
        return "limit", self.of


# ---- GPN


class Park(Record, frozen=True):
    """An inbound SPI whose keys will follow: hold its packets in the bounded buffer."""

    spi: int

    @property
    def key(self) -> Key:
        return "park", self.spi


class Sa(Record, frozen=True):
    """A CHILD_SA's pair of ESP SAs on one GPN: the SAD entry.

    Outbound numbers are taken from [seal_lo, seal_hi), which only this process may ever use. Inbound
    numbers at or below `floor` are never opened; `opens` is False where nothing may be opened at all.
    """

    spi_in: int
    spi_out: int
    tunnel: str
    vni: int
    encryption: str
    key_in: bytes
    key_out: bytes
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    vip: str
    peer: str
    peer_port: int  # 0: raw ESP, without UDP
    seal_lo: int
    seal_hi: int
    floor: int = 0
    opens: bool = True
    window: int = 1024
    expires: float | None = None  # hard lifetime
    integrity: str | None = None  # keyword; None where the encryption is an AEAD
    esn: bool = False  # sequence numbers have 64 bits
    dscp: int | None = None  # of sealed packets; None: that of the inner one
    mtu: int = 1500  # of the path to the peer
    fragment: Literal["inner", "outer"] = "inner"
    mss: int | Literal["auto"] | None = None  # the largest that TCP may announce through the tunnel

    @property
    def key(self) -> Key:
        return "sa", self.spi_in

    def __repr__(self) -> str:
        return f"Sa({self.tunnel}, in={self.spi_in:08x}, out={self.spi_out:08x})"


class Rule(Record, frozen=True):
    """Which SA of this GPN seals a tunnel's packets; without one, the GPN seals none of them."""

    tunnel: str  # of its strands but the first: TENANT/TUNNEL#N (docs/architecture.md)
    spi_in: int
    direct: bool = True  # also those that VTEPs send straight here, which else go on to a GEN

    @property
    def key(self) -> Key:
        return "rule", self.tunnel


# ---- GIN


class Peer(Record, frozen=True):
    """GIN: a tunnel names this address as its peer's, so what comes from there is no stranger's."""

    address: str

    @property
    def key(self) -> Key:
        return "peer", self.address


class Steer(Record, frozen=True):
    """GIN: this inbound SPI goes to that GPN."""

    spi: int
    gpn: str
    peer: str
    peer_port: int  # 0: raw ESP, without UDP
    ceiling: Rate | None = None  # coarse: what is above is not passed on

    @property
    def key(self) -> Key:
        return "steer", self.spi


# ---- GEN


class Tun(Record, frozen=True):
    """GEN: make this device; it is the tenant's VTEP."""

    tenant: str
    vni: int
    mac: bytes  # of the VTEP
    gateway_mac: bytes
    device: str
    netns: str | None
    addresses: tuple[str, ...]
    mtu: int

    @property
    def key(self) -> Key:
        return "tun", self.vni


class Route(Record, frozen=True):
    """GEN: a tunnel's remote prefixes in a VNI go to that GPN. Replaced atomically."""

    tunnel: str  # as in a Rule
    vni: int
    prefixes: tuple[str, ...]
    gpn: str

    @property
    def key(self) -> Key:
        return "route", self.tunnel


AnyRecord = Neighbour | Tenant | Tun | Park | Limit | Sa | Rule | Peer | Steer | Route
