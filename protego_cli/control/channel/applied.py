"""The answer of a node that has taken desired state: all of it, or all but what it names."""

from __future__ import annotations

import msgspec

from protego_cli.control.channel.message import Reply


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A record that a node cannot act on."""

    kind: str
    of: int | str
    reason: str  # empty, where many are refused at once, of all but the first

    @property
    def key(self) -> tuple[str, int | str]:
        return self.kind, self.of


class Applied(Reply, frozen=True):
    """The data path acts on what was told, but for the records `refused`. Where there are such, the Update's
    barriers were not sent.
    """

    revision: int
    refused: tuple[Refusal, ...] = ()
