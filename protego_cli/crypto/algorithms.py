"""What a crypto suite plugin provides: algorithms under strongSwan's keywords and IANA's transform numbers.

The built-ins (`plugins/crypto_suites.py`) and third parties hand out instances of these dataclasses; the
`Registry` finds them by keyword (configuration) and by transform (the wire). Nothing here implements a
primitive: every `make` and `generate` wraps the `cryptography` package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, runtime_checkable

from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm

from protego_cli.errors import PluginError
from protego_cli.wire.inner import Buffer

RandomSource = Callable[[int], bytes]
"""Returns that many unpredictable bytes: `os.urandom` in the gateway, a seeded source in simulations."""


class TransformType(IntEnum):
    """RFC 7296 3.3.2."""

    ENCR = 1
    PRF = 2
    INTEG = 3
    KE = 4
    ESN = 5


class Aead(Protocol):
    """An AEAD bound to one key; `cryptography`'s AESGCM and ChaCha20Poly1305 are such objects."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


@runtime_checkable
class BufferAead(Protocol):
    """An AEAD that takes any buffer, and writes into one that has just the length of what comes out."""

    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...
    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...
    def encrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer
    ) -> int: ...
    def decrypt_into(
        self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer
    ) -> int: ...


class Mac(Protocol):
    """A MAC in progress under one key; `cryptography`'s HMAC and CMAC are such objects."""

    def update(self, data: bytes) -> None: ...
    def finalize(self) -> bytes: ...
    def copy(self) -> Mac: ...


class KePrivate(Protocol):
    """Our half of one key exchange; used once."""

    @property
    def public(self) -> bytes: ...

    def shared(self, peer_public: bytes) -> bytes:
        """The shared secret. Raises InvalidSyntax for a public value that is not acceptable."""
        ...


@dataclass(frozen=True)
class Encryption:
    """An AEAD for IKE's SK payload (RFC 5282) and for ESP (RFC 4106, 7634)."""

    keyword: str  # "aes256gcm16"
    transform_id: int
    key_bits: int | None  # the Key Length attribute; None when the transform has none
    key_length: int  # bytes of cipher key, without salt
    salt_length: int  # bytes, last in the keying material
    iv_length: int  # bytes on the wire
    icv_length: int
    make: Callable[[bytes], Aead]  # from the cipher key

    type = TransformType.ENCR

    @property
    def keymat_length(self) -> int:
        """Bytes of keying material: the key, then the salt (RFC 4106 8.1)."""
        return self.key_length + self.salt_length


@dataclass(frozen=True)
class CbcEncryption:
    """A block cipher in CBC mode (RFC 2451, 3602); always beside an `Integrity`, encrypt-then-MAC."""

    keyword: str  # "aes256"
    transform_id: int
    key_bits: int | None  # as above
    key_length: int  # bytes
    block_length: int  # bytes, of the IV too
    make: Callable[[bytes], BlockCipherAlgorithm]  # from the key

    type = TransformType.ENCR

    @property
    def keymat_length(self) -> int:
        return self.key_length


@dataclass(frozen=True)
class Integrity:
    """A MAC for CBC suites of IKE and ESP (RFC 2404, 4868)."""

    keyword: str  # "sha256"
    transform_id: int
    key_length: int  # bytes
    icv_length: int  # bytes on the wire: the first ones of the MAC
    make: Callable[[bytes], Mac]  # from the key
    prf: str  # keyword of the PRF that an IKE proposal with this integrity has when it names none

    type = TransformType.INTEG
    key_bits = None


@dataclass(frozen=True)
class Prf:
    keyword: str  # "prfsha256"
    transform_id: int
    length: int  # bytes of output, which is the preferred key length too
    compute: Callable[[bytes, bytes], bytes]  # (key, data) -> output

    type = TransformType.PRF
    key_bits = None


@dataclass(frozen=True)
class KeGroup:
    keyword: str  # "x25519"
    transform_id: int
    public_length: int
    generate: Callable[[RandomSource], KePrivate]  # from that source alone: the same bytes, the same value

    type = TransformType.KE
    key_bits = None


Cipher = Encryption | CbcEncryption


@dataclass(frozen=True)
class EspSuite:
    """What protects the packets of a CHILD_SA: an AEAD, or CBC and integrity; numbers of 64 bits if `esn`."""

    encryption: Cipher
    integrity: Integrity | None = None
    esn: bool = False

    @property
    def keymat_length(self) -> int:
        """Bytes of keying material for one direction: of the cipher, then of integrity (RFC 7296 2.17)."""
        return self.encryption.keymat_length + (self.integrity.key_length if self.integrity else 0)

    def __str__(self) -> str:
        parts = (self.encryption, self.integrity)
        return "-".join([part.keyword for part in parts if part] + ["esn"] * self.esn)


Algorithm = Cipher | Integrity | Prf | KeGroup


class Registry:
    """All algorithms of the loaded plugins. Raises PluginError when two claim one keyword or transform."""

    def __init__(self, algorithms: Iterable[tuple[str, Algorithm]]) -> None:
        """`algorithms`: (name of the plugin, algorithm)."""
        self._by_keyword: dict[str, Algorithm] = {}
        self._by_transform: dict[tuple[int, int, int | None], Algorithm] = {}
        owner: dict[str, str] = {}
        for plugin, algorithm in algorithms:
            keyword = algorithm.keyword
            if keyword in owner:
                raise PluginError(
                    f"plugins {owner[keyword]!r} and {plugin!r} both provide the algorithm {keyword!r}; "
                    "remove one of them"
                )
            transform = (algorithm.type, algorithm.transform_id, algorithm.key_bits)
            if (other := self._by_transform.get(transform)) is not None:
                raise PluginError(
                    f"{other.keyword!r} of plugin {owner[other.keyword]!r} and {keyword!r} of {plugin!r} "
                    f"are one transform on the wire (type {algorithm.type}, ID {algorithm.transform_id}, "
                    f"key bits {algorithm.key_bits}); remove one of them"
                )
            owner[keyword] = plugin
            self._by_keyword[keyword] = algorithm
            self._by_transform[transform] = algorithm

    def keywords(self) -> list[str]:
        return sorted(self._by_keyword)

    def get(self, keyword: str) -> Algorithm | None:
        return self._by_keyword.get(keyword)

    def find(self, kind: int, transform_id: int, key_bits: int | None) -> Algorithm | None:
        return self._by_transform.get((kind, transform_id, key_bits))

    def cipher(self, keyword: str) -> Cipher:
        """Raises KeyError when no plugin provides it."""
        algorithm = self._by_keyword[keyword]
        if not isinstance(algorithm, Encryption | CbcEncryption):
            raise KeyError(keyword)
        return algorithm

    def esp_suite(self, encryption: str, integrity: str | None, *, esn: bool) -> EspSuite:
        """Raises KeyError when no plugin provides one of these keywords."""
        return EspSuite(self.cipher(encryption), self.integrity(integrity) if integrity else None, esn)

    def encryption(self, keyword: str) -> Encryption:
        """Raises KeyError when no plugin provides such an AEAD."""
        algorithm = self._by_keyword[keyword]
        if not isinstance(algorithm, Encryption):
            raise KeyError(keyword)
        return algorithm

    def integrity(self, keyword: str) -> Integrity:
        """Raises KeyError when no plugin provides it."""
        algorithm = self._by_keyword[keyword]
        if not isinstance(algorithm, Integrity):
            raise KeyError(keyword)
        return algorithm
