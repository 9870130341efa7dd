"""INFORMATIONAL requests of the peer: DELETE, an error that ends the IKE_SA, or a sign of life."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protego_cli.ike.exchanges import delete
from protego_cli.ike.message import Payloads
from protego_cli.wire.notifies import NotifyType, notify_name

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa

_FATAL = (NotifyType.AUTHENTICATION_FAILED, NotifyType.INVALID_SYNTAX)


def answer(sa: IkeSa, payloads: Payloads, now: float) -> None:
    for kind in _FATAL:
        if payloads.notify(kind) is not None:
            sa.respond(())
            sa.finish(f"the peer said {notify_name(kind)}", now)
            return
    deletes = payloads.deletes()
    if deletes:
        delete.answer(sa, deletes, now)
    else:
        sa.respond(())
