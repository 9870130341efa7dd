"""What the orchestrator asks its two endpoint processes, and what they answer: JSON, a line each.

Every `Command` gets one `Snapshot` back, with its number: an answer that nobody waits for any more stays in
the pipe, ahead of the answer to the next one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Verb = Literal["look", "connect", "rekey", "start", "stop", "account"]


class Command(msgspec.Struct, frozen=True):
    """`look` only asks; `connect`: peers initiate; `rekey`: they rekey; `start` begins to send
    numbered packets; `stop` ends sending, not receiving; `account` asks for the last counts, and for what is
    missing of the packets that the other end has `sent`, for each site.
    """

    do: Verb
    sent: tuple[int, ...] = ()
    number: int = 0


class SiteCount(msgspec.Struct, frozen=True):
    """One tunnel, as this endpoint sees it."""

    up: bool = True  # its SA stands (peers)
    error: str | None = None  # why it does not
    sent: int = 0
    received: int = 0
    duplicated: int = 0
    reordered: int = 0
    via: dict[str, int] = {}  # packets received per GPN (tenants)
    gaps: tuple[tuple[int, int], ...] = ()  # first and last numbers that never came, of the first few gaps


class Snapshot(msgspec.Struct, frozen=True):
    sites: tuple[SiteCount, ...]  # in the plan's order
    answers: int = 0  # the command of this number
    misdelivered: int = 0
    corrupted: int = 0
    seconds: float = 0.0  # how long numbered packets have been sent
    drops: dict[str, int] = {}  # the endpoint's own, by reason, for the diagnosis
