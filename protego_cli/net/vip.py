"""What arrives on a VIP: IKE, ESP, keepalives and garbage, told apart a batch at a time.

On the NAT traversal port (RFC 3948 2):
1. One byte of 0xFF is a keepalive: absorbed. Anything else shorter than ESP can be: dropped.
2. Nearly always all packets of a batch have one SPI, which is told in C, as is the highest number among them
   (`wire/heads.py`), and the batch goes on whole; else its packets are put apart by SPI, their order kept.
3. Zero is the non-ESP marker: IKE, without the marker, to the relay. A steered SPI goes to the steering. A
   reserved SPI would be a tag, and tags never come from outside; any other SPI is not ours.

On the IKE port everything is IKE. What comes without UDP (IP protocol 50) is ESP, for which 2. and 3. hold as
well, but for IKE. Any SA's packets may have either form (RFC 7296 2.23).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from protego_cli.counters import Counters
from protego_cli.net.gso import grouped, segments
from protego_cli.net.steering import Ingress
from protego_cli.net.udp import Address, Batch
from protego_cli.wire.columns import column
from protego_cli.wire.heads import one_spi
from protego_cli.wire.tags import MAX_RESERVED_SPI

NON_ESP_MARKER = bytes(4)
MAX_SEQUENCE = (1 << 32) - 1
MIN_ESP = 16  # SPI, sequence number and the least that can follow them
MIN_IKE = 28  # the IKE header (RFC 7296 3.1)

_HEADER = struct.Struct("!II")

Ike = Callable[[memoryview | bytes, Address], None]
"""Takes one IKE message and where it came from."""

Other = Callable[[int, memoryview | bytes, int, int, Address], None]
"""Takes packets whose first word is no SPI of ours: that word, the packets, size, count and source."""


class VipPort:
    """One VIP and port of a GIN."""

    def __init__(self, ike: Ike, esp: Ingress, counters: Counters) -> None:
        self._ike = ike
        self._forward = esp.forward
        self._forward_row = esp.forward_row
        self._counters = counters

    def receive_natt(self, batch: Batch) -> None:
        """A batch on the NAT traversal port."""
        if batch.size < MIN_ESP:
            self._short(batch.view, max(batch.size, 1))
        else:
            self._receive(batch, self._not_steered)

    def receive_natt_row(self, row: Sequence[Batch]) -> bool:
        """Batches on the NAT traversal port together, if they are ESP of one SPI from one source; False,
        having done nothing, where they are to be received one by one.
        """
        source, heads = row[0].source, list[int]()
        for view, size, where, _ in row:
            if size < MIN_ESP or where != source:
                return False
            count, tail = divmod(len(view), size)
            if tail:
                if tail < MIN_ESP:
                    return False
                count += 1
            heads += column(size, count, 8).unpack_from(view)
        spi, number = divmod(max(heads), 1 << 32)
        return min(heads) >> 32 == spi and self._forward_row(spi, row, len(heads), number)

    def receive_raw(self, batch: Batch) -> None:
        """A batch of ESP without UDP."""
        view, size, source, tos = batch
        count, tail = divmod(len(view), size) if size else (1, 0)
        if size < MIN_ESP:
            self._counters["gin_drop_short"] += count + bool(tail)
            return
        if 0 < tail < MIN_ESP:
            self._counters["gin_drop_short"] += 1
            view, tail = view[:-tail], 0
        self._counters["gin_esp_raw"] += count + bool(tail)
        self._receive(Batch(view, size, source, tos), self._not_steered_raw)

    def _receive(self, batch: Batch, other: Other) -> None:
        view, size, source, tos = batch
        count, tail = divmod(len(view), size)
        if tail >= MIN_ESP:
            count += 1
        elif tail:
            self._short(view[-tail:], tail)
            view = view[:-tail]
        head = one_spi(view, size, count)
        if head is not None:
            spi, highest = head
            if not (spi and self._forward(spi, view, size, count, highest, source, tos)):
                other(spi, view, size, count, source)
            return
        heads = column(size, count, 8).unpack_from(view)
        ordered = sorted(heads)
        tops = {
            head >> 32: head & MAX_SEQUENCE for head in ordered
        }  # the last of each SPI stays: its highest
        for spi, part, packets in grouped(view, size, [head >> 32 for head in heads]):
            if not (spi and self._forward(spi, part, size, packets, tops[spi], source, tos)):
                other(spi, part, size, packets, source)

    def receive_returned(self, packet: bytes, source: Address, tos: int) -> None:
        """An ESP packet that a GPN did not know: it is steered by our own table, or nobody's."""
        spi, number = _HEADER.unpack_from(packet)
        view = memoryview(packet)
        if spi > MAX_RESERVED_SPI and self._forward(spi, view, len(view), 1, number, source, tos):
            self._counters["gin_esp_returned"] += 1
        else:
            self._counters["gin_drop_unknown_spi"] += 1

    def receive_ike(self, batch: Batch) -> None:
        """A batch on the IKE port."""
        for segment in segments(batch.view, batch.size):
            self._message(segment, batch.source)

    def _not_steered(
        self, spi: int, data: memoryview | bytes, size: int, count: int, source: Address
    ) -> None:
        """Packets whose first word is no SPI of ours."""
        if spi == 0:
            for segment in segments(memoryview(data), size):
                self._message(segment[len(NON_ESP_MARKER) :], source)
        else:
            self._not_ours(spi, count)

    def _not_steered_raw(
        self, spi: int, data: memoryview | bytes, size: int, count: int, source: Address
    ) -> None:
        """The same without UDP, where zero is no marker, but an SPI that nobody may use (RFC 4303 2.1)."""
        self._not_ours(spi, count)

    def _not_ours(self, spi: int, count: int) -> None:
        reserved = 0 < spi <= MAX_RESERVED_SPI
        self._counters["gin_drop_tag_outside" if reserved else "gin_drop_unknown_spi"] += count

    def _message(self, message: memoryview, source: Address) -> None:
        if len(message) < MIN_IKE:
            self._counters["gin_drop_short"] += 1
        else:
            self._ike(message, source)

    def _short(self, view: memoryview, size: int) -> None:
        """Datagrams too short for anything but a keepalive."""
        keepalives = bytes(view).count(0xFF) if size == 1 else 0
        count = max(1, -(-len(view) // size))  # an empty datagram counts too
        self._counters["gin_drop_keepalive"] += keepalives
        self._counters["gin_drop_short"] += count - keepalives
