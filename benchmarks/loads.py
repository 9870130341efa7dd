"""What is sent in a timed stretch: datagrams of which sizes and SAs, and how they arrive.

`full` are GRO batches as long as they get, `imix` the usual mixture, which breaks them into short runs,
`single` datagrams that nothing merges, `many` SAs with four packets each in a batch.
"""

from __future__ import annotations

import random
from itertools import islice
from typing import NamedTuple

from protego_cli.net.gso import runs

SIZES = (64, 512, 1400)
IMIX = (64,) * 7 + (570,) * 4 + (1400,)
STRETCH_PACKETS = 128  # as many as the socket buffer of an unprivileged process holds
SAS = 10_000
IN_A_ROW = 4  # packets of each of many SAs
SEED = 1


class Packet(NamedTuple):
    """An inner packet of so many bytes on the SA of that number."""

    sa: int
    size: int


Buffer = list[Packet]
"""What one send carries, and one receive returns."""


class Load(NamedTuple):
    name: str
    size: float  # bytes of a packet, on average
    stretches: list[list[Buffer]]
    sas: int = 1


def full(size: int) -> Load:
    """Two batches as long as GRO makes them."""
    count = min(64, 65_507 // (size + 100))
    return Load(f"{size}", size, [[[Packet(0, size)] * count] * 2])


def single(size: int) -> Load:
    """The same packets one by one."""
    packets = [packet for buffer in full(size).stretches[0] for packet in buffer]
    return Load(f"{size} singly", size, [[[packet] for packet in packets]])


def imix() -> Load:
    """In runs of one size, the last perhaps shorter, as GRO finds them in a shuffled row."""
    sizes = list(IMIX) * (STRETCH_PACKETS // len(IMIX))
    random.Random(SEED).shuffle(sizes)
    row = [Packet(0, size) for size in sizes]
    return Load("IMIX", sum(IMIX) / len(IMIX), [[row[start:stop] for start, stop in runs(sizes)]])


def imix_single() -> Load:
    merged = imix()
    return merged._replace(name="IMIX singly", stretches=[[[p] for run in merged.stretches[0] for p in run]])


def many(size: int, sas: int = SAS) -> Load:
    """All SAs in turn, shuffled, four packets each, in batches of 44."""
    order = list(range(sas))
    random.Random(SEED).shuffle(order)
    row = (Packet(sa, size) for sa in order for _ in range(IN_A_ROW))
    buffers = iter(lambda: list(islice(row, 44)), [])
    stretches = iter(lambda: list(islice(buffers, 2)), [])
    return Load(f"{size}, {sas:,} SAs", size, list(stretches), sas)
