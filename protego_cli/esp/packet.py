"""ESP's packet for AEADs (RFC 4303 2, RFC 4106 3, RFC 7634 2): layout, trailer, what an opened one must hold.

     0     4          8     16
     | SPI | sequence | IV  | ciphertext of: inner packet, padding, pad length, next header | ICV

The IV is the sequence number as 64 bits, the nonce is salt and IV, the associated data SPI and sequence.
Padding is 1, 2, 3, ... up to the next multiple of four bytes.
"""

from __future__ import annotations

from protego_cli.errors import Malformed
from protego_cli.wire.inner import IPV4, IPV6, Inner, parse

HEADER_LENGTH = 16  # SPI, sequence number, IV
IV_LENGTH = 8
ALIGNMENT = 4
NO_NEXT_HEADER = 59  # a dummy packet (RFC 4303 2.6)
MAX_SEQUENCE = (1 << 32) - 1  # without extended sequence numbers

NEXT_HEADER = {4: IPV4, 6: IPV6}  # by IP version
_VERSION = {IPV4: 4, IPV6: 6}
_PADDING = bytes(range(1, 256))


class Dropped(Exception):
    """A packet that goes no further; `counter` names why in the table of counters."""

    def __init__(self, counter: str) -> None:
        super().__init__(counter)
        self.counter = counter


def trailer(length: int, version: int) -> bytes:
    """Padding, pad length and next header behind an inner packet of that length and IP version."""
    return _TRAILERS[version, length % ALIGNMENT]


def _build_trailer(length: int, version: int) -> bytes:
    pad = -(length + 2) % ALIGNMENT
    return _PADDING[:pad] + bytes((pad, NEXT_HEADER[version]))


_TRAILERS = {(v, n): _build_trailer(n, v) for v in NEXT_HEADER for n in range(ALIGNMENT)}


def unwrap(plaintext: bytes) -> tuple[Inner, bytes]:
    """The inner packet of an opened one, without padding of any kind. Raises Dropped.

    What lies between the inner packet and the padding is traffic flow confidentiality padding (RFC 4303 2.7).
    """
    if len(plaintext) < 2:
        raise Dropped("gpn_drop_padding")
    pad, next_header = plaintext[-2], plaintext[-1]
    if next_header == NO_NEXT_HEADER:
        raise Dropped("gpn_drop_dummy")
    end = len(plaintext) - 2 - pad
    version = _VERSION.get(next_header)
    if version is None or end < 0 or plaintext[end:-2] != _PADDING[:pad]:
        raise Dropped("gpn_drop_padding")
    try:
        inner = parse(plaintext[:end])
    except Malformed:
        raise Dropped("gpn_drop_inner_in") from None
    if inner.version != version:
        raise Dropped("gpn_drop_inner_in")
    return inner, plaintext[: inner.length]
