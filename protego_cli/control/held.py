"""The tunnels that the operator has taken down: they stay down until he says otherwise, whatever restarts.

Each is a key of the GMN's state, stored before the operator hears that it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from protego_cli.control.store import Change

PREFIX: Final = b"held:"
"""Of their keys in the state; the tunnel's id follows, and the value is empty."""


class Held:
    """A set of ids that survives."""

    def __init__(self, stored: Iterable[bytes], commit: Callable[[Sequence[Change]], None]) -> None:
        """`stored`: the keys of the state. `commit` stores a change, or raises EnvironmentFault."""
        self._ids = {key[len(PREFIX) :].decode() for key in stored if key.startswith(PREFIX)}
        self._commit = commit

    def __contains__(self, tunnel: str) -> bool:
        return tunnel in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._ids))

    def add(self, tunnel: str) -> None:
        """Raises EnvironmentFault when it cannot be stored; then nothing has changed."""
        if tunnel not in self._ids:
            self._commit([(PREFIX + tunnel.encode(), b"")])
            self._ids.add(tunnel)

    def discard(self, tunnel: str) -> None:
        """Raises EnvironmentFault when it cannot be stored; then nothing has changed."""
        if tunnel in self._ids:
            self._commit([(PREFIX + tunnel.encode(), None)])
            self._ids.discard(tunnel)
