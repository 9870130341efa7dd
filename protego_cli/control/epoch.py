"""The GMN's epoch: a number in `cluster.state/epoch` that grows by one at every start.

It is on the disk before anybody hears of it, so no two lives of a GMN ever share one: data nodes refuse what
is below the highest they have seen, and IKE's nonces begin with it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from protego_cli.errors import EnvironmentFault

_HIGHEST = 2**63 - 1


def next_epoch(state: Path) -> int:
    """Take the next epoch. Raises EnvironmentFault when it cannot be stored, or no number is stored."""
    path = state / "epoch"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(state.stat().st_mode) & 0o022:
            raise EnvironmentFault(f"{state}: others can write to this directory; run `chmod 700 {state}`")
        directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # two GMNs that start at once take two epochs
            epoch = _stored(path) + 1
            temporary = state / "epoch.new"
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(f"{epoch}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise EnvironmentFault(f"{path}: the epoch cannot be stored: {error.strerror}") from error
    return epoch


def _stored(path: Path) -> int:
    """The last epoch taken, 0 when there is none."""
    try:
        text = path.read_bytes()[:32].strip()
    except FileNotFoundError:
        return 0
    if not text.isdigit() or int(text) >= _HIGHEST:
        raise EnvironmentFault(
            f"{path}: this does not hold an epoch; write into it a number above every epoch that the "
            "nodes have seen (their log names it), or remove it and restart all data nodes"
        )
    return int(text)
