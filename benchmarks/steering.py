"""`python -m benchmarks.steering`, as root: what steering by nftables costs a GIN that steers 100,000 SPIs.

It runs in a network namespace of its own, which goes with the process. Times are from the first change to the
return of `tend` or `settle`, so until the kernel has them.
"""

from __future__ import annotations

import ctypes
import random
import statistics
import sys
import time

import trio

from protego_cli.counters import Counters
from protego_cli.net.nftables import NftIngress
from protego_cli.net.steering import Door, Gpn
from protego_cli.net.udp import Address, Buffer

SPIS, GPNS, CHANGES = 100_000, 8, 1000
LOAD_TARGET, CHANGE_TARGET = 5.0, 5.0  # seconds, milliseconds
PEER = ("198.51.100.7", 4500)
CLONE_NEWNET = 0x40000000


class Nowhere:
    """A socket that nothing is sent from."""

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        return False


async def measure(spis: int = SPIS, changes: int = CHANGES) -> tuple[float, list[float]]:
    """Seconds to load all SPIs as one message, and to move one of them, many times."""
    source = random.Random(2026)
    numbers = source.sample(range(256, 1 << 32), spis)
    ingress = NftIngress(Nowhere(), Counters(), Door("bench.gin-1", ("203.0.113.10",), 4500))
    try:
        for index in range(GPNS):
            ingress.put_gpn(Gpn(f"gpn-{index}", (f"10.10.0.{11 + index}", 4500), bytes(32)))
        begin = time.perf_counter()
        for spi in numbers:
            ingress.steer(spi, f"gpn-{spi % GPNS}", PEER)
        await ingress.tend()
        load = time.perf_counter() - begin
        took = []
        way: dict[int, int] = {}
        for _ in range(changes):
            spi = source.choice(numbers)
            way[spi] = (way.get(spi, spi) + 1) % GPNS
            begin = time.perf_counter()
            ingress.steer(spi, f"gpn-{way[spi]}", PEER)
            await ingress.settle()
            took.append(time.perf_counter() - begin)
        return load, took
    finally:
        ingress.close()


def main() -> int:
    """0 when both targets were met."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        sys.exit("a network namespace of its own needs root")
    load, took = trio.run(measure)
    median = statistics.median(took) * 1e3
    last = statistics.quantiles(took, n=100)[98] * 1e3
    print(f"{SPIS:,} SPIs loaded: {load:.2f} s (target {LOAD_TARGET:g} s)")
    print(f"one change: {median:.2f} ms median, {last:.2f} ms 99 % (target {CHANGE_TARGET:g} ms median)")
    return 0 if load < LOAD_TARGET and median < CHANGE_TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
