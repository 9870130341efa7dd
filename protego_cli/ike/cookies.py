"""Cookies: proof that the initiator receives at its address, before we hold any state for it (RFC 7296 2.6).

Flow: while too many handshakes are half open, an IKE_SA_INIT request without a valid cookie is answered by
one and forgotten. The cookie is a MAC, under a secret only we know, of what the retry will repeat: the
initiator's address, SPI and nonce; so checking one needs no memory of having sent it. A first byte names the
secret. Every period of `LIFETIME` seconds has a secret of its own, and that of the period before stays valid,
so that a cookie lives for at least one round trip and for two minutes at most.
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
        self._secrets: dict[int, bytes] = {}  # by period: the current one and its predecessor

    def make(self, address: str, spi_i: bytes, nonce: bytes, now: float) -> bytes:
        period = self._renew(now)
        return self._cookie(period, address, spi_i, nonce)

    def valid(self, cookie: bytes, address: str, spi_i: bytes, nonce: bytes, now: float) -> bool:
        self._renew(now)
        for period in self._secrets:
            if cookie[:1] == _label(period):
                return hmac.compare_digest(cookie, self._cookie(period, address, spi_i, nonce))
        return False

    def _cookie(self, period: int, address: str, spi_i: bytes, nonce: bytes) -> bytes:
        # The SPI's length is fixed, and the nonce's own length keeps it apart from the address.
        data = spi_i + len(nonce).to_bytes(2, "big") + nonce + address.encode()
        return _label(period) + hmac_sha256(self._secrets[period], data)

    def _renew(self, now: float) -> int:
        """The current period; its secret is made on first use."""
        period = int(now // LIFETIME)
        if period not in self._secrets:
            self._secrets = {old: secret for old, secret in self._secrets.items() if old == period - 1}
            self._secrets[period] = self._random(_SECRET_LENGTH)
        return period


def _label(period: int) -> bytes:
    return bytes((period % 256,))
