"""Limits on IKE_SAs whose peer has not proven itself, or that only linger to repeat a response.

Beyond a tenth of the maximum every new handshake must bring a cookie; beyond a quarter, those from one
address are dropped; beyond a half, those from addresses that no tunnel names; beyond the maximum, all are
(RFC 7296 2.6, RFC 8019 4.3). So strangers, be they many, leave room for the peers that are expected. An IPv6
/64 counts as one address, since whoever has one has them all.
"""

from __future__ import annotations

import ipaddress
from collections import Counter


class HalfOpen:
    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._by_address: Counter[bytes] = Counter()
        self._total = 0

    @property
    def total(self) -> int:
        return self._total

    @property
    def wants_cookie(self) -> bool:
        return self._total >= self.maximum / 10

    def admits(self, address: str, *, named: bool) -> bool:
        """`named`: by a tunnel, as its peer's."""
        room = self.maximum if named else self.maximum / 2
        return self._total < room and self._by_address[_site(address)] < self.maximum / 4

    def add(self, address: str) -> None:
        self._total += 1
        self._by_address[_site(address)] += 1

    def remove(self, address: str) -> None:
        self._total -= 1
        site = _site(address)
        self._by_address[site] -= 1
        if not self._by_address[site]:
            del self._by_address[site]


def _site(address: str) -> bytes:
    """An IPv4 address, or the network part of an IPv6 one."""
    return ipaddress.ip_address(address).packed[:8]
