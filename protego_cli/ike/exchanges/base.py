"""An exchange that we start: build the request, process the response, or fail."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from protego_cli.ike.events import ExchangeFailed
from protego_cli.ike.message import Payloads
from protego_cli.wire.payloads import ExchangeType, Payload

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


class Exchange(ABC):
    """`token` is the driver's name for it; None for exchanges the engine starts by itself."""

    type: ClassVar[ExchangeType]

    def __init__(self, token: int | None) -> None:
        self.token = token

    @abstractmethod
    def build(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:
        """The request's payloads; None when nothing is left to ask, the outcome then being reported."""

    @abstractmethod
    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """Take the authentic response. A ProtocolError raised here means the peer broke the protocol."""

    def fail(self, sa: IkeSa, detail: str, notify: int | None = None) -> None:
        """There is no response, or it refuses."""
        if self.token is not None:
            sa.context.emit(ExchangeFailed(self.token, sa.name, notify, detail))
