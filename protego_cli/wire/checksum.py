"""The checksum of IP, TCP, UDP and ICMP (RFC 1071): the ones' complement of a ones' complement sum."""

from __future__ import annotations

from protego_cli.wire.inner import Buffer


def ones_sum(*parts: Buffer) -> int:
    """The ones' complement sum of the parts, each starting at an even offset, in 0..65535."""
    total = 0
    for part in parts:
        number = int.from_bytes(part)
        total += number << 8 if len(part) & 1 else number
    folded = total % 0xFFFF
    return 0xFFFF if total and not folded else folded


def checksum(*parts: Buffer) -> bytes:
    """What belongs into the checksum field, over parts in which that field is zero."""
    return (0xFFFF - ones_sum(*parts)).to_bytes(2)


def amended(code: Buffer, change: int) -> bytes:
    """A checksum after a word that it covers has grown by `change` (RFC 1624 3, equation 3). One that was
    wrong stays wrong.
    """
    total = (0xFFFF - int.from_bytes(code)) + 0xFFFF + change
    return (0xFFFF - (total % 0xFFFF or 0xFFFF)).to_bytes(2)


def intact(*parts: Buffer) -> bool:
    """Whether the checksum inside the parts is right."""
    return ones_sum(*parts) == 0xFFFF
