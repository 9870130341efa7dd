"""What reads from sockets, in turns.

1. Wait until the socket is readable.
2. Receive and handle batches without blocking, a bounded number of them: a turn.
3. Let the other tasks run. Straight back to 2 while there is more.

The sockets that packets come to have a loop that costs less (`attend.py`).

Where a process got no CPU for a while, it finds packets and the word of a change that came after them at
once. `CatchUp` sees to it that the packets are handled first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import trio

from protego_cli.net.udp import Batch

BATCHES_PER_TURN = 32  # about two milliseconds of work
BEHIND = 0.1  # seconds, at most, to catch up with one socket: more than a full buffer takes
JUST_NOW = 0.05  # seconds: changes that come together catch up once


Turn = Callable[[], bool]
"""Drains one socket a little; whether there may be more."""


class Waits(Protocol):
    """The part of `UdpSocket` that waits."""

    async def wait_readable(self) -> None: ...


class Source(Protocol):
    """The part that receives."""

    def receive(self) -> Batch | None: ...


class Trains(Protocol):
    """The same where batches are handled together."""

    def receive_train(self) -> list[Batch]: ...


async def pump(source: Waits, turn: Turn) -> None:
    """Call `turn` whenever `source` is readable, and again while it returns True, for ever."""
    while True:
        await source.wait_readable()
        while turn():
            await trio.lowlevel.checkpoint()


def drain(source: Source, handle: Callable[[Batch], None], limit: int = BATCHES_PER_TURN) -> bool:
    """Handle up to `limit` batches; whether there may be more."""
    for _ in range(limit):
        batch = source.receive()
        if batch is None:
            return False
        handle(batch)
    return True


def drain_trains(source: Trains, handle: Callable[[list[Batch]], None]) -> bool:
    """Handle trains until about `BATCHES_PER_TURN` batches are done; whether there may be more."""
    done = 0
    while done < BATCHES_PER_TURN:
        train = source.receive_train()
        if not train:
            return False
        handle(train)
        done += len(train)
    return True


class CatchUp:
    """Handles what waits in sockets, to be called before state goes by which it is to be handled."""

    def __init__(self, *turns: Turn, clock: Callable[[], float] = time.monotonic) -> None:
        self._turns = turns
        self._clock = clock
        self._at = -JUST_NOW

    def __call__(self) -> None:
        if self._clock() - self._at < JUST_NOW:
            return
        for turn in self._turns:
            until = self._clock() + BEHIND
            while turn() and self._clock() < until:
                pass
        self._at = self._clock()
