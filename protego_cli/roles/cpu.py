"""How busy this process is, for its reports."""

from __future__ import annotations

import time
from collections.abc import Callable


class CpuMeter:
    """CPU seconds per second of this process since the last call; one process is one core's worth."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.process_time
    ) -> None:
        self._clock = clock
        self._cpu = cpu
        self._at = clock()
        self._used = cpu()

    def __call__(self) -> float:
        now, used = self._clock(), self._cpu()
        passed, spent = now - self._at, used - self._used
        self._at, self._used = now, used
        return round(spent / passed, 4) if passed > 0 else 0.0
