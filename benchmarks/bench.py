"""How everything here is measured: stretches of work, the role's and the floor's in turns.

1. Fill a socket with the packets of a stretch, from this process; untimed.
2. Empty it, with the role's own loop or with the floor's bare calls; timed, in CPU seconds of this process.
3. Take away what came out at the other end, and see that it is all there; untimed.

A round is as many stretches of either kind; its ratio compares neighbours in time, so that whatever else the
machine does falls on both alike. The median of the rounds' ratios is the result.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cryptography

from protego_cli.counters import Counters
from protego_cli.net.bundles import unbundled
from protego_cli.net.udp import UdpSocket


def machine() -> dict[str, str]:
    """When and where figures were taken."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cryptography": cryptography.__version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def cpu_seconds(pid: int) -> float:
    """What a process has used of CPU time, all its threads and their system calls, by the kernel's count."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


VOID = 5  # stretches in a row that may be
LATE = 0.02  # seconds for what was not there in time


class Effort(NamedTuple):
    """How long to measure."""

    rounds: int = 21
    stretches: int = 24  # in a round


class Cost(NamedTuple):
    """CPU seconds per packet, and the ratio."""

    loop: float
    floor: float
    ratio: float


class Row(NamedTuple):
    """One line of the table."""

    role: str
    direction: str
    suite: str  # empty where nothing is ciphered
    load: str
    size: float  # bytes of a packet as the throughput counts them
    target: float | None  # at most this many times the floor
    cost: Cost

    @property
    def gbits(self) -> float:
        return self.size * 8e-9 / self.cost.loop

    @property
    def met(self) -> bool:
        return self.target is None or self.cost.ratio <= self.target


class Case(NamedTuple):
    """A line of the table before it is measured."""

    role: str
    direction: str
    suite: str
    load: str
    size: float
    target: float | None
    measure: Callable[[Effort], Cost]

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.role, self.direction, self.suite, self.load) if part)

    def run(self, effort: Effort) -> Row:
        return Row(*self[:-1], self.measure(effort))


class Side(NamedTuple):
    """One kind of stretch: how to fill, what empties, how many packets that is, how many of them arrive."""

    fill: Callable[[], None]
    empty: Callable[[], None]
    packets: int
    arriving: int


def compare(loop: Side, floor: Side, sink: UdpSocket, effort: Effort) -> Cost:
    """The cost of a packet on both sides; `sink` is where both send to."""
    for side in (loop, floor):
        _stretch(side, sink)
    rounds = [
        (_round(loop, sink, effort.stretches), _round(floor, sink, effort.stretches))
        for _ in range(effort.rounds)
    ]
    loops, floors = zip(*rounds, strict=True)
    ratio = statistics.median(ours / bare for ours, bare in rounds)
    return Cost(statistics.median(loops), statistics.median(floors), ratio)


def _round(side: Side, sink: UdpSocket, stretches: int) -> float:
    return sum(_stretch(side, sink) for _ in range(stretches)) / (stretches * side.packets)


def _stretch(side: Side, sink: UdpSocket) -> float:
    """CPU seconds. A busy machine may deliver packets only after we looked for them: that is void."""
    arrived = 0
    for _ in range(VOID):
        side.fill()
        began = time.process_time()
        side.empty()
        spent = time.process_time() - began
        arrived = sum(_arrivals(sink))
        if arrived == side.arriving:
            return spent
        time.sleep(LATE)
        side.empty()
        arrived += sum(_arrivals(sink))
    raise RuntimeError(f"{arrived} packets arrived of {side.arriving}")


def _arrivals(sink: UdpSocket) -> Iterator[int]:
    counters = Counters()
    while train := sink.receive_train():
        senders = {batch.source[0] for batch in train}
        for view, size, *_ in unbundled(train, senders, counters, "gpn_drop_tag"):
            yield -(-len(view) // size)
