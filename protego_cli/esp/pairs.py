"""A CHILD_SA on a GPN: what the control plane puts, and the pair of SAs that comes of it.

A second put for the same SA never starts it afresh: the window stays where it is, a floor only rises, and
numbers only move on to a range that repeats none.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

from protego_cli.crypto.algorithms import EspSuite, RandomSource
from protego_cli.esp.outbox import Address, Port, Way
from protego_cli.esp.sa import InboundSa, OutboundSa
from protego_cli.esp.tenants import Delivery
from protego_cli.wire import ecn
from protego_cli.wire.selectors import TrafficSelector

logger = logging.getLogger(__name__)

MAX_VERDICTS = 4096  # remembered per SA

Row = tuple[bytes, ...]
"""What decides about an opened packet: head up to the length, addresses, trailer."""

Verdict = tuple[Delivery, int] | str
"""How an opened packet leaves and how long its inner packet is, or the counter of the reason of a drop."""


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
    peer: Address
    seal_lo: int
    seal_hi: int
    floor: int = 0
    opens: bool = True
    window: int = 1024
    expires: float | None = None
    dscp: int | None = None  # of sealed packets; None: that of the inner one

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

    __slots__ = ("entry", "inbound", "low_told", "outbound", "peer", "verdicts", "way")

    def __init__(self, entry: SaEntry, random: RandomSource, used: Used = UNUSED) -> None:
        """`used`: how far this process got with the same SA before. Raises ValueError for keys or ranges
        that are none.
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
        self.low_told = False  # RangeLow was said for this range
        self.move_peer(entry.peer)

    @property
    def used(self) -> Used:
        return Used(self.outbound.next, self.inbound.highest)

    def move_peer(self, peer: Address) -> None:
        """Seal towards this address from now on."""
        self.peer = peer
        self.way = Way(Port.ESP, peer, self.entry.vip, "gpn_sealed")

    def way_around(self, inner: bytes) -> Way:
        """How a packet leaves that is sealed around this one (RFC 4301 5.1.2.1)."""
        tos = ecn.around(inner, self.entry.dscp)
        return self.way._replace(tos=tos) if tos else self.way

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
        self.inbound.raise_floor(entry.floor)
        self.inbound.opens = entry.opens
        self.inbound.expires = self.outbound.expires = entry.expires
        # A peer address that packets have proven stands until the control plane names a new one.
        self.move_peer(entry.peer if entry.peer != before.peer else self.peer)
