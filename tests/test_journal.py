"""The journal: nothing is revealed before it is stored, in order, and many changes share one commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protego_cli.control.state import crash
from protego_cli.control.state.journal import LINGER, TEND, Blocking, Durable, Journal
from protego_cli.control.state.sqlite import SqliteStore
from protego_cli.control.state.store import Change
from protego_cli.errors import EnvironmentFault
from tests.support.stores import MemoryStore, committing


def noting(log: list[object], *entry: object) -> Callable[[], None]:
    return lambda: log.append(entry)


async def test_what_changes_nothing_is_revealed_at_once(autojump_clock: MockClock) -> None:
    log: list[object] = []
    async with committing(MemoryStore()) as journal:
        journal.release(noting(log, "now"))
        assert log == [("now",)]


async def test_a_change_is_stored_before_it_is_revealed(autojump_clock: MockClock) -> None:
    store = MemoryStore(delay=1.0)
    async with committing(store) as journal:
        seen: list[dict[bytes, bytes]] = []
        journal.mark("sa", b"1", lambda: b"one")
        journal.release(lambda: seen.append(dict(store.held)))
        await trio.sleep(0.9)
        assert seen == []
        await trio.sleep(0.2)
        assert seen == [{b"sa/1": b"one"}]


async def test_what_is_revealed_comes_in_the_order_of_the_calls(autojump_clock: MockClock) -> None:
    """Also what changed nothing itself: it may depend on what is still being stored."""
    log: list[object] = []
    async with committing(MemoryStore(delay=1.0)) as journal:
        for i in range(5):
            journal.put("k", b"%d" % i, i)
            journal.release(noting(log, i))
            await wait_all_tasks_blocked()  # the first is being stored
        journal.release(noting(log, "last"))
        await trio.sleep(5)
    assert log == [*((i,) for i in range(5)), ("last",)]


async def test_many_changes_share_a_commit(autojump_clock: MockClock) -> None:
    store = MemoryStore(delay=1.0)
    async with committing(store) as journal, trio.open_nursery() as nursery:

        async def one(i: int) -> None:
            await trio.sleep(i / 1000)
            journal.put("k", b"%d" % i, i)
            await journal.stored()

        for i in range(300):
            nursery.start_soon(one, i)
    assert len(store.held) == 300
    assert len(store.commits) == 2


async def test_a_value_is_what_it_is_when_it_is_stored(autojump_clock: MockClock) -> None:
    store = MemoryStore(delay=1.0)
    value = b"first"
    async with committing(store) as journal:
        journal.mark("k", b"", lambda: value)
        value = b"second"
        await journal.stored()
        journal.mark("k", b"", lambda: value)
        journal.mark("k", b"", lambda: None)
        await journal.stored()
    assert store.commits == [[(b"k/", b"second")], [(b"k/", None)]]


async def test_the_engine_is_asked_when_something_is_to_be_revealed(autojump_clock: MockClock) -> None:
    class Engine:
        changed = False

        def __init__(self) -> None:
            self.found: list[Change] = []

        def changes(self) -> list[Change]:
            taken, self.found, self.changed = self.found, [], False
            return taken

        def change(self, change: Change) -> None:
            self.found.append(change)
            self.changed = True

    engine, store = Engine(), MemoryStore()
    log: list[object] = []
    async with committing(store) as journal:
        journal.engine = engine
        engine.change((b"spi", b"state"))
        journal.release(noting(log, dict(store.held)))
        assert log == []
        await journal.stored()
        assert store.held == {b"ike/spi": b"state"}
        engine.change((b"spi", None))
        await journal.stored()
        assert store.held == {}


async def test_an_instruction_waits_for_what_is_binding_alone(autojump_clock: MockClock) -> None:
    store = MemoryStore(delay=1.0)
    log: list[object] = []
    async with committing(store) as journal:
        journal.put("asked", b"1", 1, binding=False)
        journal.instruct(noting(log, "at once"))
        assert log == [("at once",)]
        journal.put("sa", b"1", 1)
        journal.instruct(lambda: log.append(dict(store.held)))
        assert log == [("at once",)]
        await trio.sleep(1.5)
        assert log[1:] == [{b"asked/1": b"\x01", b"sa/1": b"\x01"}]


async def test_no_instruction_overtakes_another(autojump_clock: MockClock) -> None:
    log: list[object] = []
    async with committing(MemoryStore(delay=1.0)) as journal:
        journal.put("sa", b"1", 1)
        await wait_all_tasks_blocked()  # it is being stored
        journal.instruct(noting(log, 1))
        with trio.move_on_after(5):
            while not log:
                journal.instruct(noting(log, 2))
                await trio.sleep(0.01)
        await trio.sleep(5)
    assert log[0] == (1,)
    assert set(log[1:]) == {(2,)}


async def test_what_nothing_waits_for_is_stored_soon(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with committing(store) as journal:
        journal.put("k", b"", 1, binding=False)
        await wait_all_tasks_blocked()
        assert store.held == {}
        await trio.sleep(2 * LINGER)
        assert store.held == {b"k/": b"\x01"}


class Tended(MemoryStore):
    tends = 0

    def tend(self) -> None:
        self.tends += 1


@pytest.mark.parametrize("binding", [False, True])
async def test_the_store_is_tended_however_much_changes(autojump_clock: MockClock, binding: bool) -> None:
    store = Tended()
    async with committing(store) as journal:
        for i in range(100):
            journal.put("k", b"", i, binding=binding)
            await trio.sleep(TEND / 20)
        assert store.tends in (4, 5)
        await trio.sleep(10 * TEND)
        assert store.tends in (14, 15)
    assert len(store.commits) == 100


class Thing(Durable):
    durable = frozenset({"kept", "bound"})
    binding = frozenset({"bound"})

    def __init__(self) -> None:
        self.kept = 0
        self.bound = 0
        self.other = 0


def test_only_a_change_of_what_is_kept_marks() -> None:
    thing, marks = Thing(), []

    def mark(*, binding: bool = True) -> None:
        marks.append((thing.kept, binding))

    thing.mark = mark
    thing.other = 5
    thing.kept = 0
    assert marks == []
    thing.kept = 7
    thing.kept = 7
    assert marks == [(7, False)]
    thing.bound = 1
    assert marks[1:] == [(7, True)]


class Full(MemoryStore):
    def commit(self, changes: object) -> None:
        raise EnvironmentFault("the disk is full")


async def test_when_a_commit_fails_nothing_that_waits_is_revealed(autojump_clock: MockClock) -> None:
    log: list[object] = []
    journal = Journal(Full(), {}, Full().offload)
    journal.put("k", b"", 1)
    journal.release(noting(log, "lie"))
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        await journal.run()
    journal.release(noting(log, "another"))
    assert log == []


async def test_what_was_stored_is_found_by_kind(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.commit([(b"sa/\x00\x01", b"a"), (b"sax/1", b"b"), (b"epoch", b"7")])
    journal = Journal(store, dict(store.load()))
    assert list(journal.found("sa")) == [(b"\x00\x01", b"a")]
    journal.forget_found()
    assert list(journal.found("sa")) == []
    store.close()


def test_a_crash_point_kills_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(crash.os, "kill", lambda pid, number: killed.append(number))
    monkeypatch.setenv(crash.VARIABLE, "migration.placed:2")
    monkeypatch.setattr(crash, "hook", crash._from_environment())
    for name in ("migration.placed", "migration.deleted", "migration.placed", "migration.placed"):
        crash.crash_point(name)
    assert killed == [9]
    monkeypatch.delenv(crash.VARIABLE)
    assert crash._from_environment() is None


async def test_a_slow_disk_is_waited_for_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    took = 0.0
    in_loop: list[bool] = []

    def call() -> None:
        nonlocal now
        in_loop.append(threading.current_thread() is threading.main_thread())
        now += took

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    blocking = Blocking()
    for took, times in ((0.0003, 3), (0.1, 2), (0.0003, 60)):  # noqa: B007 - `call` reads it
        for _ in range(times):
            await blocking(call)
    assert in_loop[:4] == [True] * 4  # the fourth was the first to be slow
    assert in_loop[4:20] == [False] * 16
    assert in_loop[-1]
