"""How everything here is measured: stretches of work, the floor's and the role's in turns.

1. Fill a socket with batches of 44 packets, from this process; untimed.
2. Empty it, with the role's own loop or with the floor's bare calls; timed, in CPU seconds of this process.
3. Take away what came out at the other end, and see that it is all there; untimed.

Medians over many rounds, each with the same number of stretches of either kind, so that whatever else the
machine does falls on both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from protego_cli.net.udp import UdpSocket

PACKETS = 44  # in a batch
BATCHES = 2  # in a timed stretch: as many as the socket buffer of an unprivileged process holds
STRETCHES = 32  # in a round
ROUNDS = 50


class Cost(NamedTuple):
    """CPU seconds per packet."""

    loop: float
    floor: float


class Row(NamedTuple):
    """One line of the table."""

    name: str
    size: int  # bytes of a packet as the throughput counts them
    target: float  # at most this many times the floor
    cost: Cost

    @property
    def ratio(self) -> float:
        return self.cost.loop / self.cost.floor

    @property
    def gbits(self) -> float:
        return self.size * 8e-9 / self.cost.loop


class Side(NamedTuple):
    """One kind of stretch: how to fill by one batch, and what empties it."""

    fill: Callable[[], None]
    empty: Callable[[], None]


def compare(loop: Side, floor: Side, sink: UdpSocket, rounds: int = ROUNDS) -> Cost:
    """The cost of a packet on both sides; `sink` is where both send to."""
    rows = [(_round(loop, sink), _round(floor, sink)) for _ in range(rounds)]
    loops, floors = zip(*rows, strict=True)
    return Cost(statistics.median(loops), statistics.median(floors))


def _round(side: Side, sink: UdpSocket) -> float:
    spent, arrived = 0.0, 0
    for _ in range(STRETCHES):
        for _ in range(BATCHES):
            side.fill()
        began = time.process_time()
        side.empty()
        spent += time.process_time() - began
        arrived += sum(_arrivals(sink))
    expected = STRETCHES * BATCHES * PACKETS
    if arrived != expected:
        raise RuntimeError(f"{arrived} packets arrived of {expected}")
    return spent / arrived


def _arrivals(sink: UdpSocket) -> Iterator[int]:
    while (batch := sink.receive()) is not None:
        yield -(-len(batch.view) // batch.size)
