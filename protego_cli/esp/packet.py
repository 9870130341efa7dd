"""ESP's plaintext (RFC 4303 2.4 to 2.6): the trailer behind an inner packet, what an opened one must hold.

    | inner packet | padding | pad length | next header |

Padding is 1, 2, 3, ... up to the next whole block of the cipher, at least to a multiple of four bytes.
"""

from __future__ import annotations

from protego_cli.errors import Malformed
from protego_cli.wire.inner import IPV4, IPV6, Inner, parse

NO_NEXT_HEADER = 59  # a dummy packet (RFC 4303 2.6)

NEXT_HEADER = {4: IPV4, 6: IPV6}  # by IP version
_VERSION = {IPV4: 4, IPV6: 6}
_PADDING = bytes(range(1, 256))


class Dropped(Exception):
    """A packet that goes no further; `counter` names why in the table of counters."""

    def __init__(self, counter: str) -> None:
        super().__init__(counter)
        self.counter = counter


def trailer(length: int, version: int, block: int) -> bytes:
    """Padding, pad length and next header behind an inner packet of that length and IP version."""
    pad = -(length + 2) % block
    return _PADDING[:pad] + bytes((pad, NEXT_HEADER[version]))


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
