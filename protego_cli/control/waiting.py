"""Waiting without a round through the scheduler where there is nothing to wait for.

A checkpoint lets every other task run first. Where a procedure takes dozens of steps and is rarely held up,
that would be most of what it costs. Who uses these must await something else before long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from protego_cli.errors import ProtegoError


async def passed(event: trio.Event) -> None:
    """Wait for an event, unless it has happened."""
    if not event.is_set():
        await event.wait()


class holding:  # noqa: N801 - it is used like `trio.Lock` itself
    """`async with` a lock or a semaphore."""

    __slots__ = ("_lock",)

    def __init__(self, lock: trio.Lock | trio.Semaphore) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


async def together(*calls: Callable[[], Awaitable[object]]) -> None:
    """Make the calls side by side; when all are done, raise the first ProtegoError among them."""
    if len(calls) < 2:  # nothing is beside it
        for call in calls:
            await call()
        return
    failures: list[ProtegoError] = []

    async def run(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except ProtegoError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for call in calls[:-1]:
            nursery.start_soon(run, call)
        await run(calls[-1])
    if failures:
        raise failures[0]
