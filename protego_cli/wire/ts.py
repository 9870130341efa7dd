"""Traffic selectors on the wire (RFC 7296 3.13).

A selector of a type we do not know (Fibre Channel) is skipped: it can match no packet of ours. Ranges that
are empty, among them OPAQUE ports (65535-0), are kept as they are; narrowing makes nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from protego_cli.errors import Malformed
from protego_cli.wire.reader import Reader
from protego_cli.wire.selectors import TrafficSelector

ADDRESS_LENGTH = {7: 4, 8: 16}  # TS_IPV4_ADDR_RANGE, TS_IPV6_ADDR_RANGE
_KIND = {length: kind for kind, length in ADDRESS_LENGTH.items()}
_HEADER = 8


def build_selectors(selectors: Sequence[TrafficSelector]) -> bytes:
    """The body of a TSi or TSr payload. There is room for 255 selectors."""
    parts = [bytes((len(selectors), 0, 0, 0))]
    for selector in selectors:
        length = len(selector.start)
        parts.append(
            bytes((_KIND[length], selector.protocol))
            + (_HEADER + 2 * length).to_bytes(2, "big")
            + selector.start_port.to_bytes(2, "big")
            + selector.end_port.to_bytes(2, "big")
            + selector.start
            + selector.end
        )
    return b"".join(parts)


def parse_selectors_untrusted(reader: Reader) -> tuple[TrafficSelector, ...]:
    """The selectors of a TSi or TSr payload's body."""
    count = reader.u8()
    reader.take(3)
    selectors = []
    for _ in range(count):
        kind, protocol, length = reader.u8(), reader.u8(), reader.u16()
        body = reader.sub(length - 4)
        size = ADDRESS_LENGTH.get(kind)
        if size is None:
            continue
        if length != _HEADER + 2 * size:
            raise Malformed(f"traffic selector of type {kind} with length {length}")
        start_port, end_port = body.u16(), body.u16()
        selectors.append(TrafficSelector(body.take(size), body.take(size), protocol, start_port, end_port))
    reader.finish()
    return tuple(selectors)
