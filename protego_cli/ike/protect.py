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

from protego_cli.crypto.algorithms import CbcEncryption, Encryption, Integrity, RandomSource
from protego_cli.crypto.etm import Authenticator, CbcDecryptor, CbcEncryptor
from protego_cli.crypto.proposal import IkeProposal
from protego_cli.errors import Malformed
from protego_cli.wire.ike import HEADER_LENGTH, Header
from protego_cli.wire.payloads import Payload, PayloadType, build_chain

_SK_HEADER = 4
_CLEAR = HEADER_LENGTH + _SK_HEADER  # what stands before the IV


class NotAuthentic(Exception):
    """The integrity check of an SK payload failed."""


class _Sealing(Protocol):
    """A suite bound to the keys of one direction. `clear` is the message up to the IV."""

    block: int  # the plaintext is a multiple of it
    overhead: int  # bytes of IV and ICV

    def seal(self, clear: bytes, plain: bytes, number: int) -> bytes:
        """IV, ciphertext and ICV; `number` is never one twice."""
        ...


class _Opening(Protocol):
    overhead: int

    def open_untrusted(self, clear: bytes, body: bytes) -> bytes:
        """The plaintext; `body` is longer than IV and ICV. Raises Malformed, NotAuthentic."""
        ...


class _Aead:
    block = 1

    def __init__(self, encryption: Encryption, key: bytes) -> None:
        self.overhead = encryption.iv_length + encryption.icv_length
        self._iv_length = encryption.iv_length
        self._aead = encryption.make(key[: encryption.key_length])
        self._salt = key[encryption.key_length :]

    def seal(self, clear: bytes, plain: bytes, number: int) -> bytes:
        iv = number.to_bytes(self._iv_length, "big")
        return iv + self._aead.encrypt(self._salt + iv, plain, clear)

    def open_untrusted(self, clear: bytes, body: bytes) -> bytes:
        iv, ciphertext = body[: self._iv_length], body[self._iv_length :]
        try:
            return self._aead.decrypt(self._salt + iv, ciphertext, clear)
        except InvalidTag:
            raise NotAuthentic from None


class _EncryptThenMac:
    def __init__(self, encryption: CbcEncryption, integrity: Integrity, mac_key: bytes) -> None:
        self.block = encryption.block_length
        self.overhead = encryption.block_length + integrity.icv_length
        self._authenticator = Authenticator(integrity, mac_key)


class _CbcSealing(_EncryptThenMac):
    def __init__(
        self,
        encryption: CbcEncryption,
        key: bytes,
        integrity: Integrity,
        mac_key: bytes,
        random: RandomSource,
    ) -> None:
        super().__init__(encryption, integrity, mac_key)
        self._encryptor = CbcEncryptor(encryption, key, random)

    def seal(self, clear: bytes, plain: bytes, number: int) -> bytes:
        sealed = self._encryptor.encrypt((plain,))
        return sealed + self._authenticator.tag(clear + sealed)


class _CbcOpening(_EncryptThenMac):
    def __init__(self, encryption: CbcEncryption, key: bytes, integrity: Integrity, mac_key: bytes) -> None:
        super().__init__(encryption, integrity, mac_key)
        self._decryptor = CbcDecryptor(encryption, key)

    def open_untrusted(self, clear: bytes, body: bytes) -> bytes:
        if (len(body) - self.overhead) % self.block:
            raise Malformed("SK payload of no whole number of blocks")
        end = len(body) - self._authenticator.length
        sealed, icv = body[:end], body[end:]
        if self._authenticator.verify((clear + sealed,), (icv,)):
            raise NotAuthentic
        return self._decryptor.decrypt(sealed)[self.block :]


class Sealer:
    """Seals our messages of one IKE_SA."""

    def __init__(
        self, suite: IkeProposal, key: bytes, mac_key: bytes, epoch: int, random: RandomSource
    ) -> None:
        self._sealing: _Sealing
        match suite.encryption, suite.integrity:
            case Encryption() as aead, None:
                self._sealing = _Aead(aead, key)
            case CbcEncryption() as cbc, Integrity() as integrity:
                self._sealing = _CbcSealing(cbc, key, integrity, mac_key, random)
            case _:
                raise ValueError(f"{suite} is no whole suite")
        self._iv = (epoch & 0xFFFF) << 48

    def seal(self, header: Header, payloads: Sequence[Payload]) -> bytes:
        """A whole message that holds nothing but an SK payload."""
        inner, chain = build_chain(payloads)
        padding = -(len(chain) + 1) % self._sealing.block
        plain = chain + bytes(padding) + bytes((padding,))
        sk_length = _SK_HEADER + self._sealing.overhead + len(plain)
        clear = header.build(PayloadType.SK, HEADER_LENGTH + sk_length)
        clear += bytes((inner, 0)) + sk_length.to_bytes(2, "big")
        number, self._iv = self._iv, self._iv + 1
        return clear + self._sealing.seal(clear, plain, number)


class Opener:
    """Opens the peer's messages of one IKE_SA."""

    def __init__(self, suite: IkeProposal, key: bytes, mac_key: bytes) -> None:
        self._opening: _Opening
        match suite.encryption, suite.integrity:
            case Encryption() as aead, None:
                self._opening = _Aead(aead, key)
            case CbcEncryption() as cbc, Integrity() as integrity:
                self._opening = _CbcOpening(cbc, key, integrity, mac_key)
            case _:
                raise ValueError(f"{suite} is no whole suite")

    def open_untrusted(self, data: bytes) -> bytes:
        """The chain of payloads inside a message whose only outer payload is SK.

        Raises Malformed or NotAuthentic; what it returns is authentic.
        """
        clear, body = data[:_CLEAR], data[_CLEAR:]
        if len(body) < self._opening.overhead + 1:
            raise Malformed("SK payload too short")
        plain = self._opening.open_untrusted(clear, body)
        padding = plain[-1]
        if padding >= len(plain):
            raise Malformed("padding longer than the SK payload")
        return plain[: len(plain) - 1 - padding]
