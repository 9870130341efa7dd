"""An IKEv2 message: its header and its outer payloads (RFC 7296 3.1).

Datagrams come here without the non-ESP marker of port 4500. What is inside an SK payload is opened by
`ike.protect` and then parsed by `payloads.parse_chain_untrusted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from protego_cli.errors import Malformed
from protego_cli.wire.payloads import Payload, PayloadType, build_chain, parse_chain_untrusted
from protego_cli.wire.reader import Reader

_HEADER = Struct("!8s8sBBBBII")
HEADER_LENGTH = _HEADER.size
_SK = Struct("!BxH")
MAJOR_VERSION = 2

_VERSION = MAJOR_VERSION << 4
_INITIATOR, _RESPONSE = 0x08, 0x20


@dataclass(frozen=True, slots=True)
class Header:
    """`initiator`: the sender is the original initiator of the IKE_SA."""

    spi_i: bytes
    spi_r: bytes
    exchange: int
    initiator: bool
    response: bool
    message_id: int
    first: int = 0  # type of the first payload
    length: int = 0  # of the whole message
    version: int = _VERSION

    @property
    def major(self) -> int:
        return self.version >> 4

    def build(self, first: int, length: int) -> bytes:
        """The 28 bytes for a message of `length` bytes whose first payload is of type `first`."""
        flags = (_INITIATOR if self.initiator else 0) | (_RESPONSE if self.response else 0)
        spis = self.spi_i, self.spi_r
        return _HEADER.pack(*spis, first, self.version, self.exchange, flags, self.message_id, length)


@dataclass(frozen=True, slots=True)
class Message:
    header: Header
    payloads: tuple[Payload, ...]


def build_message(header: Header, payloads: Sequence[Payload]) -> bytes:
    """The inverse of `parse_message_untrusted`; `header.first` and `.length` are computed."""
    first, chain = build_chain(payloads)
    return header.build(first, HEADER_LENGTH + len(chain)) + chain


def parse_header_untrusted(data: bytes) -> Header:
    """The header of a datagram whose length it must state exactly. Any version; raises Malformed."""
    spi_i, spi_r, first, version, exchange, flags, message_id, length = Reader(data).unpack(_HEADER)
    if length != len(data):
        raise Malformed(f"length says {length}, {len(data)} bytes came")
    initiator, response = bool(flags & _INITIATOR), bool(flags & _RESPONSE)
    return Header(spi_i, spi_r, exchange, initiator, response, message_id, first, length, version)


def parse_message_untrusted(data: bytes) -> Message:
    """Header and outer payloads of a message of version 2. Raises Malformed."""
    header = parse_header_untrusted(data)
    if header.major != MAJOR_VERSION:
        raise Malformed(f"version {header.major}")
    return Message(header, parse_payloads_untrusted(header, data))


def parse_sealed_untrusted(header: Header, data: bytes) -> int | None:
    """The type of the first payload inside the SK payload that the message consists of; None when it consists
    of anything else. Raises Malformed.
    """
    if header.first != PayloadType.SK:
        return None
    inner, length = Reader(data[HEADER_LENGTH:]).unpack(_SK)
    if length != len(data) - HEADER_LENGTH:
        raise Malformed(f"SK payload of {length} bytes in a message of {len(data)}")
    return int(inner)


def parse_payloads_untrusted(header: Header, data: bytes) -> tuple[Payload, ...]:
    """The outer payloads of a message whose header has been parsed. Raises Malformed."""
    return parse_chain_untrusted(header.first, data[HEADER_LENGTH:])
