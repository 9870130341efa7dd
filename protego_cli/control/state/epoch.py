"""The GMN's epoch: a number that grows by one at every start; in the state, and readable in its `epoch` file.

It is stored before anybody hears of it, so no two lives of a GMN ever share one: data nodes refuse what is
below the highest they have seen, and IKE's nonces begin with it.

The state is written first, the file after it. So the file is ahead only where the state is an old copy,
whose numbers and nonces were used since: that is refused. Where there is no state the file is the floor: an
operator who has lost everything writes a number into it that is above all that the nodes have seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from protego_cli.errors import EnvironmentFault

EPOCH = b"epoch"
"""Its key in the state."""

_HIGHEST = 2**63 - 1


def next_epoch(state: Path, stored: int | None, store: Callable[[int], None]) -> int:
    """Take the next epoch: above `stored`, the one in the state; `store` puts it there, durably.

    Raises EnvironmentFault when it cannot be stored, no number is in the file, or the state is an old copy.
    """
    path = state / "epoch"
    try:
        noted = _noted(path, stored)
        if stored is not None and noted > stored:
            raise EnvironmentFault(
                f"{state}: the state is of epoch {stored}, but `epoch` says {noted}: it is an old copy, and "
                f"numbers used since would be used again; restore the newest, or move {state}/state.* away: "
                "the GMN then begins anew, and every peer must dial again"
            )
        epoch = max(noted, stored or 0) + 1
        store(epoch)
        _note(path, epoch)
    except OSError as error:
        raise EnvironmentFault(f"{path}: the epoch cannot be stored: {error.strerror}") from error
    return epoch


def _note(path: Path, epoch: int) -> None:
    temporary = path.with_name("epoch.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{epoch}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _noted(path: Path, stored: int | None) -> int:
    """The number in the file, 0 when there is none. Raises EnvironmentFault, which says what to do."""
    try:
        text = path.read_bytes()[:32].strip()
    except FileNotFoundError:
        return 0
    if not text.isdigit() or int(text) >= _HIGHEST:
        remedy = (
            "write into it a number above every epoch that the nodes have seen (their log names it), or "
            "remove it and restart all data nodes"
            if stored is None
            else f"remove it: the state beside it, if it is the newest there is, knows that it was {stored}"
        )
        raise EnvironmentFault(f"{path}: this does not hold an epoch; {remedy}")
    return int(text)
