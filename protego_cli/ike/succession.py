"""Whose new IKE_SA takes the place of an old one when both sides rekey it at once (RFC 7296 2.8.2).

The requests cross: each side answers the other's while its own is under way. The peer's new IKE_SA is then
the `Rival` of the one that our request will make, until

- our answer arrives: the IKE_SA whose exchange has the lowest of the four nonces is redundant, and who
  created it deletes it; the other one takes the old one's place, and its creator deletes the old one
  (`RekeyIke.process`);
- we are refused, or get no answer, or the peer deletes the old IKE_SA: the peer had finished before it saw
  our request, so its new IKE_SA takes the place and ours is forgotten;
- the peer uses its new IKE_SA for more than to delete it: it has decided, and so the same.

When the peer deletes its new IKE_SA meanwhile, that was the redundant one, or, if our answer shows that it
was not, the peer wants none any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protego_cli.ike.exchanges.alive import CheckAlive
from protego_cli.ike.transitions import State

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


@dataclass(frozen=True)
class Rival:
    sa: IkeSa
    lowest: bytes  # the lower of the two nonces that made it


def standing(sa: IkeSa) -> Rival | None:
    """The rekey of the peer that crosses ours, unless the peer has deleted what came of it."""
    rival = sa.rival
    return rival if rival is not None and rival.sa.state is State.ESTABLISHED else None


def settle(sa: IkeSa, now: float) -> None:
    """The peer's rekey counts: its new IKE_SA takes the place of this one, unless it has."""
    rival = standing(sa)
    if rival is not None and sa.heir is None:
        sa.give_way(rival.sa, now)


def used(sa: IkeSa, now: float) -> None:
    """The peer uses this IKE_SA for more than to delete it: if it was a rival, it has won."""
    if sa.contests is not None:
        settle(sa.contests, now)


def hand_over(sa: IkeSa, now: float) -> None:
    """Before this IKE_SA ends by the peer's will, or by its silence: let the rival take its place, and a sign
    of life be asked for again under the new IKE_SA.
    """
    settle(sa, now)
    exchange, heir = sa.current, sa.home
    if heir is not sa and isinstance(exchange, CheckAlive):
        sa.current = None
        sa.sender.cancel()
        heir.start(exchange, now)
