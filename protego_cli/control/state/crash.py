"""Named places at which the GMN may be made to end at once, so that tests can prove that it carries on.

`PROTEGO_CRASH_AT=NAME` kills the process with SIGKILL where it passes NAME for the first time, `NAME:3` for
the third. Otherwise a crash point does nothing. The names are in the code that calls `crash_point`, each
`PROCEDURE.what has just happened`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "PROTEGO_CRASH_AT"

Hook = Callable[[str], None]


def _from_environment() -> Hook | None:
    wanted, _, count = os.environ.get(VARIABLE, "").partition(":")
    if not wanted:
        return None
    left = int(count or 1)

    def end(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return end


hook: Hook | None = _from_environment()


def crash_point(name: str) -> None:
    if hook is not None:
        hook(name)
