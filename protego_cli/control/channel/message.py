"""What every message of the control channel is: a frozen struct that shows no key material."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

SECRETS = frozenset({"tag_key", "envelope_key", "key_in", "key_out", "secret", "token"})

Amount = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
"""Of what can be measured, seconds or shares: finite, and no less than nothing. NaN is neither."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""Of packets, bytes, events: thousands of them still add up to what a message can hold."""

Number = Annotated[int, msgspec.Meta(ge=0)]
"""A sequence number of ESP, extended or not."""

Port = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]


Key = tuple[str, int | str]
"""Of a record: its type and its name within that."""


class Message(msgspec.Struct, frozen=True):
    """Base of all: a struct that may hold keys and shows none, in logs or in rich's tracebacks."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, "..." if name in SECRETS else getattr(self, name)) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"


class Record(Message, frozen=True, tag=True, array_like=True):
    """One piece of desired state; `key` names it within its type."""

    @property
    def key(self) -> Key:
        raise AttributeError(type(self).__name__)


class Request(Message, frozen=True, tag=True):
    """Base of what may be asked over the control channel; every request has one reply."""


class Reply(Message, frozen=True, tag=True):
    """Base of the answers."""


class Failed(Reply, frozen=True):
    """The request was not carried out. `code` is an `errors.Exit` value."""

    message: str
    code: int = 1
