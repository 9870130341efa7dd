"""The law of an IKE_SA in three tables: how its state moves, which requests it takes, which it may send.

```
initiator   START --DIAL--> INIT_SENT --INIT_ANSWERED--> AUTH_SENT --AUTHENTICATED--> ESTABLISHED
responder   START --INVITED--> HALF_OPEN --AUTH_HELD--> AUTH_HELD --AUTHENTICATED--> ESTABLISHED
rekeyed     START --INHERITED--> ESTABLISHED --REPLACED--> REPLACED
end         ESTABLISHED --CLOSE--> CLOSING --GONE--> CLOSED, or --ENDED--> FINAL --GONE--> CLOSED
            REPLACED    --CLOSE--> CLOSING, where we made its heir
```

FINAL is an IKE_SA that is over for us and only repeats its last response, should it have been lost.
"""

from __future__ import annotations

from enum import Enum

from protego_cli.wire.payloads import ExchangeType


class State(Enum):
    START = "start"
    INIT_SENT = "init sent"
    AUTH_SENT = "auth sent"
    HALF_OPEN = "half open"
    AUTH_HELD = "auth held"
    ESTABLISHED = "established"
    REPLACED = "replaced"
    CLOSING = "closing"
    FINAL = "final"
    CLOSED = "closed"


class Trigger(Enum):
    DIAL = "we send IKE_SA_INIT"
    INVITED = "we answered IKE_SA_INIT"
    INHERITED = "the IKE_SA was made by rekeying another one"
    INIT_ANSWERED = "the peer answered IKE_SA_INIT"
    AUTH_HELD = "the peer is authentic, its CHILD_SA is offered to the driver"
    AUTHENTICATED = "both sides are authentic"
    REPLACED = "another IKE_SA has taken its place"
    CLOSE = "we send DELETE"
    ENDED = "our last response ends the IKE_SA"
    GONE = "nothing is left to say"


TRANSITIONS: dict[State, dict[Trigger, State]] = {
    State.START: {
        Trigger.DIAL: State.INIT_SENT,
        Trigger.INVITED: State.HALF_OPEN,
        Trigger.INHERITED: State.ESTABLISHED,
    },
    State.INIT_SENT: {
        Trigger.INIT_ANSWERED: State.AUTH_SENT,
        Trigger.GONE: State.CLOSED,
    },
    State.AUTH_SENT: {
        Trigger.AUTHENTICATED: State.ESTABLISHED,
        Trigger.GONE: State.CLOSED,
    },
    State.HALF_OPEN: {
        Trigger.AUTH_HELD: State.AUTH_HELD,
        Trigger.AUTHENTICATED: State.ESTABLISHED,
        Trigger.ENDED: State.FINAL,
        Trigger.GONE: State.CLOSED,
    },
    State.AUTH_HELD: {
        Trigger.AUTHENTICATED: State.ESTABLISHED,
        Trigger.ENDED: State.FINAL,
        Trigger.GONE: State.CLOSED,
    },
    State.ESTABLISHED: {
        Trigger.REPLACED: State.REPLACED,
        Trigger.CLOSE: State.CLOSING,
        Trigger.ENDED: State.FINAL,
        Trigger.GONE: State.CLOSED,
    },
    State.REPLACED: {
        Trigger.CLOSE: State.CLOSING,
        Trigger.ENDED: State.FINAL,
        Trigger.GONE: State.CLOSED,
    },
    State.CLOSING: {
        Trigger.ENDED: State.FINAL,
        Trigger.GONE: State.CLOSED,
    },
    State.FINAL: {Trigger.GONE: State.CLOSED},
    State.CLOSED: {},
}

_NONE: frozenset[int] = frozenset()
_LATER: frozenset[int] = frozenset({ExchangeType.CREATE_CHILD_SA, ExchangeType.INFORMATIONAL})

TAKES: dict[State, frozenset[int]] = {
    State.START: _NONE,
    State.INIT_SENT: _NONE,
    State.AUTH_SENT: _NONE,
    State.HALF_OPEN: frozenset({ExchangeType.IKE_AUTH}),
    State.AUTH_HELD: _NONE,
    State.ESTABLISHED: _LATER,
    State.REPLACED: _LATER,
    State.CLOSING: _LATER,
    State.FINAL: _NONE,
    State.CLOSED: _NONE,
}
"""New requests of the peer that are legal in a state. One sent again is the window's affair."""

SENDS: dict[State, frozenset[int]] = {
    State.START: _NONE,
    State.INIT_SENT: frozenset({ExchangeType.IKE_SA_INIT}),
    State.AUTH_SENT: frozenset({ExchangeType.IKE_AUTH}),
    State.HALF_OPEN: _NONE,
    State.AUTH_HELD: _NONE,
    State.ESTABLISHED: _LATER,
    State.REPLACED: frozenset({ExchangeType.INFORMATIONAL}),
    State.CLOSING: _NONE,
    State.FINAL: _NONE,
    State.CLOSED: _NONE,
}
"""Requests of ours that may begin in a state; others wait."""


def after(state: State, trigger: Trigger) -> State:
    """The state that follows; a trigger the table does not know there is a fault of ours."""
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise RuntimeError(f"{trigger.name} is not possible in state {state.name}") from None
