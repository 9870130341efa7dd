"""What can be seen of an IKE_SA from outside: for people, and without keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protego_cli.ike.events import Path

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


@dataclass(frozen=True)
class IkeSaView:
    """An IKE_SA as it is now."""

    ike: int  # the driver's handle
    spi_i: bytes
    spi_r: bytes
    suite: str
    initiator: bool  # whether we were, of the original IKE_SA
    path: Path
    peer_natted: bool
    encapsulated: bool  # its ESP is in UDP
    children: tuple[int, ...]  # inbound SPIs
    silent_for: float  # seconds since the peer's last authentic message
    rekey_in: float | None  # seconds
    dies_in: float | None
    waiting: int  # exchanges of ours that are under way or wait for their turn


def view(sa: IkeSa, now: float) -> IkeSaView:
    return IkeSaView(
        ike=sa.handle or 0,
        spi_i=sa.spi_i,
        spi_r=sa.spi_r,
        suite=str(sa.suite),
        initiator=sa.initiator,
        path=sa.path,
        peer_natted=sa.peer_natted,
        encapsulated=sa.encapsulated,
        children=tuple(sa.children),
        silent_for=now - sa.last_heard,
        rekey_in=None if sa.rekey_at is None else sa.rekey_at - now,
        dies_in=None if sa.dies_at is None else sa.dies_at - now,
        waiting=len(sa.queue) + (sa.current is not None),
    )
