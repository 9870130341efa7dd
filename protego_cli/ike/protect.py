r"""The SK payload under an AEAD (RFC 7296 3.14, RFC 5282).

    | IKE header | generic header of SK | IV (8) | ciphertext of payloads, padding, pad length | ICV |
      \____________ authenticated ____________/

A nonce is the salt from the keying material and the IV. Our IVs are 16 bits of the gateway's epoch and 48
bits of a counter: never one twice under a key, in this process or in one that takes over from it. The
counter cannot run out, since the 32-bit message IDs do before it; a message sent again is the stored bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag

from protego_cli.crypto.algorithms import Encryption
from protego_cli.errors import Malformed
from protego_cli.wire.ike import HEADER_LENGTH, Header
from protego_cli.wire.payloads import Payload, PayloadType, build_chain

_SK_HEADER = 4
_AAD = HEADER_LENGTH + _SK_HEADER


class NotAuthentic(Exception):
    """The integrity check of an SK payload failed."""


class Sealer:
    """Seals our messages of one IKE_SA."""

    def __init__(self, encryption: Encryption, key: bytes, epoch: int) -> None:
        self._encryption = encryption
        self._aead = encryption.make(key[: encryption.key_length])
        self._salt = key[encryption.key_length :]
        self._iv = (epoch & 0xFFFF) << 48

    def seal(self, header: Header, payloads: Sequence[Payload]) -> bytes:
        """A whole message that holds nothing but an SK payload."""
        inner, chain = build_chain(payloads)
        plain = chain + b"\x00"  # no padding: its length alone
        overhead = self._encryption.iv_length + self._encryption.icv_length
        sk_length = _SK_HEADER + overhead + len(plain)
        aad = header.build(PayloadType.SK, HEADER_LENGTH + sk_length)
        aad += bytes((inner, 0)) + sk_length.to_bytes(2, "big")
        iv = self._iv.to_bytes(self._encryption.iv_length, "big")
        self._iv += 1
        return aad + iv + self._aead.encrypt(self._salt + iv, plain, aad)


class Opener:
    """Opens the peer's messages of one IKE_SA."""

    def __init__(self, encryption: Encryption, key: bytes) -> None:
        self._encryption = encryption
        self._aead = encryption.make(key[: encryption.key_length])
        self._salt = key[encryption.key_length :]

    def open_untrusted(self, data: bytes) -> bytes:
        """The chain of payloads inside a message whose only outer payload is SK.

        Raises Malformed or NotAuthentic; what it returns is authentic.
        """
        body = data[_AAD:]
        size = self._encryption.iv_length
        if len(body) < size + self._encryption.icv_length + 1:
            raise Malformed("SK payload too short")
        try:
            plain = self._aead.decrypt(self._salt + body[:size], body[size:], data[:_AAD])
        except InvalidTag:
            raise NotAuthentic from None
        padding = plain[-1]
        if padding >= len(plain):
            raise Malformed("padding longer than the SK payload")
        return plain[: len(plain) - 1 - padding]
