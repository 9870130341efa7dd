"""Liveness: an empty INFORMATIONAL exchange (RFC 7296 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from protego_cli.ike.events import Alive
from protego_cli.ike.exchanges.base import Exchange, ExchangeState
from protego_cli.ike.message import Payloads
from protego_cli.wire.payloads import ExchangeType, Payload

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


class CheckAlive(Exchange):
    type = ExchangeType.INFORMATIONAL

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload]:
        return ()

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        if self.token is not None:
            sa.context.emit(Alive(self.token))

    def state(self) -> CheckAliveState:
        return CheckAliveState(self.token)


class CheckAliveState(ExchangeState, frozen=True, tag="alive"):
    token: int | None

    def restore(self, sa: IkeSa) -> CheckAlive:
        return CheckAlive(self.token)
