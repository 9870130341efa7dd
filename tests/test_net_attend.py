"""The wait of the data path: sockets have their turns, and tasks theirs."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from protego_cli.net import attend as attending
from protego_cli.net.attend import attend

ATTENDANT = "attendant of the data path"


class Line:
    """A pair of sockets, and what has come at its far end."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair(type=socket.SOCK_DGRAM)
        self.far.setblocking(False)
        self.got: list[bytes] = []
        self.by: set[str] = set()  # tasks that turns were taken by
        self._awaited, self._there = 0, trio.Event()

    def fileno(self) -> int:
        return self.far.fileno()

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.far)

    def turn(self, then: Callable[[], object] = lambda: None) -> bool:
        """Receive one; whether there may be more."""
        self.by.add(trio.lowlevel.current_task().name)
        try:
            self.got.append(self.far.recv(100))
        except BlockingIOError:
            return False
        if len(self.got) == self._awaited:
            self._there.set()
        then()
        return True

    async def holds(self, count: int) -> None:
        if len(self.got) < count:
            self._awaited, self._there = count, trio.Event()
            with trio.fail_after(10):
                await self._there.wait()


def one(line: Line, then: Callable[[], object]) -> bool:
    """A turn for one packet, behind which the socket is empty until `then` sends another."""
    line.turn(then)
    return False


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    with made.near, made.far:
        yield made


@pytest.fixture
def other() -> Iterator[Line]:
    made = Line()
    with made.near, made.far:
        yield made


async def test_what_comes_has_its_turn_without_a_task_of_its_own(
    nursery: trio.Nursery, line: Line, other: Line
) -> None:
    nursery.start_soon(attend, line, line.turn)
    nursery.start_soon(attend, other, other.turn)
    for number in range(200):
        line.near.send(bytes([number]))
        other.near.send(bytes([number]))
        if number % 50 == 0:
            await trio.sleep(3 * attending.LINGER)  # whether it waits as a task does, or still lingers
    await line.holds(200)
    await other.holds(200)
    assert line.got == other.got == [bytes([number]) for number in range(200)]
    assert line.by == other.by == {ATTENDANT}


async def test_a_source_without_a_descriptor_is_pumped(nursery: trio.Nursery, line: Line) -> None:
    class Simulated:
        wait_readable = staticmethod(line.wait_readable)

        def fileno(self) -> int:
            return -1

    nursery.start_soon(attend, Simulated(), line.turn)
    line.near.send(b"x")
    await line.holds(1)
    assert ATTENDANT not in line.by


async def test_so_is_one_under_a_trio_that_waits_otherwise(
    nursery: trio.Nursery, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "_trios_epoll", lambda: None)
    nursery.start_soon(attend, line, line.turn)
    line.near.send(b"x")
    await line.holds(1)
    assert ATTENDANT not in line.by


async def test_while_packets_come_all_else_that_a_task_waits_for_is_noticed(
    nursery: trio.Nursery, line: Line
) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.wait(0.0005):
            line.near.send(b"x")

    nursery.start_soon(attend, line, line.turn)
    sender, receiver = trio.testing.memory_stream_pair()
    one, two = trio.socket.socketpair()
    with one, two, trio.fail_after(10):
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            await line.holds(5)
            began = trio.current_time()
            await trio.sleep(0.05)  # a deadline
            assert trio.current_time() - began < 0.05 + 10 * attending.LINGER
            await two.send(b"stream")  # a descriptor
            assert await one.recv(10) == b"stream"
            assert await trio.to_thread.run_sync(lambda: 7) == 7  # the word of a thread
            with trio.open_signal_receiver(signal.SIGUSR1) as signals:
                os.kill(os.getpid(), signal.SIGUSR1)
                async for number in signals:
                    assert number == signal.SIGUSR1
                    break
            nursery.start_soon(sender.send_all, b"tasks")  # another task
            assert await receiver.receive_some(5) == b"tasks"
        finally:
            stop.set()
            thread.join()
    assert line.by == {ATTENDANT}


