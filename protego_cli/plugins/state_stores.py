"""Built-in state stores.

`sqlite` keeps the GMN's state in one database in `cluster.state`. It needs nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protego_cli.control.state.sqlite import SqliteStore
from protego_cli.control.state.store import StateStore
from protego_cli.hookspecs import hookimpl


class Sqlite:
    name = "sqlite"

    def open(self, directory: Path) -> SqliteStore:
        return SqliteStore(directory)


@hookimpl
def protego_state_stores() -> Sequence[StateStore]:
    return [Sqlite()]
