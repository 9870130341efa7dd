"""Traffic selectors on the wire (RFC 7296 3.13).

A selector of a type we do not know (Fibre Channel) is skipped: it can match no packet of ours. Ranges that
are empty, among them OPAQUE ports (65535-0), are kept as they are; narrowing makes nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Final

from protego_cli.errors import Malformed
from protego_cli.wire.reader import Reader
from protego_cli.wire.selectors import TrafficSelector

BODIES: Final = 4096  # that are remembered, of at most
SHORT: Final = 64  # bytes

ADDRESS_LENGTH = {7: 4, 8: 16}  # TS_IPV4_ADDR_RANGE, TS_IPV6_ADDR_RANGE
_KIND = {length: kind for kind, length in ADDRESS_LENGTH.items()}
_KINDED = Struct("!BBH")  # type, protocol, length
_PORTS = Struct("!HH")
_HEADER = _KINDED.size + _PORTS.size


def build_selectors(selectors: Sequence[TrafficSelector]) -> bytes:
    """The body of a TSi or TSr payload. There is room for 255 selectors."""
    parts = [bytes((len(selectors), 0, 0, 0))]
    for selector in selectors:
        length = len(selector.start)
        parts.append(
            _KINDED.pack(_KIND[length], selector.protocol, _HEADER + 2 * length)
            + _PORTS.pack(selector.start_port, selector.end_port)
            + selector.start
            + selector.end
        )
    return b"".join(parts)


def parse_selectors_untrusted(body: bytes) -> tuple[TrafficSelector, ...]:
    """The selectors of a TSi or TSr payload's body. Those of a tunnel come with every rekey, so short bodies
    are remembered.
    """
    return _remembered(body) if len(body) <= SHORT else _selectors(body)


def _selectors(data: bytes) -> tuple[TrafficSelector, ...]:
    reader = Reader(data)
    count = reader.u8()
    reader.take(3)
    selectors = []
    for _ in range(count):
        kind, protocol, length = reader.unpack(_KINDED)
        body = reader.sub(length - _KINDED.size)
        size = ADDRESS_LENGTH.get(kind)
        if size is None:
            continue
        if length != _HEADER + 2 * size:
            raise Malformed(f"traffic selector of type {kind} with length {length}")
        start_port, end_port = body.unpack(_PORTS)
        selectors.append(TrafficSelector(body.take(size), body.take(size), protocol, start_port, end_port))
    reader.finish()
    return tuple(selectors)


_remembered = lru_cache(BODIES)(_selectors)
