"""Every message of the control channel, and the records of desired state.

Desired state is a set of records, each with a type and a key; a node holds what the GMN last put. The GMN
sends `Sync` (everything) when a node connects and `Update` (what changed) afterwards; both carry the epoch
and a revision, applying one twice is harmless, and an epoch below the highest ever seen is refused. The
answer `Applied` means: the data path acts on it from now on, but for the records that it names.

Node addresses are text, SPIs and VNIs integers, times wall-clock seconds, MACs and keys bytes. The
fields in `SECRETS` hold key material and never show in a repr.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from protego_cli.config.diff import Landed
from protego_cli.config.model import Rate
from protego_cli.control.channel.applied import Applied as Applied
from protego_cli.control.channel.applied import Refusal as Refusal
from protego_cli.control.channel.limit_record import Limit as Limit
from protego_cli.control.channel.message import SECRETS as SECRETS
from protego_cli.control.channel.message import Amount, Count, Number, Port
from protego_cli.control.channel.message import Message as Message
from protego_cli.control.channel.message import Record as Record
from protego_cli.control.channel.message import Reply as Reply
from protego_cli.control.channel.message import Request as Request
from protego_cli.control.channel.pool_messages import PoolReply, PoolRequest
from protego_cli.control.packing.measured import OfferedLoad as OfferedLoad
from protego_cli.control.packing.measured import SuiteCost as SuiteCost
from protego_cli.wire.selectors import TrafficSelector

Role = Literal["gmn", "gin", "gen", "gpn"]


# ---- records of every data node


class Neighbour(Record, frozen=True):
    """A node this one exchanges tags with, and the key of the pair."""

    name: str
    role: Role
    address: str
    esp_port: int  # of a GPN; 0 otherwise
    vxlan_port: int  # of a GPN or GEN; 0 otherwise
    tag_key: bytes

    @property
    def key(self) -> tuple[str, int | str]:
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
    def key(self) -> tuple[str, int | str]:
        return "tenant", self.vni


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
    def key(self) -> tuple[str, int | str]:
        return "tun", self.vni


# ---- records of a GPN


class Park(Record, frozen=True):
    """An inbound SPI whose keys will follow: hold its packets in the bounded buffer."""

    spi: int

    @property
    def key(self) -> tuple[str, int | str]:
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
    def key(self) -> tuple[str, int | str]:
        return "sa", self.spi_in

    def __repr__(self) -> str:
        return f"Sa({self.tunnel}, in={self.spi_in:08x}, out={self.spi_out:08x})"


class Rule(Record, frozen=True):
    """Which SA of this GPN seals a tunnel's packets; without one, the GPN seals none of them."""

    tunnel: str  # of its strands but the first: TENANT/TUNNEL#N (docs/architecture.md)
    spi_in: int
    direct: bool = True  # also those that VTEPs send straight here, which else go on to a GEN

    @property
    def key(self) -> tuple[str, int | str]:
        return "rule", self.tunnel


# ---- records of a GIN and a GEN


class Steer(Record, frozen=True):
    """GIN: this inbound SPI goes to that GPN."""

    spi: int
    gpn: str
    peer: str
    peer_port: int  # 0: raw ESP, without UDP
    ceiling: Rate | None = None  # coarse: what is above is not passed on

    @property
    def key(self) -> tuple[str, int | str]:
        return "steer", self.spi


class Route(Record, frozen=True):
    """GEN: a tunnel's remote prefixes in a VNI go to that GPN. Replaced atomically."""

    tunnel: str  # as in a Rule
    vni: int
    prefixes: tuple[str, ...]
    gpn: str

    @property
    def key(self) -> tuple[str, int | str]:
        return "route", self.tunnel


AnyRecord = Neighbour | Tenant | Tun | Park | Limit | Sa | Rule | Steer | Route
Key = tuple[str, int | str]


# ---- GMN -> node


class Sync(Request, frozen=True):
    """The whole desired state; whatever the node holds beyond it goes."""

    epoch: int
    revision: int
    records: tuple[AnyRecord, ...]


class Update(Request, frozen=True):
    """What changed since `revision - 1`. Puts happen before drops. A node that missed one asks for a Sync
    by answering `Stale`.

    For a GEN, `barriers` names GPNs: after applying, a barrier goes to each behind all that was forwarded
    to it, and `Applied` is sent only when all have echoed.
    """

    epoch: int
    revision: int
    put: tuple[AnyRecord, ...] = ()
    drop: tuple[Key, ...] = ()
    barriers: tuple[str, ...] = ()


class GetMarks(Request, frozen=True):
    """GIN: the highest ESP sequence number forwarded so far for each SPI (0 when none)."""

    spis: tuple[int, ...]


class Stale(Reply, frozen=True):
    """The update does not follow what this node has; send a Sync."""

    revision: int


