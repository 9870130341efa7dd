"""What the journal keeps of CHILD_SAs and tunnels: records, to bytes and back. Pure.

The kinds of records of the control layer, beside the engine's own (`journal.ENGINE`):

- `SA`: an inbound SPI -> where the SA lies, of which strand, its keys, numbers, how far its life has got.
- `TUNNEL`: a tunnel's id -> of each strand which SA seals, which will, what Rules there are; where the tunnel
  is being moved.
- `ASKED`: an inbound SPI in a request of ours -> where its packets wait (`tunnel.Asked`).

What nodes should hold is not kept: it follows from these. Values hold keys; the vault seals them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from protego_cli.control.sas.ranges import SealingRange
from protego_cli.control.sas.tunnel import STRANDS, Asked, Placed, Strand, Totals, Tunnel
from protego_cli.errors import EnvironmentFault
from protego_cli.ike.events import ChildSa

SA: Final = "sa"
TUNNEL: Final = "tunnel"
ASKED: Final = "asked"


class StoredSa(msgspec.Struct, frozen=True, array_like=True):
    child: ChildSa
    ike: int
    gpn: str
    numbers: SealingRange
    granted: int  # ranges, up to this one
    peer: tuple[str, int]
    window: int
    floor: int
    opens: bool
    standing: bool
    ends: float | None
    replaces: int | None
    renewing: bool
    since: float
    expires: float
    spread: float
    strand: int = 1  # left out by versions that knew of one


class StoredStrand(msgspec.Struct, frozen=True, array_like=True):
    sealing: int | None
    successor: int | None
    ruled: dict[str, int]

    @classmethod
    def of(cls, strand: Strand) -> StoredStrand:
        sealing, successor = strand.sealing, strand.successor
        return cls(sealing.spi if sealing else None, successor.spi if successor else None, strand.ruled)


class StoredTunnel(msgspec.Struct, frozen=True, array_like=True):
    sealing: int | None  # these three: of the first strand
    successor: int | None
    ruled: dict[str, int]
    target: str | None
    retired: Totals
    others: tuple[StoredStrand, ...] = ()  # the other strands, left out by versions that knew of none

    @property
    def strands(self) -> tuple[StoredStrand, ...]:
        return StoredStrand(self.sealing, self.successor, self.ruled), *self.others


_encode = msgspec.msgpack.Encoder().encode
_sa = msgspec.msgpack.Decoder(StoredSa).decode
_tunnel = msgspec.msgpack.Decoder(StoredTunnel).decode
_asked = msgspec.msgpack.Decoder(Asked).decode


def store_sa(placed: Placed, granted: int) -> bytes:
    return _encode(
        StoredSa(
            placed.child,
            placed.ike,
            placed.gpn,
            placed.numbers,
            granted,
            placed.peer,
            placed.window,
            placed.floor,
            placed.opens,
            placed.standing,
            placed.ends,
            placed.replaces,
            placed.renewing,
            placed.since,
            placed.expires,
            placed.spread,
            placed.strand.number,
        )
    )


def load_sa(data: bytes) -> tuple[Placed, int, int]:
    """The SA, how many sealing ranges of it were granted, and the number of its strand. Raises
    EnvironmentFault.
    """
    try:
        stored = _sa(data)
    except ValueError:  # its text could quote what is stored
        raise _unreadable("a CHILD_SA") from None
    if not 1 <= stored.strand <= STRANDS:
        raise _unreadable("a CHILD_SA")
    placed = Placed(
        stored.child,
        stored.ike,
        stored.gpn,
        stored.numbers,
        stored.peer,
        window=stored.window,
        floor=stored.floor,
        opens=stored.opens,
        marks_complete=False,  # until its GPN reports, who knows what it has opened meanwhile
        standing=stored.standing,
        ends=stored.ends,
        replaces=stored.replaces,
        renewing=stored.renewing,
        since=stored.since,
        expires=stored.expires,
        spread=stored.spread,
    )
    return placed, stored.granted, stored.strand


def store_tunnel(tunnel: Tunnel) -> bytes:
    first, *others = map(StoredStrand.of, tunnel.strands)
    return _encode(
        StoredTunnel(
            first.sealing, first.successor, first.ruled, tunnel.target, tunnel.retired, tuple(others)
        )
    )


def load_tunnel(data: bytes) -> StoredTunnel:
    """Raises EnvironmentFault."""
    try:
        stored = _tunnel(data)
    except ValueError:
        raise _unreadable("a tunnel") from None
    if len(stored.strands) > STRANDS:
        raise _unreadable("a tunnel")
    return stored


def load_asked(data: bytes) -> Asked:
    """Raises EnvironmentFault."""
    try:
        return _asked(data)
    except ValueError:
        raise _unreadable("a request") from None


def _unreadable(what: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"the GMN's state holds the record of {what} that this version cannot read; nothing was changed. "
        "Start the version that wrote it"
    )
