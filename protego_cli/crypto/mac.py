"""HMAC over the `cryptography` package: one function per hash, `(key, data) -> full-length MAC`.

Beside them the same as objects in progress, for whoever makes many MACs under one key: `copy()` spares the
key's two blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

KEYS: Final = 256  # that `Macs` keeps

_SHA1 = hashes.SHA1()  # noqa: S303 - as a MAC it is sound, and only where a tunnel names it
_SHA256 = hashes.SHA256()
_SHA384 = hashes.SHA384()
_SHA512 = hashes.SHA512()


def hmac_sha1(key: bytes, data: bytes) -> bytes:
    """20 bytes; for tunnels that name it."""
    return _hmac(_SHA1, key, data)


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """32 bytes (RFC 2104, FIPS 180-4); the MAC of the fabric's tags and envelopes is its truncation."""
    return _hmac(_SHA256, key, data)


def hmac_sha384(key: bytes, data: bytes) -> bytes:
    """48 bytes."""
    return _hmac(_SHA384, key, data)


def hmac_sha512(key: bytes, data: bytes) -> bytes:
    """64 bytes."""
    return _hmac(_SHA512, key, data)


def _hmac(algorithm: hashes.HashAlgorithm, key: bytes, data: bytes) -> bytes:
    mac = HMAC(key, algorithm)
    mac.update(data)
    return mac.finalize()


def _running(algorithm: hashes.HashAlgorithm) -> Callable[[bytes], HMAC]:
    def make(key: bytes) -> HMAC:
        return HMAC(key, algorithm)

    return make


class Macs:
    """`hmac_sha256` under few keys that serve often: each is taken in once."""

    def __init__(self) -> None:
        self._begun: dict[bytes, HMAC] = {}

    def __call__(self, key: bytes, data: bytes) -> bytes:
        begun = self._begun.get(key)
        if begun is None:
            if len(self._begun) >= KEYS:
                self._begun.clear()
            begun = self._begun[key] = HMAC(key, _SHA256)
        mac = begun.copy()
        mac.update(data)
        return mac.finalize()


running_sha1 = _running(_SHA1)
running_sha256 = _running(_SHA256)
running_sha384 = _running(_SHA384)
running_sha512 = _running(_SHA512)
