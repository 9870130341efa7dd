"""What a suite does to packets: AEAD (RFC 4106, 7634), or CBC and then HMAC (RFC 3602, 2404, 4868).

    AEAD   | SPI | sequence | IV (8)  | ciphertext | ICV |   nonce: salt and IV; associated: SPI and sequence
    CBC    | SPI | sequence | IV (16) | ciphertext | ICV |   ICV over all before it

Here a row of packets of one size is sealed or opened at a time; an SA does not know how. With extended
sequence numbers (RFC 4303 2.2.1) the high half is not sent: an AEAD has all 64 bits in its associated data
(RFC 4106 5), a MAC the high half behind the packet. The IV of an AEAD is the number as 64 bits, so it never
comes twice under a key.

Opening a row: a CBC suite compares every ICV, in constant time, before it decrypts any of the packets.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag

from protego_cli.crypto.algorithms import (
    CbcEncryption,
    Encryption,
    EspSuite,
    Integrity,
    RandomSource,
)
from protego_cli.crypto.etm import Authenticator, CbcDecryptor, CbcEncryptor
from protego_cli.wire.inner import Buffer

HEADER_LENGTH = 8  # SPI, sequence number
IV_LENGTH = 8  # of an AEAD: a sequence number
ALIGNMENT = 4  # of the plaintext (RFC 4303 2.4), unless the cipher has longer blocks
_LOW = 0xFFFFFFFF


class Opened(NamedTuple):
    plaintexts: list[bytes]  # trailer included, in order
    forged: Sequence[int]  # places in the row of those that did not open


class Opening(Protocol):
    """Bound to the key of an inbound SA."""

    def fits(self, size: int) -> bool:
        """Whether a packet can be that long."""
        ...

    def open(self, data: Buffer, size: int, numbers: Sequence[int]) -> Opened:
        """A row of packets of one size that fits, with their whole numbers."""
        ...

    def open_each(self, packets: Sequence[bytes], numbers: Sequence[int]) -> Opened:
        """The same of packets of any sizes that fit."""
        ...


class Sealing(Protocol):
    """Bound to the key of an outbound SA."""

    block: int  # plaintexts are a multiple of it
    overhead: int  # bytes of a packet beyond its plaintext

    def seal(self, numbers: range, plaintexts: Sequence[bytes]) -> bytes:
        """A row of plaintexts of one length as packets, side by side; no number ever comes twice."""
        ...

    def seal_each(self, numbers: range, plaintexts: Sequence[bytes]) -> list[bytes]:
        """The same of plaintexts of any lengths, as a packet each."""
        ...


def opening(suite: EspSuite, key: bytes, spi: int) -> Opening:
    """Raises ValueError for keying material of the wrong length."""
    _check(suite, key)
    match suite.encryption, suite.integrity:
        case Encryption() as aead, None:
            return _AeadOpening(aead, key, spi, esn=suite.esn)
        case CbcEncryption() as cbc, Integrity() as integrity:
            return _CbcOpening(cbc, integrity, key, esn=suite.esn)
    raise ValueError(f"{suite} is no whole suite")


def sealing(suite: EspSuite, key: bytes, spi: int, random: RandomSource) -> Sealing:
    """Raises ValueError for keying material of the wrong length."""
    _check(suite, key)
    match suite.encryption, suite.integrity:
        case Encryption() as aead, None:
            return _AeadSealing(aead, key, spi, esn=suite.esn)
        case CbcEncryption() as cbc, Integrity() as integrity:
            return _CbcSealing(cbc, integrity, key, spi, random, esn=suite.esn)
    raise ValueError(f"{suite} is no whole suite")


def _check(suite: EspSuite, key: bytes) -> None:
    if len(key) != suite.keymat_length:
        raise ValueError(f"keying material of the wrong length for {suite}")
    if isinstance(suite.encryption, Encryption) and suite.encryption.iv_length != IV_LENGTH:
        raise ValueError(f"{suite} has no 8-byte IV, which a sequence number needs")


# ---- AEAD


class _AeadOpening:
    def __init__(self, encryption: Encryption, key: bytes, spi: int, *, esn: bool) -> None:
        self._decrypt = encryption.make(key[: encryption.key_length]).decrypt
        self._salt = key[encryption.key_length :]
        self._least = HEADER_LENGTH + IV_LENGTH + encryption.icv_length
        self._spi = spi
        self._esn = esn

    def fits(self, size: int) -> bool:
        return size >= self._least

    def open(self, data: Buffer, size: int, numbers: Sequence[int]) -> Opened:
        count = len(numbers)
        fields = _layout(f"8s8s{size - HEADER_LENGTH - IV_LENGTH}s", count).unpack_from(data)
        salt = self._salt
        return self._open([salt + iv for iv in fields[1::3]], fields[2::3], fields[0::3], numbers)

    def open_each(self, packets: Sequence[bytes], numbers: Sequence[int]) -> Opened:
        salt = self._salt
        return self._open(
            [salt + packet[8:16] for packet in packets],
            [packet[16:] for packet in packets],
            [packet[:8] for packet in packets],
            numbers,
        )

    def _open(
        self,
        nonces: Sequence[bytes],
        sealed: Sequence[bytes],
        headers: Sequence[bytes],
        numbers: Sequence[int],
    ) -> Opened:
        if self._esn:
            headers = self._extended(numbers)
        plaintexts: list[bytes] = []
        forged: list[int] = []
        opening = map(self._decrypt, nonces, sealed, headers)
        while True:
            try:
                plaintexts.extend(opening)
                return Opened(plaintexts, forged)
            except InvalidTag:  # `opening` stands behind the packet that did not open
                forged.append(len(plaintexts) + len(forged))

    def _extended(self, numbers: Sequence[int]) -> tuple[bytes, ...]:
        """SPI and 64-bit number of each."""
        count = len(numbers)
        fields = [self._spi] * (2 * count)
        fields[1::2] = numbers
        return _layout("12s", count).unpack(_layout("IQ", count).pack(*fields))


class _AeadSealing:
    block = ALIGNMENT

    def __init__(self, encryption: Encryption, key: bytes, spi: int, *, esn: bool) -> None:
        self.overhead = HEADER_LENGTH + IV_LENGTH + encryption.icv_length
        self._encrypt = encryption.make(key[: encryption.key_length]).encrypt
        self._salt = key[encryption.key_length :]
        self._spi = spi
        self._esn = esn
        salt = len(self._salt)
        self._number_layout = f"IQ{salt}sQ" if esn else f"II{salt}sQ"
        self._split_layout = f"{12 if esn else 8}s{salt + IV_LENGTH}s"

    def seal(self, numbers: range, plaintexts: Sequence[bytes]) -> bytes:
        count = len(numbers)
        parts = self._parts(numbers)
        sealed = list(map(self._encrypt, parts[1::2], plaintexts, parts[0::2]))
        packets: list[object]
        if self._esn:
            packets = [self._spi] * (4 * count)
            packets[1::4], packets[2::4], packets[3::4] = [n & _LOW for n in numbers], numbers, sealed
            return _layout(f"IIQ{len(sealed[0])}s", count).pack(*packets)
        packets = [None] * (3 * count)
        packets[0::3], packets[1::3], packets[2::3] = parts[0::2], numbers, sealed
        return _layout(f"8sQ{len(sealed[0])}s", count).pack(*packets)

    def seal_each(self, numbers: range, plaintexts: Sequence[bytes]) -> list[bytes]:
        parts = self._parts(numbers)
        headers, nonces, salt = parts[0::2], parts[1::2], len(self._salt)
        sealed = map(self._encrypt, nonces, plaintexts, headers)
        if self._esn:  # of which the low half is sent
            headers = tuple([header[:4] + header[8:] for header in headers])
        return [
            header + nonce[salt:] + text for header, nonce, text in zip(headers, nonces, sealed, strict=True)
        ]

    def _parts(self, numbers: range) -> tuple[bytes, ...]:
        """Associated data and nonce of each."""
        count = len(numbers)
        fields: list[object] = [self._spi, 0, self._salt, 0] * count
        fields[1::4] = fields[3::4] = numbers
        return _layout(self._split_layout, count).unpack(_layout(self._number_layout, count).pack(*fields))


# ---- CBC and a MAC


class _CbcOpening:
    def __init__(self, encryption: CbcEncryption, integrity: Integrity, key: bytes, *, esn: bool) -> None:
        self._decryptor = CbcDecryptor(encryption, key[: encryption.key_length])
        self._authenticator = Authenticator(integrity, key[encryption.key_length :])
        self._block = encryption.block_length
        self._icv = integrity.icv_length
        self._esn = esn

    def fits(self, size: int) -> bool:
        sealed = size - HEADER_LENGTH - self._icv
        return sealed >= 2 * self._block and sealed % self._block == 0

    def open(self, data: Buffer, size: int, numbers: Sequence[int]) -> Opened:
        count, icv = len(numbers), self._icv
        fields = _layout(f"{size - icv}s{icv}s", count).unpack_from(data)
        ends = _high_halves(numbers) if self._esn else ()
        forged = self._authenticator.verify(fields[0::2], fields[1::2], ends)
        length = size - HEADER_LENGTH - icv
        sealed: Sequence[bytes] = _layout(f"{HEADER_LENGTH}x{length}s{icv}x", count).unpack_from(data)
        if forged:
            wrong = frozenset(forged)
            sealed = [text for place, text in enumerate(sealed) if place not in wrong]
        clear = self._decryptor.decrypt(b"".join(sealed))
        block = self._block
        return Opened(list(_layout(f"{block}x{length - block}s", len(sealed)).unpack(clear)), forged)

    def open_each(self, packets: Sequence[bytes], numbers: Sequence[int]) -> Opened:
        icv = self._icv
        texts = [packet[:-icv] for packet in packets]
        ends = _high_halves(numbers) if self._esn else ()
        forged = self._authenticator.verify(texts, [packet[-icv:] for packet in packets], ends)
        if forged:
            wrong = frozenset(forged)
            texts = [text for place, text in enumerate(texts) if place not in wrong]
        clear = self._decryptor.decrypt(b"".join([text[HEADER_LENGTH:] for text in texts]))
        stops = list(accumulate([len(text) - HEADER_LENGTH for text in texts]))
        starts = [0, *stops]
        block = self._block
        return Opened([clear[a + block : b] for a, b in zip(starts, stops, strict=False)], forged)


class _CbcSealing:
    def __init__(
        self,
        encryption: CbcEncryption,
        integrity: Integrity,
        key: bytes,
        spi: int,
        random: RandomSource,
        *,
        esn: bool,
    ) -> None:
        self.block = encryption.block_length
        self.overhead = HEADER_LENGTH + encryption.block_length + integrity.icv_length
        self._encryptor = CbcEncryptor(encryption, key[: encryption.key_length], random)
        self._authenticator = Authenticator(integrity, key[encryption.key_length :])
        self._icv = integrity.icv_length
        self._spi = spi
        self._esn = esn

    def seal(self, numbers: range, plaintexts: Sequence[bytes]) -> bytes:
        count = len(numbers)
        sealed = self._encryptor.encrypt(plaintexts)
        length = len(sealed) // count
        fields: list[object] = [self._spi] * (3 * count)
        fields[1::3] = [number & _LOW for number in numbers] if self._esn else numbers
        fields[2::3] = _layout(f"{length}s", count).unpack(sealed)
        joined = _layout(f"II{length}s", count).pack(*fields)
        texts = _layout(f"{HEADER_LENGTH + length}s", count).unpack(joined)
        packets: list[bytes] = [b""] * (2 * count)
        packets[0::2] = texts
        packets[1::2] = self._authenticator.tags(texts, _high_halves(numbers) if self._esn else ())
        return _layout(f"{HEADER_LENGTH + length}s{self._icv}s", count).pack(*packets)

    def seal_each(self, numbers: range, plaintexts: Sequence[bytes]) -> list[bytes]:
        count, icv, block = len(numbers), self._icv, self.block
        sealed = self._encryptor.encrypt(plaintexts)
        fields = [self._spi] * (2 * count)
        fields[1::2] = [number & _LOW for number in numbers]
        headers = _layout("8s", count).unpack(_layout("II", count).pack(*fields))
        stops = list(accumulate([len(text) + block for text in plaintexts]))
        texts = [h + sealed[a:b] for h, a, b in zip(headers, [0, *stops], stops, strict=False)]
        tags = self._authenticator.tags(texts, _high_halves(numbers) if self._esn else ())
        return [text + tag[:icv] for text, tag in zip(texts, tags, strict=True)]


def split(data: Buffer, size: int, count: int) -> tuple[bytes, ...]:
    """So many packets of one size."""
    return _layout(f"{size}s", count).unpack_from(data)


def _high_halves(numbers: Sequence[int]) -> list[bytes]:
    return [(number >> 32).to_bytes(4) for number in numbers]


@lru_cache(maxsize=1024)
def _layout(packet: str, count: int) -> struct.Struct:
    """`count` times the same fields, in network order; what an argument has beyond its field is cut off."""
    return struct.Struct("!" + packet * count)