async def test_a_task_that_a_turn_wakes_runs_before_more_than_one_packet(
    nursery: trio.Nursery, line: Line
) -> None:
    woken, at = trio.Event(), list[int]()

    async def wait() -> None:
        await woken.wait()
        at.append(len(line.got))

    nursery.start_soon(wait)
    nursery.start_soon(attend, line, partial(line.turn, woken.set))
    for _ in range(5):
        line.near.send(b"x")
    await line.holds(5)
    assert at in ([1], [2])  # trio tosses up who is first


async def test_tasks_that_never_rest_leave_sockets_their_turns(nursery: trio.Nursery, line: Line) -> None:
    async def spin() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    nursery.start_soon(spin)
    nursery.start_soon(attend, line, line.turn)
    for _ in range(100):
        line.near.send(b"x")
        await trio.lowlevel.checkpoint()
    await line.holds(100)


async def test_a_socket_that_always_has_more_leaves_tasks_and_sockets_theirs(
    nursery: trio.Nursery, line: Line, other: Line
) -> None:
    turns = 0

    def endless() -> bool:
        nonlocal turns
        turns += 1
        return True

    nursery.start_soon(attend, line, endless)
    nursery.start_soon(attend, other, other.turn)
    line.near.send(b"x")
    other.near.send(b"x")
    await other.holds(1)
    for _ in range(10):
        await trio.lowlevel.checkpoint()
    assert turns > 1


async def test_it_rests_when_nothing_comes(nursery: trio.Nursery, line: Line) -> None:
    nursery.start_soon(attend, line, line.turn)
    line.near.send(b"x")
    with trio.fail_after(10):
        await trio.testing.wait_all_tasks_blocked(0.001)
    assert line.got == [b"x"]


async def test_what_a_turn_raises_is_raised_where_the_socket_was_brought(
    nursery: trio.Nursery, line: Line, other: Line
) -> None:
    def broken() -> bool:
        raise ValueError("broken")

    nursery.start_soon(attend, other, other.turn)
    line.near.send(b"x")
    with trio.fail_after(10), pytest.raises(ValueError, match="broken"):
        await attend(line, broken)
    other.near.send(b"y")
    await other.holds(1)


async def test_so_is_what_no_handler_would_catch(line: Line) -> None:
    def broken() -> bool:
        raise SystemExit(7)

    line.near.send(b"x")
    with trio.fail_after(10), pytest.raises(SystemExit):
        await attend(line, broken)


async def test_it_is_raised_even_where_the_socket_is_given_up_at_the_same_time(line: Line) -> None:
    scope = trio.CancelScope()

    def broken() -> bool:
        scope.cancel()
        raise ValueError("broken")

    line.near.send(b"x")
    with trio.fail_after(10), pytest.raises(ValueError, match="broken"), scope:
        await attend(line, broken)


async def test_a_socket_is_attended_to_by_one_task_only(nursery: trio.Nursery, line: Line) -> None:
    nursery.start_soon(attend, line, line.turn)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await attend(line, lambda: False)
    line.near.send(b"x")
    await line.holds(1)  # by the first one


async def test_one_that_failed_takes_its_number_from_nobody(nursery: trio.Nursery, line: Line) -> None:
    """Who attends to the same descriptor next may come before the task that failed has its turn."""

    async def fail() -> None:
        with pytest.raises(ValueError, match="broken"):
            await attend(line, broken)
        over.set()

    def broken() -> bool:
        nursery.start_soon(attend, line, line.turn)
        raise ValueError("broken")

    over = trio.Event()
    nursery.start_soon(fail)
    line.near.send(b"x")
    with trio.fail_after(10):
        await over.wait()
    await line.holds(1)
    line.near.send(b"y")
    await line.holds(2)


async def test_a_socket_that_is_closed_too_early_harms_no_other(
    nursery: trio.Nursery, line: Line, other: Line
) -> None:
    nursery.start_soon(attend, other, other.turn)
    with line.far.dup():  # by which the kernel still tells of it
        async with trio.open_nursery() as attended:
            attended.start_soon(attend, line, line.turn)
            await trio.testing.wait_all_tasks_blocked()
            line.far.close()
            attended.cancel_scope.cancel()
        line.near.send(b"x")
        other.near.send(b"x")
        await other.holds(1)
    other.near.send(b"y")
    await other.holds(2)
    assert line.got == []


