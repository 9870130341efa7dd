"""A process that keeps its heap takes no page faults for the buffers of its batches."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource
from protego_cli.net.heap import keep_heap
{call}
def batches():
    for _ in range(200):
        row = [bytes(40_000) for _ in range(40)]  # below what is mapped, above what is kept
        del row
batches()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
batches()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_batches_cost_no_page_faults() -> None:
    assert faults("") > 10_000
    assert faults("keep_heap(); keep_heap()") < 1_000