class Marks(Reply, frozen=True):
    marks: dict[int, Number]


class Failed(Reply, frozen=True):
    """The request was not carried out. `code` is an `errors.Exit` value."""

    message: str
    code: int = 1


# ---- node -> GMN


class Hello(Request, frozen=True):
    """First message on every connection; the identity itself comes from the certificate.

    `boot` is random per process, so that the GMN knows a restart (new sealing ranges) from a reconnection.
    """

    boot: str
    version: str
    epoch: int  # the highest ever seen by this process
    raw_esp: bool = False  # GIN: sends and receives ESP without UDP


class Welcome(Reply, frozen=True):
    epoch: int
    envelope_key: bytes = b""  # GIN: of its pair with the GMN


class SaUsage(msgspec.Struct, frozen=True, array_like=True):
    """Cumulative since this process installed the SA."""

    spi_in: int
    packets_in: Count
    bytes_in: Count
    packets_out: Count
    bytes_out: Count
    highest_in: Number  # highest authenticated sequence number
    next_out: Number  # next number to seal
    limited_packets_in: Count = 0  # dropped by limits
    limited_bytes_in: Count = 0
    limited_packets_out: Count = 0
    limited_bytes_out: Count = 0


class Report(Request, frozen=True):
    """Sent every second, and at once when `urgent` reasons arise. No reply is awaited (`Noted`)."""

    cpu: Amount  # CPU seconds per second of this process
    usage: tuple[SaUsage, ...] = ()
    counters: dict[str, Count] = msgspec.field(default_factory=dict)
    silent: tuple[str, ...] = ()  # GPNs whose probes this GIN or GEN misses
    offered: tuple[OfferedLoad, ...] = ()  # what has changed
    costs: tuple[SuiteCost, ...] = ()


class FirstPacket(Request, frozen=True):
    """GPN: a valid packet arrived on an SA that had received none (RFC 7296 2.8: now seal on it)."""

    spi_in: int


class PeerAddress(Request, frozen=True):
    """GPN: authenticated packets of this SA now come from another address or port (RFC 7296 2.23)."""

    spi_in: int
    address: str
    port: Port


class RangeLow(Request, frozen=True):
    """GPN: three quarters of a sealing range are used: rekey."""

    spi_in: int


class Noted(Reply, frozen=True):
    pass


# ---- operator -> GMN


class GetStatus(Request, frozen=True):
    pass


class NodeStatus(msgspec.Struct, frozen=True):
    name: str
    role: Role
    state: str  # "up" or "down"
    tunnels: int
    cpu: float
    counters: dict[str, int] = {}
    load: float | None = None  # of a GPN: its tunnels' CPU shares and its own; 1.0 is one core
    capacity: float | None = None  # of a GPN, likewise
    draining: bool = False  # takes no tunnels
    refused: int = 0  # records of its desired state that it cannot act on
    reason: str | None = None  # why it refuses the first of them


class TunnelStatus(msgspec.Struct, frozen=True):
    id: str
    state: str  # "down", "connecting", "up"
    gpn: str | None
    spi_in: str | None  # eight hexadecimal digits
    spi_out: str | None
    suite: str | None
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int
    peer: str | None = None
    error: str | None = None  # why the last negotiation failed
    pps_in: float = 0.0  # packets per second, averaged over ten seconds
    pps_out: float = 0.0
    bps_in: float = 0.0  # bits per second of inner packets, likewise
    bps_out: float = 0.0
    cpu: float = 0.0  # its share of its GPN's CPU
    held: bool = False  # down by operator, until `tunnel up`
    limited_in: int = 0  # packets that its GPN dropped for the tunnel's rate limit or its tenant's
    limited_out: int = 0


class Status(Reply, frozen=True):
    epoch: int
    nodes: tuple[NodeStatus, ...]
    tunnels: tuple[TunnelStatus, ...]


class Migrate(Request, frozen=True):
    tunnel: str
    to: str


class Migrated(Reply, frozen=True):
    tunnel: str
    source: str
    to: str
    method: str  # "rekey"
    rekey_ms: float
    distribute_ms: float
    total_ms: float


class ShowTunnel(Request, frozen=True):
    """All that is known of a tunnel."""

    tunnel: str


class IkeSaDetail(msgspec.Struct, frozen=True):
    spi_i: str
    spi_r: str
    suite: str
    initiator: str  # "gateway" or "peer"
    local: str  # address:port
    peer: str
    nat: bool  # the peer is behind one
    encapsulated: bool  # its ESP is in UDP
    since: float | None  # wall time
    heard: float  # wall time of the peer's last message
    rekey: float | None  # wall time of the next rekey
    expires: float | None  # wall time
    exchanges: int  # of ours, under way or waiting


