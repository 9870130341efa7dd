"""The two halves of a CHILD_SA on the data path: opening and sealing with an AEAD (RFC 4303, 4106, 7634).

Inbound: 1. the replay window admits the number; 2. the packet opens; 3. only then is the number committed.
Outbound: 1. numbers are taken from the sealing range, for good; 2. packets are sealed under them. A number
that was taken is never used again, whatever becomes of its packet, and none outside the range ever is: so no
two packets share a nonce.

Rows of packets go through the cipher in one C loop (`map` over the AEAD's own method).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidTag

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Aead, Encryption
from protego_cli.esp.flows import FlowSelectors
from protego_cli.esp.packet import IV_LENGTH, MAX_SEQUENCE
from protego_cli.esp.replay import ReplayWindow
from protego_cli.wire.selectors import TrafficSelector


def _aead(encryption: Encryption, key: bytes) -> tuple[Aead, bytes]:
    """The cipher and the salt in keying material (RFC 4106 8.1). Raises ValueError for the wrong length."""
    if encryption.iv_length != IV_LENGTH:
        raise ValueError(f"{encryption.keyword} has no 8-byte IV, which a sequence number needs")
    if len(key) != encryption.key_length + encryption.salt_length:
        raise ValueError(f"keying material of the wrong length for {encryption.keyword}")
    return encryption.make(key[: encryption.key_length]), key[encryption.key_length :]


class InboundSa:
    """Opens what a peer sealed; counts drops by their reasons."""

    def __init__(
        self,
        spi: int,
        encryption: Encryption,
        key: bytes,
        *,
        local_ts: Sequence[TrafficSelector],
        remote_ts: Sequence[TrafficSelector],
        window: int = 1024,
        floor: int = 0,
        opens: bool = True,
        expires: float | None = None,
    ) -> None:
        self.spi = spi
        self.selectors = FlowSelectors(sources=remote_ts, destinations=local_ts)
        self.window = ReplayWindow(window, floor)
        self.floor = floor
        self.opens = opens
        self.expires = expires
        self.icv_length = encryption.icv_length
        self.authentic = False  # whether its holder has seen a packet open
        self.packets = 0  # delivered, and their inner bytes
        self.bytes = 0
        self._aead, self._salt = _aead(encryption, key)

    @property
    def highest(self) -> int:
        """The highest number that opened, or the floor."""
        return self.window.top

    def raise_floor(self, floor: int) -> None:
        """Never open a number at or below `floor` from now on."""
        if floor > self.floor:
            self.floor = floor
            self.window.raise_floor(floor)

    def open(
        self,
        numbers: Sequence[int],
        headers: Sequence[bytes],
        ivs: Sequence[bytes],
        ciphertexts: Sequence[bytes],
        counters: Counters,
        now: float,
    ) -> list[bytes]:
        """The plaintexts, trailer included, of those of a row of packets that may be opened, in order.

        `headers` are SPI and sequence number, `ivs` and `ciphertexts` (with ICV) what follows them.
        """
        if not self.opens or (self.expires is not None and now >= self.expires):
            counters["gpn_drop_expired" if self.opens else "gpn_drop_floor"] += len(numbers)
            return []
        salt = self._salt
        nonces = [salt + iv for iv in ivs]
        if not self.window.fresh(numbers):
            packets = zip(numbers, nonces, ciphertexts, headers, strict=True)
            opened = (self._open_one(*packet, counters) for packet in packets)
            return [plaintext for plaintext in opened if plaintext is not None]
        plaintexts: list[bytes] = []
        forged: set[int] = set()  # places in the row
        opening = map(self._aead.decrypt, nonces, ciphertexts, headers)
        while True:
            try:
                plaintexts.extend(opening)
                break
            except InvalidTag:  # `opening` stands behind the packet that did not open
                forged.add(len(plaintexts) + len(forged))
        if forged:
            counters["gpn_drop_auth"] += len(forged)
            for place, number in enumerate(numbers):
                if place not in forged:
                    self.window.commit(number)
        else:
            self.window.commit_row(numbers)
        return plaintexts

    def _open_one(
        self, number: int, nonce: bytes, ciphertext: bytes, header: bytes, counters: Counters
    ) -> bytes | None:
        if not self.window.check(number):
            counters["gpn_drop_floor" if number <= self.floor else "gpn_drop_replay"] += 1
            return None
        try:
            plaintext = self._aead.decrypt(nonce, ciphertext, header)
        except InvalidTag:
            counters["gpn_drop_auth"] += 1
            return None
        self.window.commit(number)
        return plaintext


class OutboundSa:
    """Seals for a peer, with numbers from [lo, hi) and no other."""

    def __init__(
        self,
        spi: int,
        encryption: Encryption,
        key: bytes,
        *,
        local_ts: Sequence[TrafficSelector],
        remote_ts: Sequence[TrafficSelector],
        lo: int,
        hi: int,
        expires: float | None = None,
    ) -> None:
        self.spi = spi
        self.selectors = FlowSelectors(sources=local_ts, destinations=remote_ts)
        self.expires = expires
        self.packets = 0  # sealed, and their inner bytes
        self.bytes = 0
        self.icv_length = encryption.icv_length
        self._aead, self._salt = _aead(encryption, key)
        self._number_layout = f"II{len(self._salt)}sQ"
        self._split_layout = f"8s{len(self._salt) + IV_LENGTH}s"
        self.lo = self.hi = self.next = 1
        self.low_at = 1  # where three quarters of the range are used
        self.grant(lo, hi)

    def grant(self, lo: int, hi: int) -> bool:
        """Go on in another range. False, changing nothing, for one that could repeat a number.

        Raises ValueError for what is no range of 32-bit sequence numbers.
        """
        if not 1 <= lo <= hi <= MAX_SEQUENCE + 1:
            raise ValueError(f"[{lo}, {hi}) is no range of sequence numbers")
        if lo < self.lo or hi < self.next:
            return False
        self.lo, self.hi, self.next = lo, hi, max(lo, self.next)
        self.low_at = lo + (hi - lo) * 3 // 4
        return True

    def take(self, count: int) -> range:
        """The next numbers, `count` or as many as are left; they are used up with this call."""
        first = self.next
        self.next = min(first + count, self.hi)
        return range(first, self.next)

    def seal(self, plaintexts: Sequence[bytes]) -> bytes:
        """A row of padded plaintexts of one length, sealed side by side.

        Fewer come out than went in when the range is used up.
        """
        numbers = self.take(len(plaintexts))
        count = len(numbers)
        if not count:
            return b""
        fields: list[object] = [self.spi, 0, self._salt, 0] * count
        fields[1::4] = fields[3::4] = numbers
        parts = _layout(self._split_layout, count).unpack(_layout(self._number_layout, count).pack(*fields))
        headers = parts[0::2]
        sealed = list(map(self._aead.encrypt, parts[1::2], plaintexts, headers))
        packets: list[object] = [None] * (3 * count)
        packets[0::3], packets[1::3], packets[2::3] = headers, numbers, sealed
        return _layout(f"8sQ{len(sealed[0])}s", count).pack(*packets)


@lru_cache(maxsize=1024)
def _layout(packet: str, count: int) -> struct.Struct:
    """`count` times the same fields, in network order."""
    return struct.Struct("!" + packet * count)
