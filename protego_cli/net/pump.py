"""The data path's loop, one for each socket of a role.

1. Wait until the socket is readable.
2. Receive and handle batches without blocking, a bounded number of them.
3. Let the other tasks run. Straight back to 2 while there is more.

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


class Source(Protocol):
    """The part of `UdpSocket` that the loop needs."""

    def receive(self) -> Batch | None: ...

    async def wait_readable(self) -> None: ...


class Trains(Protocol):
    """The same where batches are handled together."""

    def receive_train(self) -> list[Batch]: ...

    async def wait_readable(self) -> None: ...


async def pump(source: Source, handle: Callable[[Batch], None]) -> None:
    """Hand every batch that arrives to `handle`, for ever."""
    while True:
        await source.wait_readable()
        while drain(source, handle):
            await trio.lowlevel.checkpoint()


def drain(source: Source, handle: Callable[[Batch], None], limit: int = BATCHES_PER_TURN) -> bool:
    """Handle up to `limit` batches; whether there may be more."""
    for _ in range(limit):
        batch = source.receive()
        if batch is None:
            return False
        handle(batch)
    return True


async def pump_trains(source: Trains, handle: Callable[[list[Batch]], None]) -> None:
    """Hand all that arrives to `handle`, as many batches at once as wait, for ever."""
    while True:
        await source.wait_readable()
        while drain_trains(source, handle):
            await trio.lowlevel.checkpoint()


def drain_trains(
    source: Trains, handle: Callable[[list[Batch]], None], limit: int = BATCHES_PER_TURN
) -> bool:
    """Handle trains until `limit` batches are done; whether there may be more."""
    done = 0
    while done < limit:
        train = source.receive_train()
        if not train:
            return False
        handle(train)
        done += len(train)
    return True


class CatchUp:
    """Handles what waits in sockets, to be called before state goes by which it is to be handled."""

    def __init__(self, *turns: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """Each of `turns` drains one socket a little, and says whether there may be more."""
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
