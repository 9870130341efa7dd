"""What was decided of flows, by what decides, until a table of their VNI changes.

A change in one VNI costs what is remembered of that VNI; what is remembered of others stays. To look
something up is to look into one dictionary.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """At most so many decisions; when there is one more, it begins anew."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._decided: dict[K, V] = {}
        self._keys: dict[bytes, list[K]] = {}  # by VNI
        self.get = self._decided.get

    def __len__(self) -> int:
        return len(self._decided)

    def __contains__(self, key: K) -> bool:
        return key in self._decided

    def put(self, vni: bytes, key: K, decision: V) -> None:
        """`vni`: as it stands in the packets, or whatever stands there."""
        if key not in self._decided:
            if len(self._decided) >= self._most:
                self.clear()
            self._keys.setdefault(vni, []).append(key)
        self._decided[key] = decision

    def forget(self, vni: int) -> None:
        """A table of this VNI has changed."""
        for key in self._keys.pop(vni.to_bytes(3), ()):
            del self._decided[key]

    def clear(self) -> None:
        """A table has changed that all look at."""
        self._decided.clear()
        self._keys.clear()
