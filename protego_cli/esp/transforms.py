"""What a suite does to packets: an AEAD (`aead.py`), or CBC and then HMAC (`cbc.py`).

Here a row of packets of one size is sealed or opened at a time; an SA does not know how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from protego_cli.crypto.algorithms import (
    CbcEncryption,
    Encryption,
    EspSuite,
    Integrity,
    RandomSource,
)
from protego_cli.esp.aead import IV_LENGTH, AeadOpening, AeadSealing
from protego_cli.esp.cbc import CbcOpening, CbcSealing
from protego_cli.esp.rows import Opened
from protego_cli.esp.slices import Sliced
from protego_cli.wire.inner import Buffer


class OpenInto(Protocol):
    def __call__(
        self, data: Buffer, size: int, numbers: Sequence[int], slots: Sequence[memoryview]
    ) -> Sequence[int] | None:
        """A row as `open` takes it, each plaintext into its slot: the places of those that opened; the other
        slots hold anything. None, nothing having been opened, where that cannot be done.
        """
        ...


class SealWithin(Protocol):
    def __call__(
        self, numbers: Sequence[int], rows: Sliced, size: int, start: int, length: int, trailer: bytes
    ) -> memoryview | None:
        """A row as `seal` takes it, of plaintexts that are in rows of `size` bytes, `length` bytes at
        `start`, but for this trailer; the packets stay as they are while somebody holds what is returned.
        None, nothing having been sealed, where that cannot be done.
        """
        ...


class Opening(Protocol):
    """Bound to the key of an inbound SA."""

    overhead: int  # bytes of a packet beyond its plaintext

    @property
    def open_into(self) -> OpenInto | None:
        """Where that gains something."""
        ...

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

    @property
    def seal_within(self) -> SealWithin | None:
        """Where that gains something."""
        ...

    def seal(self, numbers: Sequence[int], plaintexts: Sequence[bytes]) -> bytes:
        """A row of plaintexts of one length as packets, side by side; no number ever comes twice."""
        ...

    def seal_each(self, numbers: Sequence[int], plaintexts: Sequence[bytes]) -> list[bytes]:
        """The same of plaintexts of any lengths, as a packet each."""
        ...


def opening(suite: EspSuite, key: bytes, spi: int) -> Opening:
    """Raises ValueError for keying material of the wrong length."""
    _check(suite, key)
    match suite.encryption, suite.integrity:
        case Encryption() as aead, None:
            return AeadOpening(aead, key, spi, esn=suite.esn)
        case CbcEncryption() as cbc, Integrity() as integrity:
            return CbcOpening(cbc, integrity, key, esn=suite.esn)
    raise ValueError(f"{suite} is no whole suite")


def sealing(suite: EspSuite, key: bytes, spi: int, random: RandomSource) -> Sealing:
    """Raises ValueError for keying material of the wrong length."""
    _check(suite, key)
    match suite.encryption, suite.integrity:
        case Encryption() as aead, None:
            return AeadSealing(aead, key, spi, esn=suite.esn)
        case CbcEncryption() as cbc, Integrity() as integrity:
            return CbcSealing(cbc, integrity, key, spi, random, esn=suite.esn)
    raise ValueError(f"{suite} is no whole suite")


def _check(suite: EspSuite, key: bytes) -> None:
    if len(key) != suite.keymat_length:
        raise ValueError(f"keying material of the wrong length for {suite}")
    if isinstance(suite.encryption, Encryption) and suite.encryption.iv_length != IV_LENGTH:
        raise ValueError(f"{suite} has no 8-byte IV, which a sequence number needs")
