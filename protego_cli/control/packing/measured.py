"""What data nodes measure of tunnels and suites, beside what has passed: parts of their reports."""

from __future__ import annotations

import msgspec

from protego_cli.control.channel.message import Amount, Count


class OfferedLoad(msgspec.Struct, frozen=True, array_like=True):
    """GIN, GEN: what has come for an SPI, or a tunnel or strand, below its ceiling: cumulative."""

    of: int | str
    bytes: Count  # of inner packets


class SuiteCost(msgspec.Struct, frozen=True, array_like=True):
    """GPN: what a suite costs on its machine, in CPU seconds, without what any packet costs."""

    suite: str  # "aes256gcm16", "aes256-sha256"
    open_packet: Amount
    open_byte: Amount
    seal_packet: Amount
    seal_byte: Amount
