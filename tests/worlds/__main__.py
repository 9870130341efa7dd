"""`python -m tests.worlds SEED...` repeats seeds; `--hunt SECONDS [FIRST]` looks for new ones that fail."""

from __future__ import annotations

import sys
import time
import traceback

from tests.worlds.scenario import play


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["--hunt"]:
        for seed in map(int, arguments):
            print(*play(seed), sep="\n")
        return 0
    end = time.monotonic() + float(arguments[1])
    seed = first = int(arguments[2]) if len(arguments) > 2 else time.time_ns() // 1000
    failed = 0
    while time.monotonic() < end:
        try:
            play(seed)
        except BaseExceptionGroup as error:
            failed += 1
            traceback.print_exception(error)
        seed += 1
    print(f"{seed - first} seeds, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
