"""Message IDs and retransmission with a window of one (RFC 7296 2.1-2.3). Nothing else knows message IDs.

`SendWindow` numbers our requests and sends one again, the very same bytes, with growing pauses until it is
answered. `ReceiveWindow` tells a new request of the peer from one it sent again, and keeps the response
for the latter.
"""

from __future__ import annotations

from enum import Enum, auto

import msgspec

from protego_cli.config.model import IkeSettings

LAST_ID = 2**32 - 1


class SendState(msgspec.Struct, frozen=True, array_like=True):
    """What is stored of a send window. How often a request was sent is not: nobody listened meanwhile."""

    id: int
    datagram: bytes | None
    hurried: bool


class ReceiveState(msgspec.Struct, frozen=True, array_like=True):
    """What is stored of a receive window: not a request whose response is held back, which comes again."""

    expected: int
    response: bytes | None  # to the request before that


class SendWindow:
    def __init__(self, settings: IkeSettings, first: int = 0) -> None:
        self._settings = settings
        self._id = first
        self._datagram: bytes | None = None
        self._sent = 0
        self._tries = 0
        self.deadline: float | None = None

    @property
    def state(self) -> SendState:
        hurried = self.outstanding and self._tries < self._settings.retransmit_tries
        return SendState(self._id, self._datagram, hurried)

    @classmethod
    def restore(cls, state: SendState, settings: IkeSettings, now: float) -> SendWindow:
        """What was outstanding is to be sent again at once."""
        window = cls(settings, state.id)
        if state.datagram is not None:
            window.begin(state.datagram, now)
            window.deadline = now
            if state.hurried:
                window.give_up_soon()
        return window

    @property
    def next_id(self) -> int:
        """The message ID of the request to be built now."""
        return self._id

    @property
    def exhausted(self) -> bool:
        """No message ID is left: the IKE_SA must go (RFC 7296 2.2)."""
        return self._id > LAST_ID

    @property
    def sent(self) -> int:
        """How often the last request has been sent."""
        return self._sent + 1

    @property
    def outstanding(self) -> bool:
        return self._datagram is not None

    def begin(self, datagram: bytes, now: float) -> None:
        """A request under `next_id` has just been sent."""
        self._datagram = datagram
        self._sent = 0
        self._tries = self._settings.retransmit_tries
        self.deadline = now + self._settings.retransmit_first

    def hold(self) -> None:
        """What is outstanding has not been sent, and is not to be."""
        self.deadline = None

    def let_go(self, now: float) -> bytes | None:
        """The bytes to send of what was held."""
        if self._datagram is not None:
            self.begin(self._datagram, now)
        return self._datagram

    def expects(self, message_id: int) -> bool:
        """Whether a response with this ID answers what is outstanding."""
        return self._datagram is not None and message_id == self._id

    def finish(self) -> None:
        """The outstanding request was answered."""
        self._id += 1
        self.cancel()

    def cancel(self) -> None:
        """The outstanding request is withdrawn; its ID is used again (restart of IKE_SA_INIT)."""
        self._datagram = None
        self.deadline = None

    def give_up_soon(self) -> None:
        """Send at most once more: the peer has answered, but with an error that proves nothing."""
        self._tries = min(self._tries, self._sent + 1)

    def retransmit(self, now: float) -> bytes | None:
        """The bytes to send again now that `deadline` has passed, or None when all tries are used up."""
        if self._datagram is None or self._sent >= self._tries:
            return None
        self._sent += 1
        self.deadline = now + self._settings.retransmit_first * self._settings.retransmit_base**self._sent
        return self._datagram


class Verdict(Enum):
    NEW = auto()
    AGAIN = auto()  # a request sent again; the response is at hand
    HELD = auto()  # a request sent again whose response we have not yet given
    OUTSIDE = auto()


class ReceiveWindow:
    """One request at a time: while its response is held back, no other is taken (RFC 7296 2.3)."""

    def __init__(self, first: int = 0) -> None:
        self._expected = first
        self._current: int | None = None
        self.response: bytes | None = None

    @property
    def held(self) -> bool:
        """Whether a request waits for its response."""
        return self._current is not None and self.response is None

    @property
    def state(self) -> ReceiveState:
        if self._current is not None and self.response is None:
            return ReceiveState(self._current, None)
        return ReceiveState(self._expected, self.response)

    @classmethod
    def restore(cls, state: ReceiveState) -> ReceiveWindow:
        window = cls(state.expected)
        if state.response is not None:
            window._current, window.response = state.expected - 1, state.response
        return window

    @property
    def current(self) -> int:
        """The message ID of the request being answered."""
        if self._current is None:
            raise RuntimeError("no request to answer")
        return self._current

    def classify(self, message_id: int) -> Verdict:
        if message_id == self._expected and not self.held:
            return Verdict.NEW
        if message_id == self._current:
            return Verdict.HELD if self.held else Verdict.AGAIN
        return Verdict.OUTSIDE

    def accept(self, message_id: int) -> None:
        """Take a new, authentic request; what was stored for the previous one is no longer needed."""
        self._current = message_id
        self._expected = message_id + 1
        self.response = None

    def answer(self, datagram: bytes) -> None:
        self.response = datagram
