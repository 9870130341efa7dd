"""CREATE_CHILD_SA requests of the peer, told apart by what they ask for (RFC 7296 1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protego_cli.errors import TemporaryFailure
from protego_cli.ike.exchanges import create_child, rekey_child, rekey_ike
from protego_cli.ike.exchanges.delete import closing
from protego_cli.ike.message import Payloads
from protego_cli.ike.succession import used
from protego_cli.ike.transitions import State
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import Sa
from protego_cli.wire.proposals import Protocol

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


def answer(sa: IkeSa, payloads: Payloads, now: float) -> None:
    used(sa, now)
    if closing(sa) or sa.state is State.REPLACED:
        raise TemporaryFailure("the IKE_SA is being closed")
    old = payloads.notify(NotifyType.REKEY_SA)
    if old is None and any(proposal.protocol == Protocol.IKE for proposal in payloads.one(Sa).proposals):
        rekey_ike.answer(sa, payloads, now)
    elif isinstance(sa.current, rekey_ike.RekeyIke):
        raise TemporaryFailure("the IKE_SA is being rekeyed")
    elif old is not None:
        rekey_child.answer(sa, old, payloads, now)
    else:
        create_child.answer(sa, payloads, now)
