"""Encrypt-then-MAC under one key each: a block cipher in CBC mode and a MAC, rows of texts at a time.

CBC with one long-lived encryptor: before each text a random block R goes in, and what comes out of it, the
encryption of R xor the block before, is an IV that nobody can foretell (RFC 3602 3); the rest is the text's
ciphertext under it. To decrypt, IV and ciphertext go into one long-lived decryptor, whose first block of
output means nothing. So a row of texts costs one call.

Whoever opens checks the MACs of the whole row first, by `Authenticator.verify`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.constant_time import bytes_eq

from protego_cli.crypto.algorithms import CbcEncryption, Integrity, RandomSource


class CbcEncryptor:
    def __init__(self, encryption: CbcEncryption, key: bytes, random: RandomSource) -> None:
        self._block = encryption.block_length
        self._update = Cipher(encryption.make(key), modes.CBC(bytes(self._block))).encryptor().update
        self._random = random

    def encrypt(self, texts: Sequence[bytes]) -> bytes:
        """IV and ciphertext of each, side by side; the texts are whole blocks."""
        count = len(texts)
        parts: list[bytes] = [b""] * (2 * count)
        parts[0::2] = _pieces(self._block, count).unpack(self._random(self._block * count))
        parts[1::2] = texts
        return self._update(b"".join(parts))


class CbcDecryptor:
    def __init__(self, encryption: CbcEncryption, key: bytes) -> None:
        self._update = (
            Cipher(encryption.make(key), modes.CBC(bytes(encryption.block_length))).decryptor().update
        )

    def decrypt(self, data: bytes) -> bytes:
        """IVs and ciphertexts, whole blocks, side by side; where the IVs stood there is nonsense."""
        return self._update(data)


class Authenticator:
    def __init__(self, integrity: Integrity, key: bytes) -> None:
        self.length = integrity.icv_length
        self._mac = integrity.make(key)
        self._update, self._finalize = type(self._mac).update, type(self._mac).finalize

    def tags(self, texts: Sequence[bytes], ends: Sequence[bytes] = ()) -> list[bytes]:
        """The MACs, not cut to their length on the wire. `ends` follow the texts in what is authenticated."""
        copy = self._mac.copy
        macs = [copy() for _ in texts]
        for _ in map(self._update, macs, texts):
            pass
        for _ in map(self._update, macs, ends):
            pass
        return list(map(self._finalize, macs))

    def tag(self, text: bytes) -> bytes:
        """The ICV of one text."""
        return self.tags((text,))[0][: self.length]

    def verify(self, texts: Sequence[bytes], icvs: Sequence[bytes], ends: Sequence[bytes] = ()) -> list[int]:
        """The places of texts whose ICV is wrong; all are compared, in constant time."""
        tags = self.tags(texts, ends)
        if bytes_eq(_pieces(self.length, len(tags)).pack(*tags), b"".join(icvs)):
            return []
        return [
            place
            for place, (tag, icv) in enumerate(zip(tags, icvs, strict=True))
            if not bytes_eq(tag[: self.length], icv)
        ]


@lru_cache(maxsize=1024)
def _pieces(size: int, count: int) -> struct.Struct:
    """`count` byte strings of one size; a longer one is cut to it."""
    return struct.Struct(f"{size}s" * count)
