"""The journal: what reveals state leaves only after the state is stored, many changes in one commit.

1. Whatever changed is *marked*: under its key, with a function that says what it is worth when the commit
   takes it (None: it is gone). Objects whose attributes are to be kept are `Durable` and mark themselves. The
   IKE engine is asked for its own `changes`.
2. What would reveal a change to those who cannot be told otherwise goes through `release`: an IKE datagram,
   the answer to an operator. It happens in the order of the calls, after all that had changed by then is
   stored; at once when that is so already.
3. A data node can be told otherwise: whatever it acts on, a new life's Sync puts it right. So an Update goes
   through `instruct`, which waits for `binding` changes alone: a sealing range that may be used from now on,
   an SA or a Rule that goes. The rest is stored with what is stored next, at the latest after `LINGER`.
4. `run`, the one committer, takes all that is marked in the step it takes it, so every commit is a state that
   all tasks agreed on between two of their steps. What changes while it is being stored goes with the next
   one. So the more there is to do, the less a commit costs.

A commit that fails ends `run` with EnvironmentFault, and with it the GMN: nothing that waited is released.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Final, Protocol

import msgspec
import trio

from protego_cli.control.state.crash import crash_point
from protego_cli.control.state.store import Change, Store
from protego_cli.errors import EnvironmentFault

LONG: Final = 0.002  # seconds: a change of threads, there and back, takes about 0.2 ms
TEND: Final = 10.0  # seconds between looks after the store
LINGER: Final = 0.05  # seconds that a change may wait which nothing waits for
ENGINE: Final = "ike"  # kinds of records: our IKE SPI -> the state of an IKE_SA
NODE: Final = "node"  # name -> the boot id of the process that we last knew

Worth = Callable[[], bytes | None]

_encode = msgspec.msgpack.Encoder().encode
_MISSING: Final = object()


class Mark(Protocol):
    """Marks a record; `binding`: before a node may hear of it."""

    def __call__(self, *, binding: bool = True) -> None: ...


def nothing(*, binding: bool = True) -> None:
    """The `Mark` of an object that nobody keeps."""


class Changing(Protocol):
    """The part of the IKE engine that the journal needs."""

    @property
    def changed(self) -> bool: ...

    def changes(self) -> list[Change]:
        """By their own keys."""
        ...


class Durable:
    """An object that marks itself when one of its `durable` attributes gets another value, as `binding` when
    it is one of these.
    """

    durable: ClassVar[frozenset[str]]
    binding: ClassVar[frozenset[str]] = frozenset()
    mark: Mark = staticmethod(nothing)

    def __setattr__(self, name: str, value: object) -> None:
        kept = name in self.durable and self.mark is not nothing
        changes = kept and getattr(self, name, _MISSING) != value
        object.__setattr__(self, name, value)
        if changes:
            self.mark(binding=name in self.binding)


Offload = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a call that blocks, and lets other tasks run meanwhile."""


class Blocking:
    """An `Offload`: in this thread while calls take less than a change of threads is worth, as they do on a
    good disk; in another one once they take longer, so that nothing else waits for the disk.
    """

    def __init__(self) -> None:
        self._usual = 0.0  # seconds that a call takes, lately

    async def __call__(self, call: Callable[[], None]) -> None:
        if self._usual > LONG:
            await trio.to_thread.run_sync(self._timed, call)
        else:
            self._timed(call)

    def _timed(self, call: Callable[[], None]) -> None:
        began = time.perf_counter()
        call()
        self._usual += (time.perf_counter() - began - self._usual) / 8


class Release(Protocol):
    """What may reveal state goes through here."""

    def __call__(self, reveal: Callable[[], None]) -> None: ...


def at_once(reveal: Callable[[], None]) -> None:
    """A `Release` where nothing is kept."""
    reveal()


