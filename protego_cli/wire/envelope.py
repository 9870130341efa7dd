"""Envelopes: how IKE messages travel between a GIN and the GMN, with the outer addresses they bore.

One IKE message per UDP datagram, GIN `address:fabric` <-> GMN `address:fabric`, without non-ESP marker.
Layout, network order:

     0         2          4            6             8         24
     | version | length   | local port | remote port | MAC (16) | local | remote | IKE message

`version` is 1; `length` is that of each address (4 or 16); `local` is the VIP, `remote` the peer, in both
directions. The MAC is HMAC-SHA-256 under the key of the pair (`Welcome.envelope_key`), truncated to 16
bytes, over all of the datagram but the MAC.

This layer has no cryptography: the callers pass `mac` in, which is `crypto.mac.hmac_sha256`.
"""

from __future__ import annotations

import hmac
import ipaddress
import struct
from functools import lru_cache
from typing import NamedTuple

from protego_cli.errors import Malformed
from protego_cli.wire.tags import MAC_LENGTH, Mac

VERSION = 1
HEADER_LENGTH = 24  # MAC included
ADDRESSES = 4096  # remembered, as text and as bytes

_HEADER = struct.Struct("!HHHH")


class Envelope(NamedTuple):
    """An IKE message and its path: `local` is the VIP, addresses as text."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    data: bytes | memoryview


def seal_envelope(key: bytes, envelope: Envelope, mac: Mac) -> bytes:
    """The datagram of `envelope`."""
    local, remote = _packed(envelope.local), _packed(envelope.remote)
    header = _HEADER.pack(VERSION, len(local), envelope.local_port, envelope.remote_port)
    body = b"".join((local, remote, envelope.data))
    return b"".join((header, mac(key, header + body)[:MAC_LENGTH], body))


def open_envelope(key: bytes, data: bytes | bytearray | memoryview, mac: Mac) -> Envelope:
    """The envelope in a datagram. Raises Malformed, for a wrong MAC as well."""
    if len(data) < HEADER_LENGTH:
        raise Malformed("envelope shorter than its header")
    version, length, local_port, remote_port = _HEADER.unpack_from(data)
    start = HEADER_LENGTH + 2 * length
    if version != VERSION or length not in (4, 16) or len(data) <= start:
        raise Malformed("envelope of an unknown version, or too short")
    code = mac(key, b"".join((data[: _HEADER.size], data[HEADER_LENGTH:])))[:MAC_LENGTH]
    if not hmac.compare_digest(code, data[_HEADER.size : HEADER_LENGTH]):
        raise Malformed("envelope with a wrong MAC")
    local, remote = data[HEADER_LENGTH : HEADER_LENGTH + length], data[HEADER_LENGTH + length : start]
    return Envelope(
        _text(bytes(local)),
        local_port,
        _text(bytes(remote)),
        remote_port,
        bytes(data[start:]),
    )


@lru_cache(ADDRESSES)
def _packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@lru_cache(ADDRESSES)
def _text(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))
