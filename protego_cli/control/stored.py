"""What the journal keeps of CHILD_SAs and tunnels: records, to bytes and back. Pure.

The kinds of records of the control layer, beside the engine's own (`journal.ENGINE`):

- `SA`: an inbound SPI -> where the SA lies, its keys, numbers, and how far its life has got.
- `TUNNEL`: a tunnel's id -> which SA seals, which will, what Rules there are, where it is being moved.
- `ASKED`: an inbound SPI in a request of ours -> where its packets wait (`tunnel.Asked`).

What nodes should hold is not kept: it follows from these. Values hold keys; the vault seals them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from protego_cli.control.ranges import SealingRange
from protego_cli.control.tunnel import Asked, Placed, Totals, Tunnel
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


class StoredTunnel(msgspec.Struct, frozen=True, array_like=True):
    sealing: int | None
    successor: int | None
    ruled: dict[str, int]
    target: str | None
    retired: Totals


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
        )
    )


def load_sa(data: bytes) -> tuple[Placed, int]:
    """The SA, and how many sealing ranges of it were granted. Raises EnvironmentFault."""
    try:
        stored = _sa(data)
    except ValueError:  # its text could quote what is stored
        raise _unreadable("a CHILD_SA") from None
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
    return placed, stored.granted


def store_tunnel(tunnel: Tunnel) -> bytes:
    sealing, successor = tunnel.sealing, tunnel.successor
    return _encode(
        StoredTunnel(
            sealing.spi if sealing else None,
            successor.spi if successor else None,
            tunnel.ruled,
            tunnel.target,
            tunnel.retired,
        )
    )


def load_tunnel(data: bytes) -> StoredTunnel:
    """Raises EnvironmentFault."""
    try:
        return _tunnel(data)
    except ValueError:
        raise _unreadable("a tunnel") from None


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
