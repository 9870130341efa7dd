"""An exchange that we start: build the request, process the response, or fail.

What a restarted gateway needs to go on with it is its `ExchangeState`: a struct in the file of the exchange,
which makes the exchange again. `ike.snapshot` lists them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from protego_cli.ike.events import ExchangeFailed, Negotiated
from protego_cli.ike.message import Payloads
from protego_cli.ike.record import Failure, Story, tell
from protego_cli.wire.payloads import ExchangeType, Payload

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


EspSpi = Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
"""An inbound SPI of a CHILD_SA, in what is stored."""


def record(
    sa: IkeSa, story: Story, exchange: ExchangeType, *, initiator: bool, failure: Failure | None = None
) -> None:
    """Tell what has come of a negotiation, for people."""
    sa.context.emit(Negotiated(tell(sa, story, exchange, initiator=initiator, failure=failure)))


class ExchangeState(msgspec.Struct, frozen=True, array_like=True):
    """What is stored of an exchange. It may hold secrets, so none of it shows in a repr."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def restore(self, sa: IkeSa) -> Exchange:
        """The exchange again, for `sa`, whose CHILD_SAs stand. Raises ValueError when it has algorithms that
        no plugin provides any more, StateError when the state does not make sense.
        """
        raise NotImplementedError


class Exchange(ABC):
    """`token` is the driver's name for it; None for exchanges the engine starts by itself."""

    type: ClassVar[ExchangeType]

    def __init__(self, token: int | None) -> None:
        self.token = token
        self.held = False  # its request is made, and does not leave yet
        self.overtaken: set[int] = set()  # SPIs unknown to us that the peer deleted meanwhile

    @abstractmethod
    def build(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:
        """The request's payloads; None when nothing is left to ask, the outcome then being reported."""

    @abstractmethod
    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """Take the authentic response. A ProtocolError raised here means the peer broke the protocol."""

    @abstractmethod
    def state(self) -> ExchangeState:
        """What makes it again."""

    @property
    def asks(self) -> int | None:
        """Our inbound SPI of the CHILD_SA that it asks for, if it does."""
        return None

    @property
    def survives(self) -> bool:
        """Whether it is to happen after a restart although its request has not left: what the driver asked
        for goes with the one who asked, what the engine wants stays.
        """
        return self.token is None

    def fail(self, sa: IkeSa, detail: str, notify: int | None = None) -> None:
        """There is no response, or it refuses."""
        if self.token is not None:
            sa.context.emit(ExchangeFailed(self.token, sa.name, notify, detail))
