"""What goes into the IKE engine and what comes out: the data of its five verbs.

A *ticket* names a request of the peer whose response the engine holds until the driver accepts or rejects
it, because the answer reveals state that must first stand on the data nodes. A *token* names an exchange
that the driver started; exactly one of its outcome events bears it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from protego_cli.config.model import Encapsulation
from protego_cli.ike.record import Negotiation
from protego_cli.wire.selectors import TrafficSelector


class Path(NamedTuple):
    """One way between the gateway and a peer: addresses as text, UDP ports."""

    local: str
    local_port: int
    remote: str
    remote_port: int


class Datagram(NamedTuple):
    """An IKE message without non-ESP marker; who owns the socket adds one on port 4500 (RFC 3948 2.2)."""

    path: Path
    data: bytes


@dataclass(frozen=True)
class Policy:
    """One tunnel as the engine needs it (an entry of the SPD and PAD, RFC 4301 4.4)."""

    tunnel: str  # "acme/hq"
    remote: str | None  # the peer's address, or None for any
    local_id: str
    remote_id: str
    psk: bytes = field(repr=False)
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    ike: tuple[str, ...]  # proposals in order of preference, "aes256gcm16-prfsha256-x25519"
    esp: tuple[str, ...]  # "aes256gcm16-x25519" (rekey with PFS), "aes256gcm16"
    encapsulation: Encapsulation = "force"
    ike_lifetime: float = 14400.0  # seconds: the hard limit (`ike.lifetimes`)
    jitter: float = 0.1

    def mirrored(self, remote: str) -> Policy:
        """The same tunnel as its other end has it, which finds us at `remote`."""
        return replace(
            self,
            remote=remote,
            local_id=self.remote_id,
            remote_id=self.local_id,
            local_ts=self.remote_ts,
            remote_ts=self.local_ts,
        )


@dataclass(frozen=True)
class ChildSa:
    """A negotiated pair of ESP SAs. Keys are keying material: cipher key, salt (RFC 4106 8.1) and integrity
    key, what there is of them.
    """

    tunnel: str
    spi_in: int
    spi_out: int
    encryption: str  # keyword
    key_in: bytes = field(repr=False)
    key_out: bytes = field(repr=False)
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    path: Path  # where the peer is; with a NAT, or encapsulation that is forced, port 4500
    suite: str  # "aes256gcm16" or "aes256gcm16-x25519", for people
    integrity: str | None = None  # keyword; None with an AEAD
    esn: bool = False
    raw: bool = False  # ESP without UDP

    @property
    def peer(self) -> tuple[str, int]:
        """Where its ESP goes; port 0 without UDP."""
        return self.path.remote, 0 if self.raw else self.path.remote_port


@dataclass(frozen=True)
class Standing:
    """An IKE_SA with a handle, and its CHILD_SAs, the oldest first: what the driver knows, or has to learn
    after a restart.
    """

    ike: int
    tunnel: str
    path: Path
    initiator: bool
    suite: str
    children: tuple[ChildSa, ...]
    leaving: frozenset[int]  # inbound SPIs of those that are being deleted, or that the peer will delete
    closing: bool  # we are deleting it


# ---- events


@dataclass(frozen=True)
class IkeEstablished:
    ike: int  # the engine's handle of the IKE_SA
    tunnel: str
    path: Path
    initiator: bool
    suite: str
    token: int | None  # of `initiate`, when we initiated


CLOSED_BY_US: Final = "closed by us"
CLOSED_BY_PEER: Final = "the peer deleted it"


@dataclass(frozen=True)
class IkeClosed:
    """The IKE_SA is gone, and its CHILD_SAs with it; the reason is one of the above if somebody wanted it."""

    ike: int
    tunnel: str
    reason: str
    children: tuple[int, ...]  # inbound SPIs


@dataclass(frozen=True)
class IkeRekeyed:
    """The IKE_SA has new keys and SPIs, and is the same for all else. It bears the token of `rekey_ike` where
    that asked for it, no matter whose rekey it was in the end.
    """

    token: int | None
    ike: int
    tunnel: str
    suite: str
    initiator: bool  # whether the rekey was ours


@dataclass(frozen=True)
class ChildOffered:
    """The peer asked for a CHILD_SA (in IKE_AUTH, one more, or a rekey): install, then `accept(ticket)`."""

    ticket: int
    ike: int
    child: ChildSa
    replaces: int | None  # inbound SPI of the SA being rekeyed


@dataclass(frozen=True)
class ChildEstablished:
    """Our request for a CHILD_SA (in IKE_AUTH, one more, or a rekey) was answered.

    `redundant`: the peer's rekey crossed ours and won (RFC 7296 2.8.1). Do not use this child: once the
    peer's is accepted the engine deletes it by itself; ChildDeleted says so under a token of its own.
    """

    token: int
    ike: int
    child: ChildSa
    replaces: int | None
    redundant: bool = False


@dataclass(frozen=True)
class ChildDeleteOffered:
    """The peer deletes a CHILD_SA: flip, pass the barrier, then `accept(ticket)`."""

    ticket: int
    ike: int
    tunnel: str
    spi_in: int


@dataclass(frozen=True)
class IkeDeleteOffered:
    """The peer deletes an IKE_SA that has CHILD_SAs: seal on others, where there are any, then
    `accept(ticket)`; IkeClosed follows.
    """

    ticket: int
    ike: int
    tunnel: str


@dataclass(frozen=True)
class ChildDeleted:
    """Our DELETE was answered (also when the peer's crossed it)."""

    token: int
    tunnel: str
    spi_in: int


@dataclass(frozen=True)
class Alive:
    """An empty INFORMATIONAL of ours made its round trip."""

    token: int


@dataclass(frozen=True)
class ExchangeFailed:
    """An exchange that the driver started failed; nothing that existed before it has changed."""

    token: int
    tunnel: str
    notify: int | None  # the peer's error NOTIFY, None for a timeout or a local reason
    detail: str


@dataclass(frozen=True)
class NegotiationFailed:
    """A handshake or negotiation that a peer started failed: for the log and `status`."""

    tunnel: str | None
    path: Path
    notify: int
    detail: str  # what differed: ours and theirs


@dataclass(frozen=True)
class Negotiated:
    """A negotiation has ended, well or not: what each side wanted. For `protego explain`."""

    record: Negotiation


@dataclass(frozen=True)
class PeerMoved:
    """The peer's address or port changed, proven by an authenticated message (RFC 7296 2.23)."""

    ike: int
    tunnel: str
    path: Path


Event = (
    IkeEstablished
    | IkeClosed
    | IkeRekeyed
    | ChildOffered
    | ChildEstablished
    | ChildDeleteOffered
    | IkeDeleteOffered
    | ChildDeleted
    | Alive
    | ExchangeFailed
    | NegotiationFailed
    | Negotiated
    | PeerMoved
)
