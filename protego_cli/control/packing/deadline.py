"""A time limit for code that blocks: a plugin's answer comes in time, or the plugin is interrupted.

1. A timer's signal raises `Overdue` in the code that runs, and again every `AGAIN` seconds, since one signal
   alone may come just before a call that blocks, and be slept through.
2. From the second time on, what runs next, in whichever frame, raises it once more: the body of an `except`
   that has caught it, the `__exit__` of a `with`. So a loop around either does not go on.

What a C extension does without coming back to the interpreter is not interrupted. Signals are the main
thread's: elsewhere there is no limit."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")

AGAIN: Final = 0.02


class Overdue(BaseException):
    """The time is up. Nobody but `within` is to catch it."""


class TooLate(Exception):
    """The answer did not come in time."""


class _Alarm:
    def __init__(self) -> None:
        self._off = False
        self._rung = False
        self._traced = sys.gettrace()

    def ring(self, signum: int, frame: FrameType | None) -> None:
        if self._off:
            return
        if self._rung:
            sys.settrace(self._strike)
            while frame is not None and frame.f_code.co_filename != __file__:
                frame.f_trace = self._strike
                frame = frame.f_back
        self._rung = True
        raise Overdue

    def _strike(self, frame: FrameType, event: str, argument: object) -> Any:
        """Trace what runs: raise there. The interpreter calls this once, since it raises."""
        if self._off or frame.f_code.co_filename == __file__:
            return None
        if event in ("call", "line"):  # the rest is the first one on its way out
            raise Overdue
        return self._strike

    def off(self) -> None:
        while not self._off:
            try:
                self._off = True
            except Overdue:  # it rang in this very moment
                continue
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.settrace(self._traced)


def within(seconds: float, question: Callable[[], T]) -> T:
    """What `question` returns, or raises. Raises TooLate when it takes longer."""
    if threading.current_thread() is not threading.main_thread():
        return question()
    alarm = _Alarm()
    before = signal.signal(signal.SIGALRM, alarm.ring)
    collects = gc.isenabled()
    gc.disable()  # what is raised in a callback of the collector is lost, with a warning
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
            return question()
        finally:
            alarm.off()
    except Overdue:
        alarm.off()
        raise TooLate from None
    finally:
        signal.signal(signal.SIGALRM, before)
        if collects:
            gc.enable()
