"""A CHILD_SA on a GPN: what the control plane puts, and the pair of SAs that comes of it.

A second put for the same SA never starts it afresh: the window stays where it is, a floor only rises, and
numbers only move on to a range that repeats none.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from protego_cli.config.model import Rate
from protego_cli.crypto.algorithms import EspSuite, RandomSource
from protego_cli.esp.aead import ALIGNMENT
from protego_cli.esp.doors import Doors
from protego_cli.esp.limits import Bucket
from protego_cli.esp.outbox import Address, Port, Way
from protego_cli.esp.sa import InboundSa, OutboundSa
from protego_cli.esp.tenants import Delivery
from protego_cli.wire import ecn
from protego_cli.wire.inner import Buffer
from protego_cli.wire.mss import HEADERS4, HEADERS6, Ceiling
from protego_cli.wire.returning import build_header
from protego_cli.wire.selectors import TrafficSelector

logger = logging.getLogger(__name__)

MAX_VERDICTS = 4096  # remembered per SA
MAX_USUAL = 64  # lengths of which an SA remembers what is usual
IP_HEADER: Final = 20
UDP_HEADER: Final = 8  # before ESP, where it is in UDP (RFC 3948)
LEAST6: Final = 1280  # what every IPv6 link takes (RFC 8200 5)
ERRORS: Final = 50  # ICMP errors a second for one SA, and as many at once

Fragment = Literal["inner", "outer"]
"""What is cut where a sealed packet would not fit: the tenant's packet, or the ESP packet."""

Mss = int | Literal["auto"] | None
"""The largest that TCP SYNs may announce; "auto" for what fits the path."""

Row = tuple[bytes, ...]
"""What decides about an opened packet: head up to the length, addresses, trailer."""

Verdict = tuple[Delivery, int] | str
"""How an opened packet leaves and how long its inner packet is, or the counter of the reason of a drop."""


def leaving(verdict: Verdict) -> Delivery | str:
    """How a packet of this verdict leaves, or the counter of the reason of a drop."""
    return verdict if isinstance(verdict, str) else verdict[0]


def only_delivery(verdicts: Sequence[Verdict]) -> Delivery | None:
    """How all packets of these verdicts leave, if that is one way."""
    delivery: Delivery | None = None
    for verdict in {id(verdict): verdict for verdict in verdicts}.values():  # a few, for many packets
        if isinstance(verdict, str) or verdict[0] != (delivery or verdict[0]):
            return None
        delivery = verdict[0]
    return delivery


@dataclass(frozen=True, eq=False, slots=True)
class Usual:
    """What a whole batch of opened packets of one length was lately, so the next one may be. It is of one SA,
    and no other is the same, whatever it says.
    """

    header: bytes  # VXLAN and Ethernet headers that they got
    length: int  # of the inner packets
    tail: int  # of their trailers
    version: int


@dataclass(frozen=True)
class SaEntry:
    """An entry of the SAD. Keys are keying material: cipher key, salt (RFC 4106 8.1), integrity key."""

    spi_in: int
    spi_out: int
    tunnel: str
    vni: int
    suite: EspSuite
    key_in: bytes = field(repr=False)
    key_out: bytes = field(repr=False)
    local_ts: tuple[TrafficSelector, ...]
    remote_ts: tuple[TrafficSelector, ...]
    vip: str
    peer: Address  # with port 0: raw ESP, without UDP
    seal_lo: int
    seal_hi: int
    floor: int = 0
    opens: bool = True
    window: int = 1024
    expires: float | None = None
    dscp: int | None = None  # of sealed packets; None: that of the inner one
    mtu: int = 1500  # of the path to the peer
    fragment: Fragment = "inner"
    mss: Mss = None

    @property
    def path(self) -> tuple[int, Fragment, Mss]:
        """What decides what becomes of long packets, and of SYNs."""
        return self.mtu, self.fragment, self.mss

    @property
    def raw(self) -> bool:
        """Whether its ESP goes without UDP."""
        return not self.peer[1]

    def same_sa(self, other: SaEntry) -> bool:
        """Whether both are one SA, perhaps with other limits or another peer address."""
        return all(getattr(self, name) == getattr(other, name) for name in _IDENTITY)


_IDENTITY = (
    *("spi_in", "spi_out", "tunnel", "vni", "suite", "key_in", "key_out"),
    *("local_ts", "remote_ts", "window"),
)


class Used(NamedTuple):
    """How far an SA got: nothing below `next_out` may be sealed again, nothing up to `highest_in` opened."""

    next_out: int = 1
    highest_in: int = 0


UNUSED = Used()


