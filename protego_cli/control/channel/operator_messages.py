"""What an operator asks the GMN, and its answers; about pools and jobs see `pool_messages.py`."""

from __future__ import annotations

import msgspec

from protego_cli.config.diff import Landed
from protego_cli.config.model import Role
from protego_cli.control.channel.message import Amount, Message, Reply, Request
from protego_cli.control.channel.pool_messages import PoolReply, PoolRequest


class GetStatus(Request, frozen=True):
    pass


class NodeStatus(msgspec.Struct, frozen=True):
    """A node as it reported last; docs/cli.md has these as `protego status --json` does."""

    name: str
    role: Role
    state: str  # "up" or "down"
    tunnels: int
    cpu: float  # of its process; 1.0 is one core
    counters: dict[str, int] = {}
    load: float | None = None  # of a GPN: its tunnels' CPU shares and its own; 1.0 is one core
    capacity: float | None = None  # of a GPN, likewise
    draining: bool = False  # takes no tunnels
    refused: int = 0  # records of its desired state that it cannot act on
    reason: str | None = None  # why it refuses the first of them


class TunnelStatus(msgspec.Struct, frozen=True):
    """A tunnel: where it lies, and what it has carried; bytes are those of inner packets."""

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
    error: str | None = None  # why the last negotiation failed, or why it went down
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
    """A migration that is done, and how long it took, in milliseconds."""

    tunnel: str
    source: str
    to: str
    method: str  # "rekey"
    rekey_ms: float  # until the peer has answered the rekey
    distribute_ms: float  # from then until the whole data path uses the new SA
    total_ms: float  # from the beginning until the peer has confirmed the end of the old SA


class ShowTunnel(Request, frozen=True):
    """All that is known of a tunnel."""

    tunnel: str


class IkeSaDetail(msgspec.Struct, frozen=True):
    """An IKE_SA of a tunnel; times are seconds since 1970."""

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
    """A CHILD_SA of a tunnel on a GPN, which seals with the numbers [seal_lo, seal_hi)."""

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


OperatorRequest = (
    GetStatus
    | Migrate
    | ShowTunnel
    | Explain
    | UpTunnel
    | DownTunnel
    | RekeyTunnel
    | GetEvents
    | Reload
    | ListNames
    | PoolRequest
)
OperatorReply = (
    Status | Migrated | TunnelDetail | Explanations | Acted | Events | Reloaded | Names | PoolReply
)
