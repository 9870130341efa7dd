"""The wait of the data path: while packets come, their sockets are attended to without trio.

To wait for a socket by trio and to come back takes a turn of its loop, 8 µs of CPU and twice that once the
caches are cold, which is several times what a single packet takes. So one system task waits for all sockets:

1. Wait for them as any task does.
2. Let the tasks have their turns, until none has anything to do.
3. Wait for the sockets, for what trio itself waits for, and for its next deadline, in one system call. Give
   the sockets that are readable a turn each. Again; but back to 2 when a deadline is over, when a turn has
   woken a task, or when trio's epoll has something: a stream, a signal, the word of another thread.
   Where they are readable again and again within 0.15 ms, the kernel gathers what comes in 0.1 ms, as cards
   moderate their interrupts: to wake for each packet of many costs more than all that is done about it.
4. Back to 1 when nothing has come for a while.

So all stays in one thread, and a turn is as much alone as it is in a task. One that brings a deadline forward
may be noticed 20 ms late, when trio is asked again: it should rather wake a task that does. A socket is to be
closed only when it is attended to no more.

Where sockets are simulated, or trio waits by other means than an epoll, each is pumped by a task of its own.
"""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import Protocol

import trio
from trio.lowlevel import RunVar, Task

from protego_cli.net.pump import Turn, Waits, pump

LINGER = 0.02  # seconds
REST = 100e-6  # seconds between two looks at the sockets,
DENSE = 150e-6  # where from one to the next it is less than that without, on average;
SMOOTHING = 1 / 8  # in which the last one has this weight


class Socket(Waits, Protocol):
    """The part of a socket that is needed."""

    def fileno(self) -> int:
        """Its descriptor; negative where the kernel has none."""
        ...


async def attend(source: Socket, turn: Turn) -> None:
    """Call `turn` whenever `source` is readable, and again while it returns True, for ever.

    What a turn raises is raised here.
    """
    descriptor, trios = source.fileno(), _trios_epoll()
    if descriptor < 0 or trios is None:
        await pump(source, turn)
        return
    attendant = _attendant.get()
    if attendant is None:
        attendant = _Attendant(trios)
        _attendant.set(attendant)
        trio.lowlevel.spawn_system_task(attendant.run, name="attendant of the data path")
    await attendant.attend(descriptor, turn)


class _Attended:
    """One socket."""

    __slots__ = ("error", "failed", "turn")

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.failed = trio.Event()
        self.error: BaseException | None = None


class _Attendant(trio.abc.Instrument):
    """The one of a run of trio. As an instrument it is told which tasks are to run."""

    def __init__(self, trios: int) -> None:
        self._trios = trios
        self._epoll = select.epoll()  # of the sockets
        self._all = select.epoll()  # and of what trio waits for, too
        self._all.register(trios, select.EPOLLIN)
        self._sockets: dict[int, _Attended] = {}
        self._busy: list[int] = []  # those that may have more, whatever the kernel says
        self._over = 0.0  # when nothing will have come for a while
        self._looked = time.monotonic()  # when sockets had had their turns, and a rest perhaps
        self._gap = LINGER  # from there to the next turns, on average
        self._awake: set[Task] = set()

    def task_scheduled(self, task: Task) -> None:
        self._awake.add(task)

    def before_task_step(self, task: Task) -> None:
        self._awake.discard(task)

    async def attend(self, descriptor: int, turn: Turn) -> None:
        if descriptor in self._sockets:
            raise trio.BusyResourceError("another task attends to this socket")
        attended = self._sockets[descriptor] = _Attended(turn)
        try:
            for epoll in (self._epoll, self._all):
                epoll.register(descriptor, select.EPOLLIN)
            await attended.failed.wait()
        finally:
            self._forget(descriptor, attended)
            if attended.error is not None:
                raise attended.error

    async def run(self) -> None:
        """For ever."""
        trio.lowlevel.add_instrument(self)
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._over = time.monotonic() + LINGER
                while self._busy or time.monotonic() < self._over:
                    self._watch()
                    await trio.lowlevel.checkpoint()
        finally:
            trio.lowlevel.remove_instrument(self)
            _attendant.set(None)
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
            self._all.close()

    def _watch(self) -> None:
        """Give sockets their turns, until trio has something to do or nothing has come for a while."""
        now = asked = time.monotonic()
        deadline = now + _seconds_to_deadline()
        while True:
            wait = 0.0 if self._busy or self._awake else max(0.0, min(deadline, self._over) - now)
            events = self._all.poll(wait, len(self._sockets) + 1)
            ready, self._busy = self._busy, []
            due = False
            for descriptor, _ in events:
                if descriptor == self._trios:
                    due = True
                elif descriptor not in ready:
                    ready.append(descriptor)
            for descriptor in ready:
                self._give_turn(descriptor)
            now = time.monotonic()
            if ready:
                self._over = now + LINGER
                self._gap += SMOOTHING * (min(now - self._looked, LINGER) - self._gap)
                self._looked = now
            if now - asked > LINGER:
                deadline, asked = now + _seconds_to_deadline(), now
            if due or self._awake or not ready or now >= deadline:
                return
            if self._gap < DENSE and not self._busy:
                due = self._rest()
                now = self._looked = time.monotonic()
                if due:
                    return

    def _rest(self) -> bool:
        """Let packets gather; whether trio has something to do, which ends the rest."""
        return bool(select.select((self._trios,), (), (), REST)[0])  # an epoll counts in milliseconds

    def _give_turn(self, descriptor: int) -> None:
        attended = self._sockets.get(descriptor)
        if attended is None:  # closed too early, and another process has it open
            return
        try:
            if attended.turn():
                self._busy.append(descriptor)
        except BaseException as error:  # noqa: BLE001 - raised where the socket was brought
            self._forget(descriptor, attended)
            attended.error = error
            attended.failed.set()

    def _forget(self, descriptor: int, attended: _Attended) -> None:
        if self._sockets.get(descriptor) is not attended:
            return
        del self._sockets[descriptor]
        if descriptor in self._busy:
            self._busy.remove(descriptor)
        for epoll in (self._epoll, self._all):
            with suppress(OSError):  # not registered, or closed before
                epoll.unregister(descriptor)


_attendant: RunVar[_Attendant | None] = RunVar("attendant", None)


def _seconds_to_deadline() -> float:
    return trio.lowlevel.current_statistics().seconds_to_next_deadline


def _trios_epoll() -> int | None:
    """What trio waits by, which it has no public name for; None where it cannot be told."""
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        epoll = GLOBAL_RUN_CONTEXT.runner.io_manager._epoll
    except (ImportError, AttributeError):
        return None
    return epoll.fileno()
