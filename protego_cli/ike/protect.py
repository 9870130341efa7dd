r"""The SK payload (RFC 7296 3.14): sealed by an AEAD (RFC 5282), or encrypted and then authenticated.

    | IKE header | generic header of SK | IV | ciphertext of payloads, padding, pad length | ICV |
      \____________ authenticated by an AEAD __/
      \____________ authenticated by an integrity algorithm ______________________________/

An AEAD's nonce is the salt from the keying material and the IV. Our IVs are 16 bits of the gateway's epoch
and 48 bits of a counter: never one twice under a key, in this process or in one that takes over from it. The
counter cannot run out, since the 32-bit message IDs do before it; a message sent again is the stored bytes.
CBC has IVs that nobody can foretell, from the injected source. What comes in is decrypted only when its ICV
is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.constant_time import bytes_eq

from protego_cli.crypto.algorithms import CbcEncryption, Encryption, Integrity, RandomSource
from protego_cli.crypto.proposal import IkeProposal
from protego_cli.errors import Malformed
from protego_cli.wire.ike import HEADER_LENGTH, Header
from protego_cli.wire.payloads import Payload, PayloadType, build_chain

_SK_HEADER = 4
_CLEAR = HEADER_LENGTH + _SK_HEADER  # what stands before the IV


class NotAuthentic(Exception):
    """The integrity check of an SK payload failed."""


class _Protection(Protocol):
    """A suite bound to the keys of one direction. `clear` is the message up to the IV."""

    block: int  # the plaintext is a multiple of it
    iv_length: int
    overhead: int  # bytes of IV and ICV
    unpredictable: bool  # whether IVs must be, rather than never come twice

    def seal(self, clear: bytes, iv: bytes, plain: bytes) -> bytes:
        """IV, ciphertext and ICV."""
        ...

    def open_untrusted(self, clear: bytes, body: bytes) -> bytes:
        """The plaintext; `body` is longer than IV and ICV. Raises Malformed, NotAuthentic."""
        ...


class _Aead:
    block = 1
    unpredictable = False

    def __init__(self, encryption: Encryption, key: bytes) -> None:
        self.iv_length = encryption.iv_length
        self.overhead = encryption.iv_length + encryption.icv_length
        self._aead = encryption.make(key[: encryption.key_length])
        self._salt = key[encryption.key_length :]

    def seal(self, clear: bytes, iv: bytes, plain: bytes) -> bytes:
        return iv + self._aead.encrypt(self._salt + iv, plain, clear)

    def open_untrusted(self, clear: bytes, body: bytes) -> bytes:
        iv, ciphertext = body[: self.iv_length], body[self.iv_length :]
        try:
            return self._aead.decrypt(self._salt + iv, ciphertext, clear)
        except InvalidTag:
            raise NotAuthentic from None


class _EncryptThenMac:
    unpredictable = True

    def __init__(self, encryption: CbcEncryption, key: bytes, integrity: Integrity, mac_key: bytes) -> None:
        self.block = self.iv_length = encryption.block_length
        self.overhead = encryption.block_length + integrity.icv_length
        self._cipher = encryption.make(key)
        self._mac = integrity.make(mac_key)
        self._icv_length = integrity.icv_length

    def seal(self, clear: bytes, iv: bytes, plain: bytes) -> bytes:
        encryptor = Cipher(self._cipher, modes.CBC(iv)).encryptor()
        sealed = iv + encryptor.update(plain) + encryptor.finalize()
        return sealed + self._icv(clear + sealed)

    def open_untrusted(self, clear: bytes, body: bytes) -> bytes:
        if (len(body) - self.overhead) % self.block:
            raise Malformed("SK payload of no whole number of blocks")
        sealed, icv = body[: -self._icv_length], body[-self._icv_length :]
        if not bytes_eq(self._icv(clear + sealed), icv):
            raise NotAuthentic
        decryptor = Cipher(self._cipher, modes.CBC(sealed[: self.block])).decryptor()
        return decryptor.update(sealed[self.block :]) + decryptor.finalize()

    def _icv(self, data: bytes) -> bytes:
        mac = self._mac.copy()
        mac.update(data)
        return mac.finalize()[: self._icv_length]


def _protection(suite: IkeProposal, key: bytes, mac_key: bytes) -> _Protection:
    if isinstance(suite.encryption, Encryption):
        return _Aead(suite.encryption, key)
    if suite.integrity is None:
        raise ValueError(f"{suite.encryption.keyword} without integrity")
    return _EncryptThenMac(suite.encryption, key, suite.integrity, mac_key)


class Sealer:
    """Seals our messages of one IKE_SA."""

    def __init__(
        self, suite: IkeProposal, key: bytes, mac_key: bytes, epoch: int, random: RandomSource
    ) -> None:
        self._protection = _protection(suite, key, mac_key)
        self._random = random
        self._iv = (epoch & 0xFFFF) << 48

    def seal(self, header: Header, payloads: Sequence[Payload]) -> bytes:
        """A whole message that holds nothing but an SK payload."""
        inner, chain = build_chain(payloads)
        padding = -(len(chain) + 1) % self._protection.block
        plain = chain + bytes(padding) + bytes((padding,))
        sk_length = _SK_HEADER + self._protection.overhead + len(plain)
        clear = header.build(PayloadType.SK, HEADER_LENGTH + sk_length)
        clear += bytes((inner, 0)) + sk_length.to_bytes(2, "big")
        return clear + self._protection.seal(clear, self._next_iv(), plain)

    def _next_iv(self) -> bytes:
        protection = self._protection
        if protection.unpredictable:
            return self._random(protection.iv_length)
        iv = self._iv.to_bytes(protection.iv_length, "big")
        self._iv += 1
        return iv


class Opener:
    """Opens the peer's messages of one IKE_SA."""

    def __init__(self, suite: IkeProposal, key: bytes, mac_key: bytes) -> None:
        self._protection = _protection(suite, key, mac_key)

    def open_untrusted(self, data: bytes) -> bytes:
        """The chain of payloads inside a message whose only outer payload is SK.

        Raises Malformed or NotAuthentic; what it returns is authentic.
        """
        clear, body = data[:_CLEAR], data[_CLEAR:]
        if len(body) < self._protection.overhead + 1:
            raise Malformed("SK payload too short")
        plain = self._protection.open_untrusted(clear, body)
        padding = plain[-1]
        if padding >= len(plain):
            raise Malformed("padding longer than the SK payload")
        return plain[: len(plain) - 1 - padding]
