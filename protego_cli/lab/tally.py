"""Counting at the receiving end: every packet is new, again, late, in the wrong place, or damaged.

One `FlowTally` per flow keeps a bit for each number seen, so a duplicate and a loss are told exactly
whatever the order. `Tally` holds the flows that one endpoint process receives and judges each packet by
where it arrived and what it says of itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from protego_cli.lab.traffic import Flow, parse, version_of


@dataclass(slots=True)
class FlowTally:
    """What one flow's receiver saw. `received` counts each number once."""

    received: int = 0
    duplicated: int = 0
    reordered: int = 0  # arrived after a higher number of the same IP version: only that is one stream
    _next: dict[int, int] = field(default_factory=lambda: {4: 0, 6: 0})  # the highest number seen, plus one
    _seen: bytearray = field(default_factory=bytearray)  # one bit per number

    def add(self, number: int) -> None:
        index, bit = number >> 3, 1 << (number & 7)
        seen = self._seen
        if index >= len(seen):
            seen.extend(bytes(max(index + 1 - len(seen), 1024)))
        elif seen[index] & bit:
            self.duplicated += 1
            return
        seen[index] |= bit
        self.received += 1
        version = version_of(number)
        if number < self._next[version]:
            self.reordered += 1
        else:
            self._next[version] = number + 1

    def gaps(self, sent: int, most: int = 4) -> tuple[tuple[int, int], ...]:
        """The first and last of the numbers below `sent` that never came, gap by gap, of the first gaps."""
        return tuple(islice(self._gaps(sent), most))

    def _gaps(self, sent: int) -> Iterator[tuple[int, int]]:
        seen, first = self._seen, None
        for number in range(sent):
            came = number >> 3 < len(seen) and seen[number >> 3] & 1 << (number & 7)
            if first is None and not came:
                first = number
            elif first is not None and came:
                yield first, number - 1
                first = None
        if first is not None:
            yield first, sent - 1


class Tally:
    """All flows one process receives."""

    def __init__(self, flows: Iterable[Flow]) -> None:
        self.flows: dict[Flow, FlowTally] = {flow: FlowTally() for flow in flows}
        self.misdelivered = 0
        self.corrupted = 0

    def add(self, here: Flow, packet: bytes | memoryview) -> None:
        """Judge an inner packet that arrived where only packets of flow `here` belong."""
        numbered = parse(packet)
        if numbered is None:
            self.corrupted += 1
        elif numbered.flow != here:
            self.misdelivered += 1
        else:
            self.flows[here].add(numbered.number)
