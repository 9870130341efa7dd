"""Traffic selectors: inclusive address, protocol and port ranges (RFC 7296 3.13.1).

Addresses are packed bytes (4 for IPv4, 16 for IPv6), which compare in address order, so the data path
compares slices of a packet with them directly.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import msgspec

RANGES = 1024  # whose prefixes, and text, are remembered
SPELLED = 3  # prefixes; a range that needs more of them is shown by its ends


class TrafficSelector(msgspec.Struct, frozen=True, array_like=True):
    """One selector. `start` and `end` have the same length; `protocol` 0 means any."""

    start: bytes
    end: bytes
    protocol: int = 0
    start_port: int = 0
    end_port: int = 65535

    @classmethod
    def from_prefix(cls, prefix: str) -> TrafficSelector:
        """The selector of a CIDR prefix. Raises ValueError for text that is not a prefix."""
        network = ipaddress.ip_network(prefix)
        return cls(network.network_address.packed, network.broadcast_address.packed)

    @property
    def version(self) -> int:
        return 4 if len(self.start) == 4 else 6

    @property
    def any_transport(self) -> bool:
        """Whether every protocol and port matches, so that addresses alone decide."""
        return self.protocol == 0 and self.start_port == 0 and self.end_port == 65535

    def prefixes(self) -> list[str]:
        """The fewest CIDR prefixes that cover exactly this address range (at most 2 * address bits)."""
        return list(_prefixes(self.start, self.end))

    def networks(self) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The same one by one, for who may not want all of them; none where the range is empty."""
        return _networks(self.start, self.end) if self.start <= self.end else iter(())

    def intersect(self, other: TrafficSelector) -> TrafficSelector | None:
        """The packets that match both, or None (RFC 7296 2.9 narrowing)."""
        if len(self.start) != len(other.start):
            return None
        if self.protocol and other.protocol and self.protocol != other.protocol:
            return None
        start, end = max(self.start, other.start), min(self.end, other.end)
        start_port = max(self.start_port, other.start_port)
        end_port = min(self.end_port, other.end_port)
        if start > end or start_port > end_port:
            return None
        return TrafficSelector(start, end, self.protocol or other.protocol, start_port, end_port)

    def contains(self, other: TrafficSelector) -> bool:
        """Whether every packet of `other` matches this selector."""
        return (
            len(self.start) == len(other.start)
            and self.start <= other.start <= other.end <= self.end
            and self.start_port <= other.start_port <= other.end_port <= self.end_port
            and self.protocol in (0, other.protocol)
        )

    def __str__(self) -> str:
        text = _spelled(self.start, self.end) if self.start <= self.end else "empty"
        if not self.any_transport:
            text += f"[{self.protocol or 'any'}/{self.start_port}-{self.end_port}]"
        return text


@lru_cache(RANGES)
def _prefixes(start: bytes, end: bytes) -> tuple[str, ...]:
    return tuple(map(str, _networks(start, end)))


def _networks(start: bytes, end: bytes) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return ipaddress.summarize_address_range(ipaddress.ip_address(start), ipaddress.ip_address(end))


@lru_cache(RANGES)
def _spelled(start: bytes, end: bytes) -> str:
    prefixes = list(map(str, islice(_networks(start, end), SPELLED + 1)))
    ends = (str(ipaddress.ip_address(at)) for at in (start, end))
    return ", ".join(prefixes) if len(prefixes) <= SPELLED else "-".join(ends)
