"""State stores that die with their GMN: in memory, and real databases as a killed process leaves them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from protego_cli.control.state.journal import Journal
from protego_cli.control.state.sqlite import SqliteStore
from protego_cli.control.state.store import Change, Store


class MortalStore(Store, Protocol):
    """A store of one life of a GMN; after its death it takes nothing more."""

    alive: bool

    def reborn(self) -> MortalStore:
        """The same for the next life, with what this one took."""
        ...

    async def offload(self, call: Callable[[], None]) -> None: ...


class MemoryStore:
    """A `Store` that forgets all when the test ends. A commit takes simulated time."""

    def __init__(self, held: dict[bytes, bytes] | None = None, delay: float = 0.0003) -> None:
        self.held = held if held is not None else {}
        self.alive = True
        self.commits: list[list[Change]] = []
        self._delay = delay

    def reborn(self) -> MemoryStore:
        return MemoryStore(self.held, self._delay)

    async def offload(self, call: Callable[[], None]) -> None:
        await trio.sleep(self._delay)
        call()

    def load(self) -> Iterable[tuple[bytes, bytes]]:
        return list(self.held.items())

    def commit(self, changes: Sequence[Change]) -> None:
        if not self.alive:
            return
        self.commits.append(list(changes))
        for key, value in changes:
            if value is None:
                self.held.pop(key, None)
            else:
                self.held[key] = value

    def tend(self) -> None:
        pass

    def close(self) -> None:
        pass


class KilledSqlite(MemoryStore):
    """A real database; each life begins with a copy of the files as the last one left them, WAL and all."""

    def __init__(self, directory: Path, life: int = 0) -> None:
        super().__init__()
        self._directory = directory
        self._life = life
        self._place = directory / str(life)
        if not life:
            self._place.mkdir()
        self._store = SqliteStore(self._place)

    def reborn(self) -> KilledSqlite:
        if self._life or self.commits:
            shutil.copytree(self._place, self._directory / str(self._life + 1))
            self._store.close()
            return KilledSqlite(self._directory, self._life + 1)
        return self

    def load(self) -> Iterable[tuple[bytes, bytes]]:
        return self._store.load()

    def commit(self, changes: Sequence[Change]) -> None:
        if self.alive:
            self.commits.append(list(changes))
            self._store.commit(changes)

    def close(self) -> None:
        self._store.close()


@asynccontextmanager
async def committing(store: MortalStore) -> AsyncIterator[Journal]:
    """A journal on what the store holds, and its committer at work."""
    async with trio.open_nursery() as nursery:
        journal = Journal(store, dict(store.load()), store.offload)
        nursery.start_soon(journal.run)
        yield journal
        nursery.cancel_scope.cancel()
