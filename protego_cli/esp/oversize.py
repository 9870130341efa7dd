"""Inner packets that do not fit a tunnel's path once they are sealed (RFC 4301 8, RFC 4303 3.3.4).

A tunnel's MTU is that of the path to its peer. What exceeds it, sealed, is

1. IPv6, or IPv4 with DF: not sealed; its sender is told the largest packet that fits (RFC 1191, RFC 8201),
   at a bounded rate (`telling.py`). Never less than 1,280 for IPv6 (RFC 8200 5): packets
   up to that are sealed, and the ESP packet is fragmented.
2. IPv4 without DF: cut before it is sealed, so that the peer need not reassemble, and no network on the way
   see fragments; or, with `fragment = "outer"`, sealed whole, and the ESP packet is fragmented. An SA that
   selects by ports has no place for fragments without any (RFC 4301 7), so there it is always the latter.
"""

from __future__ import annotations

from protego_cli.counters import Counters
from protego_cli.errors import Malformed
from protego_cli.esp.pairs import Pair
from protego_cli.esp.telling import Telling
from protego_cli.wire.checksum import intact
from protego_cli.wire.fragments import fragment, may_be_cut
from protego_cli.wire.icmp_errors import too_big
from protego_cli.wire.inner import Inner


class Oversize:
    """Says what is sealed instead of a packet beyond its tunnel's limit."""

    def __init__(self, counters: Counters, telling: Telling) -> None:
        self._counters = counters
        self._telling = telling

    def fit(self, pair: Pair, inner: Inner, packet: bytes, now: float) -> list[bytes]:
        """The packets to seal; nothing where the sender is told."""
        limit = pair.limit(inner.version)
        if inner.length <= limit:
            return [packet]
        if inner.version == 4 and not intact(packet[: (packet[0] & 15) * 4]):
            self._counters["gpn_drop_inner"] += 1
            return []
        if not may_be_cut(packet):
            self._counters["gpn_drop_too_big"] += 1
            self._telling.tenant(pair, packet, too_big(limit), "gpn_told_too_big", now)
            return []
        if pair.entry.fragment == "outer" or not pair.outbound.selectors.by_address:
            return [packet]
        try:
            pieces = fragment(packet, limit)
        except Malformed:
            self._counters["gpn_drop_inner"] += 1
            return []
        self._counters["gpn_fragmented"] += 1
        return pieces
