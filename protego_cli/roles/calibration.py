"""What a suite costs on this machine: measured once for each suite that a GPN has SAs of.

A row of short packets and one of long ones are sealed and opened under a key made for this; the best of some
tries counts, since whatever else happens only makes it slower. It takes a few milliseconds, and begins when
the GPN serves already: nothing waits for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from protego_cli.control.channel.node_messages import SuiteCost
from protego_cli.crypto.algorithms import EspSuite
from protego_cli.esp.transforms import Sealing, opening, sealing

SHORT, LONG = 64, 1408  # bytes of a plaintext, trailer included: multiples of every block
ROW: Final = 32
TRIES: Final = 5
_SPI: Final = 0x100


def calibrate(name: str, suite: EspSuite, clock: Callable[[], float] = time.perf_counter) -> SuiteCost:
    """Seconds per packet and per byte, of opening and of sealing."""
    key = os.urandom(suite.keymat_length)
    seal, unseal = sealing(suite, key, _SPI, os.urandom), opening(suite, key, _SPI)
    first = 1
    took: dict[int, tuple[float, float]] = {}
    for size in (SHORT, LONG):
        best_seal = best_open = float("inf")
        for _ in range(TRIES):
            numbers = range(first, first + ROW)
            first += ROW
            began = clock()
            row = seal.seal(numbers, [bytes(size)] * ROW)
            sealed = clock()
            unseal.open(row, _size(seal, size), numbers)
            opened = clock()
            best_seal, best_open = min(best_seal, sealed - began), min(best_open, opened - sealed)
        took[size] = best_open / ROW, best_seal / ROW
    costs = []
    for short, long in zip(took[SHORT], took[LONG], strict=True):
        byte = max(0.0, (long - short) / (LONG - SHORT))
        costs += [max(0.0, short - SHORT * byte), byte]
    return SuiteCost(name, *costs)


def _size(seal: Sealing, plaintext: int) -> int:
    return plaintext + seal.overhead
