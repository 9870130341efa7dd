"""The frame of both roles that only forward, GIN and GEN: the same loads, against the same floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks import loads
from benchmarks.bench import Case, Cost, Effort, Side, compare
from benchmarks.floor import Step, floor
from benchmarks.loads import Load, Packet
from protego_cli.net.udp import Address, UdpSocket

TARGET, TARGET_SINGLE = 1.5, 1.6

Build = Callable[[int, Packet], bytes]
"""The datagram for a packet, by its place in its buffer."""


def forward(
    stack: ExitStack,
    load: Load,
    effort: Effort,
    build: Build,
    *,
    source: UdpSocket,
    entry: Address,
    empty: Callable[[], None],
    sink: UdpSocket,
) -> Cost:
    """What `empty` spends on a load that `source` sends to `entry`, and that arrives at `sink`."""
    (stretch,) = load.stretches
    buffers = [[build(place, packet) for place, packet in enumerate(buffer)] for buffer in stretch]
    steps = [Step((), [(list(map(len, buffer)), sink.address)]) for buffer in buffers]
    bare_address, bare = floor(stack, steps)
    sends = [(b"".join(buffer), len(buffer[0])) for buffer in buffers]

    def fill(dest: Address) -> None:
        for data, size in sends:
            source.send(data, size, dest)

    count = sum(map(len, buffers))
    return compare(
        Side(partial(fill, entry), empty, count, count),
        Side(partial(fill, bare_address), bare, count, count),
        sink,
        effort,
    )


def cases(role: str, direction: str, measure: Callable[[Load, Effort], Cost]) -> Iterator[Case]:
    """A role's lines of the table."""
    chosen: list[tuple[Load, float | None]] = [(loads.full(size), TARGET) for size in loads.SIZES]
    chosen += [(loads.imix(), None), (loads.imix_single(), TARGET_SINGLE)]
    chosen += [(loads.single(size), TARGET_SINGLE) for size in loads.SIZES]
    for load, target in chosen:
        yield Case(role, direction, "", load.name, load.size, target, partial(measure, load))
