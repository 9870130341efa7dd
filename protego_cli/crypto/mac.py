"""HMAC over the `cryptography` package: one function per hash, `(key, data) -> full-length MAC`."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

_SHA256 = hashes.SHA256()
_SHA384 = hashes.SHA384()
_SHA512 = hashes.SHA512()


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