class Pair:
    """Both SAs of a CHILD_SA with what surrounds them."""

    __slots__ = (
        *("_limit", "came_by", "doors", "entry", "errors", "header", "inbound", "low_told"),
        *("mss", "outbound", "peer", "usual", "verdicts", "way"),
    )

    def __init__(
        self, entry: SaEntry, random: RandomSource, used: Used = UNUSED, doors: Doors | None = None
    ) -> None:
        """`used`: how far this process got with the same SA before; `doors`: packets go through these.

        Raises ValueError for keys or ranges that are none.
        """
        self.inbound = InboundSa(
            entry.spi_in,
            entry.suite,
            entry.key_in,
            local_ts=entry.local_ts,
            remote_ts=entry.remote_ts,
            window=entry.window,
            floor=entry.floor,
            opens=entry.opens,
            expires=entry.expires,
        )
        self.inbound.window.raise_floor(used.highest_in)
        self.outbound = OutboundSa(
            entry.spi_out,
            entry.suite,
            entry.key_out,
            random,
            local_ts=entry.local_ts,
            remote_ts=entry.remote_ts,
            lo=min(max(entry.seal_lo, used.next_out), max(entry.seal_hi, entry.seal_lo)),
            hi=entry.seal_hi,
            expires=entry.expires,
        )
        self.entry = entry
        self.verdicts: dict[tuple[int, Row], Verdict] = {}  # by length of the plaintext, and what decides
        self.usual: dict[int, Usual] = {}  # by length of the plaintext
        self.low_told = False  # RangeLow was said for this range
        self.errors = Bucket(Rate(8 * ERRORS, ERRORS))  # a byte for each ICMP error
        self.came_by: Address | None = None  # the GIN that the peer's packets came by
        self.header = b""  # before each packet that goes through a GIN
        self.doors = doors
        self._measure()
        self.move_peer(entry.peer)

    @property
    def used(self) -> Used:
        return Used(self.outbound.next, self.inbound.highest)

    def expect(self, usual: Usual) -> None:
        """Guess that of the next batch of this length, where trailers have room before inner packets, and
        senders make such lengths (RFC 4303 2.4).
        """
        length = usual.length + usual.tail
        if usual.tail > len(usual.header) or length % ALIGNMENT:
            return
        if len(self.usual) >= MAX_USUAL:
            self.usual.clear()
        self.usual[length] = usual

    def forget(self) -> None:
        """The tenant's network changed: what was judged holds no more."""
        self.verdicts.clear()
        self.usual.clear()

    def limit(self, version: int) -> int:
        """The longest inner packet of this IP version that is sealed as it is."""
        return self._limit if version == 4 else max(self._limit, LEAST6)

    def _measure(self) -> None:
        """What fits the path: the longest inner packet that does with its trailer and sealed; and the MSS."""
        outer = IP_HEADER if self.entry.raw else IP_HEADER + UDP_HEADER
        room = self.entry.mtu - outer - self.outbound.overhead
        self._limit = room - room % self.outbound.block - 2
        most = self.entry.mss
        fitting = Ceiling(self._limit - HEADERS4, self._limit - HEADERS6)
        self.mss = fitting if most == "auto" else Ceiling(most, most) if most else None

    def move_peer(self, peer: Address) -> None:
        """Seal towards this address from now on."""
        self.peer = peer
        self.choose_way()

    def come_by(self, source: Address) -> None:
        """A packet that opened came from there: answers leave by the same GIN, if it is one."""
        if self.doors is not None and source in self.doors:
            self.came_by = source
            self.choose_way()

    def choose_way(self) -> None:
        """Straight to the peer, or through a GIN; None where there must be one and is none."""
        if self.doors is None:
            port = Port.RAW if self.entry.raw else Port.ESP
            self.way: Way | None = Way(port, self.peer, self.entry.vip, "gpn_sealed")
            return
        gin = self.doors.choose(self.came_by)
        self.way = Way(Port.ESP, gin, None, "gpn_sealed") if gin else None
        self.header = build_header(self.entry.spi_in, ipaddress.IPv4Address(self.entry.vip).packed)

    def way_around(self, inner: Buffer) -> Way | None:
        """How a packet leaves that is sealed around this one (RFC 4301 5.1.2.1)."""
        tos = ecn.around(inner, self.entry.dscp)
        return self.way._replace(tos=tos) if tos and self.way else self.way

    def update(self, entry: SaEntry) -> None:
        """Take over what may change while an SA lives. Raises ValueError, changing nothing."""
        before = self.entry
        if (entry.seal_lo, entry.seal_hi) != (before.seal_lo, before.seal_hi):
            if self.outbound.grant(entry.seal_lo, entry.seal_hi):
                self.low_told = False
            else:
                logger.warning(
                    "sealing range refused, it could repeat numbers tunnel=%s spi=%08x range=%d-%d",
                    *(entry.tunnel, entry.spi_in, entry.seal_lo, entry.seal_hi),
                )
        self.entry = entry
        self._measure()
        self.inbound.raise_floor(entry.floor)
        self.inbound.opens = entry.opens
        self.inbound.expires = self.outbound.expires = entry.expires
        # A peer address that packets have proven stands until the control plane names a new one.
        self.move_peer(entry.peer if entry.peer != before.peer else self.peer)
