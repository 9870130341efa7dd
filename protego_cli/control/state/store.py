"""What a state store is: a table of bytes that takes a set of changes whole and durably, or not at all.

A store knows nothing of what it holds. `vault.py` seals every value before it gets here and opens what
comes back, so a store, wherever it keeps its bytes, sees neither keys nor states. Stores are plugins
(`protego_state_stores`); `cluster.store` names one. All calls may block, come from one thread at a time, and
raise EnvironmentFault, in one sentence that says what to do, when they cannot keep their promise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

Change = tuple[bytes, bytes | None]
"""A key and its new value; None: the key goes."""


class Store(Protocol):
    """An open store."""

    def load(self) -> Iterable[tuple[bytes, bytes]]:
        """Every key and value, once, before the first commit."""
        ...

    def commit(self, changes: Sequence[Change]) -> None:
        """Make all changes, or none; when it returns they survive the loss of power."""
        ...

    def tend(self) -> None:
        """Called now and then between commits: shred what is deleted, keep what is kept small."""
        ...

    def close(self) -> None: ...


class StateStore(Protocol):
    """What a plugin hands out: a kind of store."""

    @property
    def name(self) -> str:
        """What `cluster.store` selects it by."""
        ...

    def open(self, directory: Path) -> Store:
        """The store of the GMN whose `cluster.state` is this directory (0700, locked by the caller)."""
        ...