class Journal:
    def __init__(self, store: Store, found: Mapping[bytes, bytes], offload: Offload | None = None) -> None:
        """`found` is what the store holds; `offload` calls the store, which may block."""
        self._offload = offload or Blocking()
        self.engine: Changing | None = None
        self._store = store
        self._found = dict(found)
        self._marked: dict[bytes, Worth] = {}
        self._reveals: list[Callable[[], None]] = []
        self._busy = False  # a commit is under way
        self._bound = False  # something binding is marked, or an instruction waits
        self._wanted = trio.Event()  # a commit, at once
        self._changed = trio.Event()  # something is marked
        self._neglected = False  # the store has to be looked after

    # ---- what was stored

    def found(self, kind: str) -> Iterator[tuple[bytes, bytes]]:
        """Each record of a kind that an earlier life has left: its identifier and value."""
        prefix = _key(kind, b"")
        for key, value in self._found.items():
            if key.startswith(prefix):
                yield key[len(prefix) :], value

    def forget_found(self) -> None:
        """The restart is over: nobody asks any more."""
        self._found.clear()

    # ---- what changes

    def mark(self, kind: str, identifier: bytes, worth: Worth, *, binding: bool = True) -> None:
        """This record has changed; `worth` is called when it is stored. The last mark of a key counts."""
        self._marked[_key(kind, identifier)] = worth
        self._changed.set()
        if binding:
            self._bound = True
            self._wanted.set()

    def put(self, kind: str, identifier: bytes, value: Any, *, binding: bool = True) -> None:
        """This record is now `value`, anything that msgspec encodes; None: it is gone."""
        data = None if value is None else _encode(value)
        self.mark(kind, identifier, lambda: data, binding=binding)

    # ---- what reveals it

    def release(self, reveal: Callable[[], None]) -> None:
        """Call `reveal`, which must not raise, once all that has changed until now is stored."""
        changed = self._marked or (self.engine is not None and self.engine.changed)
        if not (changed or self._reveals or self._busy):
            reveal()
        else:
            self._wait(reveal)

    def instruct(self, reveal: Callable[[], None]) -> None:
        """The same for what a node is told: once all that is binding is stored."""
        if self._bound or self._busy:
            self._bound = True  # the next one does not overtake it
            self._wait(reveal)
        else:
            reveal()

    def _wait(self, reveal: Callable[[], None]) -> None:
        self._reveals.append(reveal)
        self._wanted.set()

    def storing(self) -> trio.Event:
        """Happens once all that has changed until now is stored, which begins soon."""
        done = trio.Event()
        self.release(done.set)
        return done

    async def stored(self) -> None:
        """Return once all that has changed until now is stored."""
        await self.storing().wait()

    # ---- committing

    async def run(self) -> None:
        """Commit for ever. Raises EnvironmentFault when that fails."""
        fault: EnvironmentFault | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            try:
                await self._commit_what_is_wanted()
            except EnvironmentFault as error:
                fault = error
                nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault

    async def _commit_what_is_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            await trio.lowlevel.checkpoint()  # what others have to say in this turn goes with it
            await self._commit()
            if self._neglected:
                await self._offload(self._store.tend)
                self._neglected = False

    async def _keep_time(self) -> None:
        """Want what nothing waits for, and a look after the store, when their time has come."""
        tended = trio.current_time()
        while True:
            with trio.move_on_at(tended + TEND):
                await self._changed.wait()
            if self._changed.is_set():
                await trio.sleep(LINGER)
                self._changed = trio.Event()
            if trio.current_time() >= tended + TEND:
                tended = trio.current_time()
                self._neglected = True
            if self._marked or self._neglected:
                self._wanted.set()

    async def _commit(self) -> None:
        self._wanted = trio.Event()
        changes, reveals = self._take(), self._reveals
        self._reveals = []
        self._bound = False
        if changes:
            self._busy = True  # and so it stays when this fails: nothing is revealed any more
            crash_point("journal.before-commit")
            await self._offload(partial(self._store.commit, changes))
            crash_point("journal.after-commit")
            self._busy = False
        for reveal in reveals:
            reveal()
        crash_point("journal.revealed")

    def _take(self) -> list[Change]:
        changes = self.engine.changes() if self.engine is not None else []
        taken = [(_key(ENGINE, spi), state) for spi, state in changes]
        marked, self._marked = self._marked, {}
        return taken + [(key, worth()) for key, worth in marked.items()]


def _key(kind: str, identifier: bytes) -> bytes:
    return kind.encode() + b"/" + identifier