async def test_a_deadline_that_a_turn_brings_forward_is_met_while_packets_come(
    nursery: trio.Nursery, line: Line
) -> None:
    scope = trio.CancelScope()

    def again() -> None:
        line.near.send(b"x")
        scope.deadline = min(scope.deadline, trio.current_time() + 0.001)

    nursery.start_soon(attend, line, partial(one, line, again))
    line.near.send(b"x")
    with trio.fail_after(10), scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("dense", [True, False])
def test_ctrl_c_reaches_the_main_task_and_no_turn(line: Line, dense: bool) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attend, line, partial(one, line, interrupt))
            line.near.send(b"x")
            with trio.fail_after(10):
                await trio.sleep_forever()

    def interrupt() -> None:
        if len(line.got) == 1:
            signal.raise_signal(signal.SIGINT)
        if dense:
            line.near.send(b"x")

    with pytest.RaisesGroup(KeyboardInterrupt):
        trio.run(main, strict_exception_groups=True)
    assert line.got


async def test_a_socket_that_is_attended_to_no_more_can_be_closed_and_brought_again(line: Line) -> None:
    for number in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attend, line, line.turn)
            line.near.send(bytes([number]))
            await line.holds(number + 1)
            nursery.cancel_scope.cancel()
    line.near.send(b"x")
    await trio.sleep(2 * attending.LINGER)
    assert len(line.got) == 3


def test_nothing_is_left_open_behind_a_run(line: Line) -> None:
    async def once() -> None:
        with trio.move_on_after(0.01):
            await attend(line, line.turn)

    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        trio.run(once)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def watched_rests(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each rest returned, from now on."""
    rests: list[bool] = []
    rest = attending._Attendant._rest

    def watched(self: attending._Attendant) -> bool:
        rests.append(rest(self))
        return rests[-1]

    monkeypatch.setattr(attending._Attendant, "_rest", watched)
    return rests


async def test_what_trio_has_to_do_ends_a_rest(
    nursery: trio.Nursery, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "REST", 60.0)
    monkeypatch.setattr(attending, "DENSE", math.inf)
    rests = watched_rests(monkeypatch)
    near, far = socket.socketpair()
    with near, far, trio.fail_after(30):
        nursery.start_soon(attend, line, partial(one, line, lambda: far.send(b"stream")))
        line.near.send(b"x")
        await trio.lowlevel.wait_readable(near)
    assert rests == [True]


async def test_it_rests_between_turns_only_while_packets_come_densely(
    nursery: trio.Nursery, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, left, rests = 100.0, 0, watched_rests(monkeypatch)
    monkeypatch.setattr(attending, "time", SimpleNamespace(monotonic=lambda: now))

    def again(every: float) -> None:
        nonlocal now, left
        now += every
        left -= 1
        if left:
            line.near.send(b"x")

    for every, dense in ((0.001, False), (0.0001, True), (0.001, False)):
        left = 250
        line.near.send(b"x")
        async with trio.open_nursery() as attended:
            attended.start_soon(attend, line, partial(one, line, partial(again, every)))
            await line.holds(len(line.got) + 150)  # by when the average is that of these
            rests.clear()
            await line.holds(len(line.got) + 50)
            attended.cancel_scope.cancel()
        assert bool(rests) is dense


async def test_a_long_silence_does_not_keep_it_from_resting(
    nursery: trio.Nursery, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, rests = 100.0, watched_rests(monkeypatch)
    monkeypatch.setattr(attending, "time", SimpleNamespace(monotonic=lambda: now))

    def again() -> None:
        nonlocal now
        now += 3600 if len(line.got) == 1 else 0.0001
        line.near.send(b"x")

    nursery.start_soon(attend, line, partial(one, line, again))
    line.near.send(b"x")
    await line.holds(60)
    assert rests
