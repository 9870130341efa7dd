"""Key expansion of IKEv2: prf+ (RFC 7296 2.13)."""

from __future__ import annotations

from protego_cli.crypto.algorithms import Prf

_MAX_BLOCKS = 255  # the counter is one octet


def prf_plus(prf: Prf, key: bytes, seed: bytes, length: int) -> bytes:
    """The first `length` bytes of T1 | T2 | …, where Tn = prf(key, Tn-1 | seed | n).

    Raises ValueError when `length` is beyond what the one-octet counter allows.
    """
    if not 0 <= length <= _MAX_BLOCKS * prf.length:
        raise ValueError(
            f"prf+ of {prf.keyword} yields at most {_MAX_BLOCKS * prf.length} bytes, not {length}"
        )
    output = bytearray()
    block = b""
    counter = 1
    while len(output) < length:
        block = prf.compute(key, block + seed + bytes((counter,)))
        output += block
        counter += 1
    return bytes(output[:length])
