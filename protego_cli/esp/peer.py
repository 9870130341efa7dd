"""One tunnel's ESP, as an on-premises gateway does it: several generations of SAs, sealing on one of them.

1. `install` adds a CHILD_SA; it opens at once.
2. `select` says which one seals. After a rekey that is the old one until a packet arrives on the new
   (RFC 7296 2.8), which `take_first` tells.
3. `drop` forgets a CHILD_SA.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite, RandomSource
from protego_cli.errors import Malformed
from protego_cli.esp.packet import Dropped, trailer, unwrap
from protego_cli.esp.sa import InboundSa, OutboundSa
from protego_cli.wire import ecn
from protego_cli.wire.inner import parse
from protego_cli.wire.selectors import TrafficSelector

_HEADER = struct.Struct("!II")


@dataclass(frozen=True, slots=True)
class _Pair:
    inbound: InboundSa
    outbound: OutboundSa


class PeerTunnel:
    """A tunnel of one peer, sans-IO. Drops are counted in `counters` under the data path's reasons."""

    def __init__(self, random: RandomSource, counters: Counters | None = None) -> None:
        self._random = random
        self.counters = counters if counters is not None else Counters()
        self._pairs: dict[int, _Pair] = {}
        self._sealing: _Pair | None = None
        self._first: list[int] = []

    def install(
        self,
        spi_in: int,
        spi_out: int,
        suite: EspSuite,
        key_in: bytes,
        key_out: bytes,
        local_ts: Sequence[TrafficSelector],
        remote_ts: Sequence[TrafficSelector],
        *,
        seal_lo: int = 1,
        seal_hi: int = (1 << 32) - 1,
        window: int = 1024,
    ) -> None:
        """Add a CHILD_SA; keying material with salt or integrity key, selectors as this side sees them."""
        self._pairs[spi_in] = _Pair(
            InboundSa(spi_in, suite, key_in, local_ts=local_ts, remote_ts=remote_ts, window=window),
            OutboundSa(
                *(spi_out, suite, key_out, self._random),
                local_ts=local_ts,
                remote_ts=remote_ts,
                lo=seal_lo,
                hi=seal_hi,
            ),
        )

    def select(self, spi_in: int) -> None:
        """Seal on this CHILD_SA from now on. Raises KeyError when it is not installed."""
        self._sealing = self._pairs[spi_in]

    def drop(self, spi_in: int) -> None:
        """Forget a CHILD_SA; when it was the one that seals, nothing does until the next `select`."""
        pair = self._pairs.pop(spi_in, None)
        if pair is self._sealing:
            self._sealing = None

    def installed(self) -> list[int]:
        """The inbound SPIs, oldest first."""
        return list(self._pairs)

    def take_first(self) -> list[int]:
        """Inbound SPIs that opened their first packet since the last call."""
        first, self._first = self._first, []
        return first

    def seal(self, packets: Iterable[bytes]) -> list[bytes]:
        """The datagrams that carry these inner packets; those that may not go out are dropped and counted."""
        datagrams = []
        for packet in packets:
            try:
                datagrams.append(self._seal_one(packet))
            except Dropped as drop:
                self.counters[drop.counter] += 1
        return datagrams

    def open(self, datagrams: Iterable[bytes], now: float = 0.0, tos: int = 0) -> list[bytes]:
        """The inner packets of these datagrams, which came with this TOS; those that may not come in are
        dropped and counted.
        """
        packets = []
        for datagram in datagrams:
            try:
                packets.append(self._open_one(datagram, now, tos))
            except Dropped as drop:
                self.counters[drop.counter] += 1
        return [packet for packet in packets if packet is not None]

    def _seal_one(self, packet: bytes) -> bytes:
        if self._sealing is None:
            raise Dropped("gpn_drop_no_rule")
        sa = self._sealing.outbound
        try:
            inner = parse(packet)
        except Malformed:
            raise Dropped("gpn_drop_inner") from None
        if not sa.selectors.admit(inner, packet):
            raise Dropped("gpn_drop_selector_out")
        sealed = sa.seal([packet[: inner.length] + trailer(inner.length, inner.version, sa.block)])
        if not sealed:
            raise Dropped("gpn_drop_range")
        sa.packets += 1
        sa.bytes += inner.length
        return sealed

    def _open_one(self, datagram: bytes, now: float, tos: int) -> bytes | None:
        """None when the SA itself dropped and counted it."""
        if len(datagram) < _HEADER.size:
            raise Dropped("gpn_drop_short")
        spi, number = _HEADER.unpack_from(datagram)
        pair = self._pairs.get(spi)
        if pair is None:
            raise Dropped("gpn_drop_unknown_spi")
        sa = pair.inbound
        opened = sa.open((number,), datagram, len(datagram), self.counters, now)
        if not opened:
            return None
        if not sa.authentic:
            sa.authentic = True
            self._first.append(spi)
        inner, packet = unwrap(opened[0])
        left = ecn.leave(packet, tos)
        if left is None:
            raise Dropped("gpn_drop_ecn_in")
        if not sa.selectors.admit(inner, packet):
            raise Dropped("gpn_drop_selector_in")
        sa.packets += 1
        sa.bytes += inner.length
        return left
