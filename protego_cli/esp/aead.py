"""ESP under an AEAD (RFC 4106, 7634), a row of packets at a time.

    | SPI | sequence | IV (8)  | ciphertext | ICV |   nonce: salt and IV; associated data: SPI and sequence

With extended sequence numbers (RFC 4303 2.2.1) the high half is not sent, but associated data has all 64 bits
(RFC 4106 5). The IV is the number as 64 bits, so it never comes twice under a key.

A long row of packets of one size goes through buffers whose slices are kept (`slices.py`):

    opening   received ──copy──▶ slices ──decrypt──▶ plaintexts, or the caller's slots
    sealing   slices of frames, trailers put behind ──encrypt──▶ slices of what will be sent

Nonces, headers and associated data are written beside, in columns. All else is taken apart by `struct`: short
rows, a layout that comes for the first time, an AEAD that only takes and returns bytes. What did not open may
have left anything in its slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from operator import add
from typing import Final, TypeVar

from cryptography.exceptions import InvalidTag

from protego_cli.crypto.algorithms import BufferAead, Encryption
from protego_cli.esp.rows import HEADER_LENGTH, Opened, layout
from protego_cli.esp.slices import FEW, MAX_ROWS, Pool, Sliced, received
from protego_cli.wire.inner import Buffer
from protego_cli.wire.strides import all_halves, fill, halves

IV_LENGTH: Final = 8  # a sequence number
ALIGNMENT: Final = 4  # of the plaintext (RFC 4303 2.4)
_PREFIX: Final = HEADER_LENGTH + IV_LENGTH
_SALT: Final = 4  # bytes of the salt beside which nonces lie in whole words
_LOW: Final = 0xFFFFFFFF

T = TypeVar("T", bytes, memoryview)

_received_nonces, _received_associated = Sliced(), Sliced()
_nonces, _associated = Sliced(), Sliced()
_sealed = Pool()
_exhaust = deque[object](maxlen=0).extend


class AeadOpening:
    def __init__(self, encryption: Encryption, key: bytes, spi: int, *, esn: bool) -> None:
        aead = encryption.make(key[: encryption.key_length])
        self._decrypt = aead.decrypt
        self._buffered = aead if isinstance(aead, BufferAead) else None
        self._salt = key[encryption.key_length :]
        self.overhead = _PREFIX + encryption.icv_length
        self._spi = spi
        self._esn = esn

    @property
    def open_into(self) -> Callable[..., Sequence[int] | None] | None:
        return None if self._buffered is None else self._open_into

    def fits(self, size: int) -> bool:
        return size >= self.overhead

    def open(self, data: Buffer, size: int, numbers: Sequence[int]) -> Opened:
        count, salt = len(numbers), self._salt
        if self._buffered is not None and count >= FEW:
            kept = self._kept(data, size, numbers)
            if kept is not None:
                return _open(self._buffered.decrypt, *kept)
        fields = layout(f"8s8s{size - _PREFIX}s", count).unpack_from(data)
        headers = self._extended(numbers) if self._esn else fields[0::3]
        return _open(self._decrypt, [salt + iv for iv in fields[1::3]], fields[2::3], headers)

    def open_each(self, packets: Sequence[bytes], numbers: Sequence[int]) -> Opened:
        salt = self._salt
        headers = self._extended(numbers) if self._esn else [packet[:8] for packet in packets]
        nonces = [salt + packet[8:16] for packet in packets]
        return _open(self._decrypt, nonces, [packet[16:] for packet in packets], headers)

    def _open_into(
        self, data: Buffer, size: int, numbers: Sequence[int], slots: Sequence[memoryview]
    ) -> Sequence[int] | None:
        if self._buffered is None or (kept := self._kept(data, size, numbers)) is None:
            return None
        decrypt, (nonces, sealed, headers) = self._buffered.decrypt_into, kept
        done: list[int] = []
        try:
            done.extend(map(decrypt, nonces, sealed, headers, slots))
        except InvalidTag:
            places = range(len(done) + 1, len(slots))
        else:
            return range(len(slots))
        opened = list(range(len(done)))
        rest = [each[places.start :] for each in (nonces, sealed, headers, slots)]
        for place, nonce, text, header, slot in zip(places, *rest, strict=True):
            try:
                decrypt(nonce, text, header, slot)
            except InvalidTag:
                continue
            opened.append(place)
        return opened

    def _kept(
        self, data: Buffer, size: int, numbers: Sequence[int]
    ) -> tuple[Sequence[memoryview], Sequence[memoryview], Sequence[memoryview]] | None:
        """Nonces, what is sealed, and associated data, in slices that are kept."""
        count, salt, high = len(numbers), self._salt, numbers[0] >> 32
        if count > MAX_ROWS or size % 4 or len(salt) != _SALT:
            return None
        if self._esn and not _of_high_half(numbers, high):
            return None
        sealed = received.cut(_PREFIX, size - _PREFIX, size, count)
        nonces = _received_nonces.cut(0, 12, 12, count)
        headers = _received_associated.cut(0, 12, 12, count) if self._esn else received.cut(0, 8, size, count)
        if sealed is None or nonces is None or headers is None:
            return None
        step, end = size // 4, count * size // 4
        received.put(data, count * size)
        words = received.words
        _put_nonces(salt, words[2:end:step], words[3:end:step])
        if self._esn:
            highs = _column(high.to_bytes(4), count)
            _put(_received_associated.words, 3, (words[0:end:step], highs, words[1:end:step]))
        return nonces, sealed, headers

    def _extended(self, numbers: Sequence[int]) -> tuple[bytes, ...]:
        """SPI and 64-bit number of each."""
        count = len(numbers)
        fields = [self._spi] * (2 * count)
        fields[1::2] = numbers
        return layout("12s", count).unpack(layout("IQ", count).pack(*fields))


def _open(
    decrypt: Callable[[T, T, T], bytes], nonces: Sequence[T], sealed: Sequence[T], headers: Sequence[T]
) -> Opened:
    """What opens. Behind the first that does not, in a loop: there another such one takes a third less."""
    plaintexts: list[bytes] = []
    try:
        plaintexts.extend(map(decrypt, nonces, sealed, headers))
    except InvalidTag:
        places = range(len(plaintexts) + 1, len(nonces))
    else:
        return plaintexts, range(len(plaintexts))
    opened = list(range(len(plaintexts)))
    rest = [each[places.start :] for each in (nonces, sealed, headers)]
    for place, nonce, text, header in zip(places, *rest, strict=True):
        try:
            plaintexts.append(decrypt(nonce, text, header))
        except InvalidTag:
            continue
        opened.append(place)
    return plaintexts, opened


class AeadSealing:
    block = ALIGNMENT

    def __init__(self, encryption: Encryption, key: bytes, spi: int, *, esn: bool) -> None:
        self.overhead = _PREFIX + encryption.icv_length
        aead = encryption.make(key[: encryption.key_length])
        self._encrypt = aead.encrypt
        self._encrypt_into = aead.encrypt_into if isinstance(aead, BufferAead) else None
        self._salt = key[encryption.key_length :]
        self._spi = spi
        self._prefix = spi.to_bytes(4)
        self._esn = esn
        salt = len(self._salt)
        self._number_layout = f"IQ{salt}sQ" if esn else f"II{salt}sQ"
        self._split_layout = f"{12 if esn else 8}s{salt + IV_LENGTH}s"

    @property
    def seal_within(self) -> Callable[..., memoryview | None] | None:
        return None if self._encrypt_into is None else self._seal_within

    def seal(self, numbers: Sequence[int], plaintexts: Sequence[bytes]) -> bytes:
        count = len(numbers)
        parts = self._parts(numbers)
        sealed = list(map(self._encrypt, parts[1::2], plaintexts, parts[0::2]))
        packets: list[object]
        if self._esn:
            packets = [self._spi] * (4 * count)
            packets[1::4], packets[2::4], packets[3::4] = [n & _LOW for n in numbers], numbers, sealed
            return layout(f"IIQ{len(sealed[0])}s", count).pack(*packets)
        packets = [None] * (3 * count)
        packets[0::3], packets[1::3], packets[2::3] = parts[0::2], numbers, sealed
        return layout(f"8sQ{len(sealed[0])}s", count).pack(*packets)

    def seal_each(self, numbers: Sequence[int], plaintexts: Sequence[bytes]) -> list[bytes]:
        count, parts = len(numbers), self._parts(numbers)
        fields = [self._spi] * (3 * count)
        fields[1::3] = [number & _LOW for number in numbers] if self._esn else numbers
        fields[2::3] = numbers
        prefixes = layout("16s", count).unpack(layout("IIQ", count).pack(*fields))
        return list(map(add, prefixes, map(self._encrypt, parts[1::2], plaintexts, parts[0::2])))

    def _seal_within(
        self, numbers: Sequence[int], rows: Sliced, size: int, start: int, length: int, trailer: bytes
    ) -> memoryview | None:
        count, text = len(numbers), length + len(trailer)
        upper, low = numbers[0] >> 16, numbers[0] & 0xFFFF
        step = self.overhead + text
        if self._encrypt_into is None or count > MAX_ROWS or step % 4 or len(self._salt) != _SALT:
            return None
        if numbers[-1] >> 16 != upper or len(trailer) > start or (packets := _sealed.take()) is None:
            return None
        texts = rows.cut(start, text, size, count)
        slots = packets.cut(_PREFIX, step - _PREFIX, step, count)
        nonces = _nonces.cut(0, 12, 12, count)
        headers = _associated.cut(0, 12, 12, count) if self._esn else packets.cut(0, 8, step, count)
        if texts is None or slots is None or nonces is None or headers is None:
            return None
        fill(rows.data, size, count, start + length, trailer)
        number = (upper << 16).to_bytes(8)
        lows = all_halves()[low : low + count] if isinstance(numbers, range) else halves(numbers)
        _put_numbers(packets, step, self._prefix + number[4:] + number, lows, 6, 14)
        _put_numbers(_nonces, 12, self._salt + number, lows, 10)
        if self._esn:
            _put_numbers(_associated, 12, self._prefix + number, lows, 10)
        _exhaust(map(self._encrypt_into, nonces, texts, headers, slots))
        return packets.lend(count * step)

    def _parts(self, numbers: Sequence[int]) -> tuple[bytes, ...]:
        """Associated data and nonce of each."""
        count = len(numbers)
        fields: list[object] = [self._spi, 0, self._salt, 0] * count
        fields[1::4] = fields[3::4] = numbers
        return layout(self._split_layout, count).unpack(layout(self._number_layout, count).pack(*fields))


def _of_high_half(numbers: Sequence[int], high: int) -> bool:
    ends = (numbers[0], numbers[-1]) if isinstance(numbers, range) else (min(numbers), max(numbers))
    return all(end >> 32 == high for end in ends)


def _put_nonces(salt: bytes, highs: memoryview, lows: memoryview) -> None:
    """Those of received packets; senders may have made IVs of anything."""
    count = len(highs)
    words, end = _received_nonces.words, 3 * count
    if _received_nonces.rows < count or _received_nonces.written != salt:
        words[0:end:3] = _column(salt, count)
        _received_nonces.written, _received_nonces.rows = salt, count
    if words[1:end:3] != highs:  # to compare is quicker, and they hardly ever change
        words[1:end:3] = highs
    words[2:end:3] = lows


def _put_numbers(buffer: Sliced, step: int, fields: bytes, lows: memoryview, *places: int) -> None:
    """Write the same fields every `step` bytes; lower halves of numbers go to these places in them."""
    count = len(lows)
    if buffer.rows < count or buffer.written != (fields, step):
        _put(
            buffer.words, step // 4, [_column(fields[at : at + 4], count) for at in range(0, len(fields), 4)]
        )
        buffer.written, buffer.rows = (fields, step), count
    for place in places:
        buffer.halves[place // 2 : count * step // 2 : step // 2] = lows


def _put(words: memoryview, step: int, columns: Sequence[memoryview]) -> None:
    """Write these side by side, the fields of a packet `step` words behind those of the one before."""
    end = len(columns[0]) * step
    for place, column in enumerate(columns):
        words[place:end:step] = column


def _column(word: bytes, count: int) -> memoryview:
    """The same four bytes for each of so many packets."""
    return memoryview(word * count).cast("I")
