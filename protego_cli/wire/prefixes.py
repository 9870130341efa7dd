"""The longest prefix that holds an address, IPv4 and IPv6 side by side."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Generic, TypeVar

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
T = TypeVar("T")


class PrefixTable(Generic[T]):
    """Made once, then only asked. Where a prefix is given twice, the first one has it."""

    def __init__(self, entries: Iterable[tuple[Network, T]]) -> None:
        self._values: dict[tuple[int, int, int], T] = {}  # (address bits, prefix length, network) -> value
        for prefix, value in entries:
            bits, length = prefix.max_prefixlen, prefix.prefixlen
            self._values.setdefault((bits, length, int(prefix.network_address) >> (bits - length)), value)
        kinds = {(bits, length) for bits, length, _ in self._values}
        self._lengths = {bits: sorted((n for b, n in kinds if b == bits), reverse=True) for bits in (32, 128)}

    def find(self, address: bytes) -> T | None:
        """By an address as it stands in a packet: 4 or 16 bytes."""
        bits, number = 8 * len(address), int.from_bytes(address)
        for length in self._lengths[bits]:
            value = self._values.get((bits, length, number >> (bits - length)))
            if value is not None:
                return value
        return None
