"""ESP under CBC and a MAC (RFC 3602, 2404, 4868), a row of packets at a time.

    | SPI | sequence | IV (16) | ciphertext | ICV |   ICV over all before it

With extended sequence numbers (RFC 4303 2.2.1) the high half is not sent, but the MAC covers it behind the
packet. Opening compares every ICV of a row, in constant time, before it decrypts any of the packets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from protego_cli.crypto.algorithms import CbcEncryption, Integrity, RandomSource
from protego_cli.crypto.etm import Authenticator, CbcDecryptor, CbcEncryptor
from protego_cli.esp.rows import HEADER_LENGTH, Opened, layout
from protego_cli.wire.inner import Buffer

_LOW: Final = 0xFFFFFFFF


class CbcOpening:
    open_into = None  # one call decrypts a whole row: there is nothing to put anywhere

    def __init__(self, encryption: CbcEncryption, integrity: Integrity, key: bytes, *, esn: bool) -> None:
        self._decryptor = CbcDecryptor(encryption, key[: encryption.key_length])
        self._authenticator = Authenticator(integrity, key[encryption.key_length :])
        self._block = encryption.block_length
        self._icv = integrity.icv_length
        self._esn = esn
        self.overhead = HEADER_LENGTH + encryption.block_length + integrity.icv_length

    def fits(self, size: int) -> bool:
        sealed = size - HEADER_LENGTH - self._icv
        return sealed >= 2 * self._block and sealed % self._block == 0

    def open(self, data: Buffer, size: int, numbers: Sequence[int]) -> Opened:
        count, icv = len(numbers), self._icv
        fields = layout(f"{size - icv}s{icv}s", count).unpack_from(data)
        ends = _high_halves(numbers) if self._esn else ()
        right = _others(self._authenticator.verify(fields[0::2], fields[1::2], ends), count)
        length = size - HEADER_LENGTH - icv
        sealed: Sequence[bytes] = layout(f"{HEADER_LENGTH}x{length}s{icv}x", count).unpack_from(data)
        if len(right) < count:
            sealed = [sealed[place] for place in right]
        clear = self._decryptor.decrypt(b"".join(sealed))
        block = self._block
        return list(layout(f"{block}x{length - block}s", len(sealed)).unpack(clear)), right

    def open_each(self, packets: Sequence[bytes], numbers: Sequence[int]) -> Opened:
        icv = self._icv
        texts = [packet[:-icv] for packet in packets]
        ends = _high_halves(numbers) if self._esn else ()
        forged = self._authenticator.verify(texts, [packet[-icv:] for packet in packets], ends)
        right = _others(forged, len(packets))
        if forged:
            texts = [texts[place] for place in right]
        clear = self._decryptor.decrypt(b"".join([text[HEADER_LENGTH:] for text in texts]))
        stops = list(accumulate([len(text) - HEADER_LENGTH for text in texts]))
        starts = [0, *stops]
        block = self._block
        return [clear[a + block : b] for a, b in zip(starts, stops, strict=False)], right


class CbcSealing:
    seal_within = None  # as above

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

    def seal(self, numbers: Sequence[int], plaintexts: Sequence[bytes]) -> bytes:
        count = len(numbers)
        sealed = self._encryptor.encrypt(plaintexts)
        length = len(sealed) // count
        fields: list[object] = [self._spi] * (3 * count)
        fields[1::3] = [number & _LOW for number in numbers] if self._esn else numbers
        fields[2::3] = layout(f"{length}s", count).unpack(sealed)
        joined = layout(f"II{length}s", count).pack(*fields)
        texts = layout(f"{HEADER_LENGTH + length}s", count).unpack(joined)
        packets: list[bytes] = [b""] * (2 * count)
        packets[0::2] = texts
        packets[1::2] = self._authenticator.tags(texts, _high_halves(numbers) if self._esn else ())
        return layout(f"{HEADER_LENGTH + length}s{self._icv}s", count).pack(*packets)

    def seal_each(self, numbers: Sequence[int], plaintexts: Sequence[bytes]) -> list[bytes]:
        count, icv, block = len(numbers), self._icv, self.block
        sealed = self._encryptor.encrypt(plaintexts)
        fields = [self._spi] * (2 * count)
        fields[1::2] = [number & _LOW for number in numbers]
        headers = layout("8s", count).unpack(layout("II", count).pack(*fields))
        stops = list(accumulate([len(text) + block for text in plaintexts]))
        texts = [h + sealed[a:b] for h, a, b in zip(headers, [0, *stops], stops, strict=False)]
        tags = self._authenticator.tags(texts, _high_halves(numbers) if self._esn else ())
        return [text + tag[:icv] for text, tag in zip(texts, tags, strict=True)]


def _others(forged: Sequence[int], count: int) -> Sequence[int]:
    """The other places of so many."""
    if not forged:
        return range(count)
    wrong = frozenset(forged)
    return [place for place in range(count) if place not in wrong]


def _high_halves(numbers: Sequence[int]) -> list[bytes]:
    return [(number >> 32).to_bytes(4) for number in numbers]
