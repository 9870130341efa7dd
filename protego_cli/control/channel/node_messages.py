"""What the GMN and a data node say to each other.

The GMN sends `Sync` (the whole desired state) when a node connects and `Update` (what changed) afterwards;
both carry the epoch and a revision, applying one twice is harmless, and an epoch below the highest ever seen
is refused. The answer `Applied` means: the data path acts on it from now on, but for the records that it
names.
"""

from __future__ import annotations

import msgspec

from protego_cli.control.channel.desired_records import AnyRecord
from protego_cli.control.channel.message import Amount, Count, Key, Number, Port, Reply, Request

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


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A record that a node cannot act on."""

    kind: str
    of: int | str
    reason: str  # empty, where many are refused at once, of all but the first

    @property
    def key(self) -> Key:
        return self.kind, self.of


class Applied(Reply, frozen=True):
    """The data path acts on what was told, but for the records `refused`. Where there are such, the Update's
    barriers were not sent.
    """

    revision: int
    refused: tuple[Refusal, ...] = ()


class Stale(Reply, frozen=True):
    """The update does not follow what this node has; send a Sync."""

    revision: int


class GetMarks(Request, frozen=True):
    """GIN: the highest ESP sequence number forwarded so far for each SPI (0 when none)."""

    spis: tuple[int, ...]


class Marks(Reply, frozen=True):
    marks: dict[int, Number]


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


class OfferedLoad(msgspec.Struct, frozen=True, array_like=True):
    """GIN, GEN: what has come for an SPI, or a tunnel or strand, below its ceiling: cumulative."""

    of: int | str
    bytes: Count  # of inner packets


class SuiteCost(msgspec.Struct, frozen=True, array_like=True):
    """GPN: what a suite costs on its machine, in CPU seconds, without what any packet costs."""

    suite: str  # "aes256gcm16", "aes256-sha256"
    open_packet: Amount
    open_byte: Amount
    seal_packet: Amount
    seal_byte: Amount


class Report(Request, frozen=True):
    """Sent every second, and at once when a GIN or GEN no longer hears a GPN, or hears it again."""

    cpu: Amount  # CPU seconds per second of this process
    usage: tuple[SaUsage, ...] = ()
    counters: dict[str, Count] = msgspec.field(default_factory=dict)
    silent: tuple[str, ...] = ()  # GPNs whose probes this GIN or GEN misses
    offered: tuple[OfferedLoad, ...] = ()  # what has changed
    costs: tuple[SuiteCost, ...] = ()
    clock: Amount = 0.0  # the node's wall time; 0 where it does not say


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


Notice = FirstPacket | PeerAddress | RangeLow
"""What a GPN says of an SA when it happens."""

NodeRequest = Sync | Update | GetMarks | Hello | Report | Notice
NodeReply = Applied | Stale | Marks | Welcome | Noted
