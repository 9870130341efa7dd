"""What glibc's malloc does with memory that batches free: it keeps it.

By default it gives the top of the heap back to the kernel whenever 128 KB are free there. Where the heap
happens to end below a batch's buffers, every batch then pays page faults for all of them: twice the CPU
time, and which process it hits is chance. Another C library is left as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1  # of mallopt(3)
_MMAP_THRESHOLD: Final = -3
KEPT: Final = 64 << 20  # bytes at the top of the heap; what a process needs at most for its batches is less
LARGE: Final = 8 << 20  # bytes from which on an allocation is a mapping of its own


def keep_heap() -> None:
    """Until the process ends. Idempotent."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT)
        mallopt(_MMAP_THRESHOLD, LARGE)
