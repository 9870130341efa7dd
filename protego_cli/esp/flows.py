"""Traffic selectors as the data path applies them (RFC 4301 4.4.1.1, 7).

A packet matches when some selector admits its source and some selector its destination. Nearly all SAs
select by addresses alone; then the address pair decides, and callers may remember the answer for it.
Selectors with protocols or ports look into every packet: a fragment but the first, and a protocol without
ports, match only selectors that admit every port, or OPAQUE (RFC 7296 3.13.1: start above end).
"""

from __future__ import annotations

from collections.abc import Sequence

from protego_cli.errors import Malformed
from protego_cli.wire.inner import Buffer, Inner, Transport, parse_transport
from protego_cli.wire.selectors import TrafficSelector

_NO_PORT = 65535, 0  # OPAQUE


class FlowSelectors:
    """The selectors of one direction."""

    __slots__ = ("_destinations", "_sources", "by_address")

    def __init__(self, sources: Sequence[TrafficSelector], destinations: Sequence[TrafficSelector]) -> None:
        self._sources = tuple(sources)
        self._destinations = tuple(destinations)
        self.by_address = all(ts.any_transport for ts in (*self._sources, *self._destinations))

    def admit(self, inner: Inner, packet: Buffer) -> bool:
        """Whether a packet matches in both directions; `packet` begins with its IP header."""
        half = len(inner.addresses) // 2
        source, destination = inner.addresses[:half], inner.addresses[half:]
        if self.by_address:
            return _covers(self._sources, source) and _covers(self._destinations, destination)
        try:
            transport = parse_transport(packet, inner)
        except Malformed:
            return False
        return any(_matches(ts, source, transport, transport.source_port) for ts in self._sources) and any(
            _matches(ts, destination, transport, transport.dest_port) for ts in self._destinations
        )

    def breadth(self, destination: bytes) -> int | None:
        """How many addresses the narrowest selector around this destination has; None when none holds it."""
        ranges = (
            int.from_bytes(ts.end) - int.from_bytes(ts.start) + 1
            for ts in self._destinations
            if len(ts.start) == len(destination) and ts.start <= destination <= ts.end
        )
        return min(ranges, default=None)


def _covers(selectors: tuple[TrafficSelector, ...], address: bytes) -> bool:
    size = len(address)
    return any(len(ts.start) == size and ts.start <= address <= ts.end for ts in selectors)


def _matches(ts: TrafficSelector, address: bytes, transport: Transport, port: int | None) -> bool:
    if len(ts.start) != len(address) or not ts.start <= address <= ts.end:
        return False
    if ts.protocol and ts.protocol != transport.protocol:
        return False
    if port is None:
        return (ts.start_port, ts.end_port) in ((0, 65535), _NO_PORT)
    return ts.start_port <= port <= ts.end_port