class ChildSaDetail(msgspec.Struct, frozen=True):
    spi_in: str
    spi_out: str
    state: str  # "sealing", "successor", "standing", "retiring"
    gpn: str
    suite: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]
    peer: str  # address:port that its ESP goes to
    since: float  # wall time
    rekey: float | None  # wall time of the next rekey by age
    expires: float | None  # wall time
    opens: bool
    seal_lo: int
    seal_hi: int
    sealed: int  # numbers used of this range
    highest_in: int
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int


class TunnelDetail(Reply, frozen=True):
    status: TunnelStatus
    config: dict[str, str | list[str] | None]  # the tunnel's keys in the cluster file
    ike_sas: tuple[IkeSaDetail, ...]
    child_sas: tuple[ChildSaDetail, ...]


class Explain(Request, frozen=True):
    """The last negotiations of a tunnel; None: those that were no tunnel's."""

    tunnel: str | None = None


class ExplanationRow(msgspec.Struct, frozen=True):
    topic: str
    ours: str
    theirs: str
    result: str  # "agreed", "differs", what was agreed, or nothing


class Explanation(msgspec.Struct, frozen=True):
    """One negotiation."""

    tunnel: str | None
    time: float  # wall time
    exchange: str  # how far it came
    initiator: str  # "gateway" or "peer"
    local: str  # address:port
    peer: str
    nat: bool  # the peer is behind one
    authentic: bool  # the peer has proven itself; else anybody may have sent what is theirs
    ok: bool
    result: str
    notify: str | None
    rows: tuple[ExplanationRow, ...]
    advice: tuple[str, ...]


class Explanations(Reply, frozen=True):
    """The newest first."""

    status: TunnelStatus | None
    found: tuple[Explanation, ...]


class UpTunnel(Request, frozen=True):
    tunnel: str


class DownTunnel(Request, frozen=True):
    tunnel: str


class RekeyTunnel(Request, frozen=True):
    tunnel: str
    ike: bool = False  # the IKE_SA, not the CHILD_SA


class Acted(Reply, frozen=True):
    """A tunnel after what the operator did to it."""

    tunnel: TunnelStatus
    seconds: float
    note: str | None = None


class Event(Message, frozen=True):
    """Something that happened (`events.KINDS`). As text it is a line of the log."""

    number: int
    time: float
    kind: str
    severity: str  # "info", "warning", "error"
    tunnel: str | None = None
    node: str | None = None
    spi: str | None = None  # eight hexadecimal digits
    reason: str | None = None
    details: dict[str, str | int | float] = msgspec.field(default_factory=dict)

    def fields(self) -> dict[str, str | int | float]:
        """What is known of it, by name; the reason, which may be long, comes last."""
        named = {"tunnel": self.tunnel, "node": self.node, "spi": self.spi}
        known = {name: value for name, value in named.items() if value is not None} | self.details
        return known if self.reason is None else known | {"reason": self.reason}

    def __str__(self) -> str:
        return " ".join((self.kind, *(f"{name}={value}" for name, value in self.fields().items())))


class GetEvents(Request, frozen=True):
    """What happened behind event `after` of the GMN's life `epoch` (0: whichever it is)."""

    epoch: int = 0
    after: int = 0
    last: int | None = None  # no more than these, the newest
    since: float | None = None  # wall time
    tunnel: str | None = None
    node: str | None = None
    wait: Amount = 0.0  # seconds to wait for one, when there is none


class Events(Reply, frozen=True):
    epoch: int
    last: int  # what to ask for is behind this
    lost: int  # events between `after` and the oldest that is still known
    events: tuple[Event, ...]


class Reload(Request, frozen=True):
    """Read the cluster file again: that of the GMN."""

    dry_run: bool = False  # only say what would change


class Reloaded(Reply, frozen=True):
    """With `problems`, the file is not valid; with a change that is refused, the cluster cannot take it now.
    Either way nothing has changed.
    """

    file: str
    applied: bool
    changes: tuple[Landed, ...]
    problems: tuple[str, ...]


class ListNames(Request, frozen=True):
    """For shell completion."""


class Names(Reply, frozen=True):
    tunnels: tuple[str, ...]
    nodes: tuple[str, ...]


AnyRequest = (
    Sync
    | Update
    | GetMarks
    | Hello
    | Report
    | FirstPacket
    | PeerAddress
    | RangeLow
    | GetStatus
    | Migrate
    | PoolRequest
    | Reload
    | ListNames
    | GetEvents
    | ShowTunnel
    | Explain
    | UpTunnel
    | DownTunnel
    | RekeyTunnel
)
AnyReply = (
    Applied
    | Stale
    | Marks
    | Failed
    | Welcome
    | Noted
    | Status
    | Migrated
    | PoolReply
    | Names
    | Events
    | TunnelDetail
    | Acted
    | Explanations
    | Reloaded
)
