"""Other processes of this same program: how to run them, and how to know one again that somebody else
started."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple, Self

_STARTED = 21  # of /proc/PID/stat, from 0: the time of its start, field 22 of proc(5)


def program() -> list[str]:
    """How to run this same `protego` again, whatever lies in the directory that the user is in: only where he
    has named the module himself may it come from there.
    """
    if getattr(sys, "frozen", False):
        return [sys.executable]
    by_name = getattr(sys.modules["__main__"], "__spec__", None) is not None
    return [sys.executable, *(() if by_name else ("-P",)), "-m", "protego_cli"]


class ProcessId(NamedTuple):
    """A process, told from a later one that got the same number."""

    pid: int
    started: int  # clock ticks since the machine's start

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """None when there is none, or one that has ended and was not waited for."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # behind the name, which may hold anything
        return None if fields[0] in "ZX" else cls(pid, int(fields[_STARTED - 2]))

    @property
    def lives(self) -> bool:
        return ProcessId.of(self.pid) == self

    def open(self) -> int | None:
        """A pidfd, which is readable once the process has ended; None when it has ended already."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.lives:
            return descriptor
        os.close(descriptor)
        return None
