"""What arrives on a VIP: IKE, ESP, keepalives and garbage, told apart a batch at a time.

On the NAT traversal port (RFC 3948 2):
1. One byte of 0xFF is a keepalive: absorbed. Anything else shorter than ESP can be: dropped.
2. The first words of all packets in the batch come from one C call. Nearly always they are one SPI, and the
   batch goes on whole; else its packets are sorted by first word, their order kept.
3. Zero is the non-ESP marker: IKE, without the marker, to the relay. A steered SPI goes to the steering. A
   reserved SPI would be a tag, and tags never come from outside; any other SPI is not ours.

On the IKE port everything is IKE.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from protego_cli.counters import Counters
from protego_cli.net.gso import grouped, segments
from protego_cli.net.steering import Ingress, Run
from protego_cli.net.udp import Address, Batch
from protego_cli.wire.tags import MAX_RESERVED_SPI

NON_ESP_MARKER = bytes(4)
MIN_ESP = 16  # SPI, sequence number and the least that can follow them
MIN_IKE = 28  # the IKE header (RFC 7296 3.1)

Ike = Callable[[memoryview | bytes, Address], None]
"""Takes one IKE message and where it came from."""


def native_word(spi: int) -> int:
    """The SPI as this machine reads its four bytes: the key of steering tables."""
    return int.from_bytes(spi.to_bytes(4), sys.byteorder)


def first_words(view: memoryview, size: int) -> list[int]:
    """The first four bytes of every packet in a batch, in native order. Each has at least four."""
    if size % 4 == 0 or len(view) <= size:
        return view[: len(view) & ~3].cast("I")[:: (size + 3) // 4].tolist()
    return [int.from_bytes(view[at : at + 4], sys.byteorder) for at in range(0, len(view), size)]


class VipPort:
    """One VIP and port of a GIN."""

    def __init__(self, ike: Ike, esp: Ingress, counters: Counters) -> None:
        self._ike = ike
        self._esp = esp
        self._counters = counters

    def receive_natt(self, batch: Batch) -> None:
        """A batch on the NAT traversal port."""
        view, size, source, tos = batch
        if size < MIN_ESP:
            self._short(view, max(size, 1))
            return
        tail = len(view) % size
        if 0 < tail < MIN_ESP:
            self._short(view[-tail:], tail)
            view = view[:-tail]
        words = first_words(view, size)
        word, count = words[0], len(words)
        if words.count(word) == count:
            self._sorted(word, Run(view, size, count, source, tos))
        else:
            for word, part, count in grouped(view, size, words):
                self._sorted(word, Run(part, size, count, source, tos))

    def receive_ike(self, batch: Batch) -> None:
        """A batch on the IKE port."""
        for segment in segments(batch.view, batch.size):
            self._message(segment, batch.source)

    def _sorted(self, word: int, run: Run) -> None:
        """Packets that begin with the same four bytes."""
        if word == 0:
            view = memoryview(run.data)
            for segment in segments(view, run.size):
                self._message(segment[4:], run.source)
        elif not self._esp.forward(word, run):
            spi = int.from_bytes(run.data[:4])
            reserved = spi <= MAX_RESERVED_SPI
            self._counters["gin_drop_tag_outside" if reserved else "gin_drop_unknown_spi"] += run.packets

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
