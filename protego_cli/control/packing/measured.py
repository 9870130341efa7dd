"""What data nodes measure of tunnels and suites, beside what has passed: parts of their reports."""

from __future__ import annotations

import msgspec


class OfferedLoad(msgspec.Struct, frozen=True, array_like=True):
    """GIN, GEN: what has come for an SPI, or a tunnel or strand, below its ceiling: cumulative."""

    of: int | str
    bytes: int  # of inner packets


class SuiteCost(msgspec.Struct, frozen=True, array_like=True):
    """GPN: what a suite costs on its machine, in CPU seconds, without what any packet costs."""

    suite: str  # "aes256gcm16", "aes256-sha256"
    open_packet: float
    open_byte: float
    seal_packet: float
    seal_byte: float
