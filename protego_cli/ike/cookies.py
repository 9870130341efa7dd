"""Cookies: proof that the initiator receives at its address, before we hold any state for it (RFC 7296 2.6).

Flow: while too many handshakes are half open, an IKE_SA_INIT request without a valid cookie is answered by
one and forgotten. The cookie is a MAC, under a secret only we know, of what the retry will repeat: the
initiator's address, SPI and nonce; so checking one needs no memory of having sent it. A first byte names the
secret. The secret changes every `LIFETIME` seconds and its predecessor stays valid once as long, so that a
cookie lives for at least one round trip and for two minutes at most.
"""

from __future__ import annotations

import hmac

from protego_cli.crypto.algorithms import RandomSource
from protego_cli.crypto.mac import hmac_sha256

LIFETIME = 60.0
_SECRET_LENGTH = 32


class Cookies:
    def __init__(self, random: RandomSource) -> None:
        self._random = random
        self._version = 0
        self._secrets: dict[int, bytes] = {}
        self._renew_at = float("-inf")

    def make(self, address: str, spi_i: bytes, nonce: bytes, now: float) -> bytes:
        self._renew(now)
        return self._cookie(self._version, address, spi_i, nonce)

    def valid(self, cookie: bytes, address: str, spi_i: bytes, nonce: bytes, now: float) -> bool:
        self._renew(now)
        if not cookie or cookie[0] not in self._secrets:
            return False
        return hmac.compare_digest(cookie, self._cookie(cookie[0], address, spi_i, nonce))

    def _cookie(self, version: int, address: str, spi_i: bytes, nonce: bytes) -> bytes:
        # SPI and nonce lead and the SPI's length is fixed; a length keeps nonce and address apart.
        data = spi_i + len(nonce).to_bytes(2, "big") + nonce + address.encode()
        return bytes((version,)) + hmac_sha256(self._secrets[version], data)

    def _renew(self, now: float) -> None:
        if now < self._renew_at:
            return
        previous = self._secrets.get(self._version) if now < self._renew_at + LIFETIME else None
        kept = {} if previous is None else {self._version: previous}
        self._version = (self._version + 1) % 256
        self._secrets = {**kept, self._version: self._random(_SECRET_LENGTH)}
        self._renew_at = now + LIFETIME
