"""Proposals and transforms: the body of the Security Association payload (RFC 7296 3.3).

Everything offered is kept, known or not, so that a refusal can say what the peer wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from struct import Struct

from protego_cli.errors import Malformed
from protego_cli.wire.reader import Reader

MAX_PROPOSALS = 64
MAX_TRANSFORMS = 128
SUITES = 256  # of ours that are remembered as bytes

_CHAINED = Struct("!BxH")  # whether more follow, a reserved byte, the length
_PROPOSAL = Struct("!BBBB")
_TRANSFORM = Struct("!BxH")
_LAST, _MORE_PROPOSALS, _MORE_TRANSFORMS = 0, 2, 3
_FIXED = 0x8000  # attribute format bit: the value is the two bytes that follow
_KEY_LENGTH = _FIXED | 14


class Protocol(IntEnum):
    """RFC 7296 3.3.1."""

    NONE = 0
    IKE = 1
    AH = 2
    ESP = 3


@dataclass(frozen=True, slots=True)
class Transform:
    """One algorithm; two are the same only when all their attributes are.

    `others` holds attributes beside Key Length as (type with its format bit, value). A transform that has
    any must not be chosen (RFC 7296 3.3.6).
    """

    type: int
    id: int
    key_bits: int | None = None
    others: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """Transforms of one protocol; of each type, exactly one is to be chosen."""

    number: int
    protocol: int
    spi: bytes
    transforms: tuple[Transform, ...]


def build_proposals(proposals: Sequence[Proposal]) -> bytes:
    """The body of an SA payload."""
    parts = []
    for index, proposal in enumerate(proposals):
        last = index == len(proposals) - 1
        transforms = _build_transforms(proposal.transforms)
        length = 8 + len(proposal.spi) + len(transforms)
        parts += [
            bytes((_LAST if last else _MORE_PROPOSALS, 0)),
            length.to_bytes(2, "big"),
            bytes((proposal.number, proposal.protocol, len(proposal.spi), len(proposal.transforms))),
            proposal.spi,
            transforms,
        ]
    return b"".join(parts)


@lru_cache(SUITES)
def _build_transforms(transforms: tuple[Transform, ...]) -> bytes:
    last = len(transforms) - 1
    return b"".join(_build_transform(transform, last=at == last) for at, transform in enumerate(transforms))


def _build_transform(transform: Transform, *, last: bool) -> bytes:
    attributes = b""
    if transform.key_bits is not None:
        attributes += _KEY_LENGTH.to_bytes(2, "big") + transform.key_bits.to_bytes(2, "big")
    for kind, value in transform.others:
        attributes += kind.to_bytes(2, "big")
        if not kind & _FIXED:
            attributes += len(value).to_bytes(2, "big")
        attributes += value
    return (
        bytes((_LAST if last else _MORE_TRANSFORMS, 0))
        + (8 + len(attributes)).to_bytes(2, "big")
        + bytes((transform.type, 0))
        + transform.id.to_bytes(2, "big")
        + attributes
    )


def parse_proposals_untrusted(reader: Reader) -> tuple[Proposal, ...]:
    """The proposals of an SA payload's body: at least one, at most `MAX_PROPOSALS`."""
    proposals: list[Proposal] = []
    more = _MORE_PROPOSALS
    while more == _MORE_PROPOSALS:
        if len(proposals) == MAX_PROPOSALS:
            raise Malformed(f"more than {MAX_PROPOSALS} proposals")
        more, length = reader.unpack(_CHAINED)
        body = reader.sub(length - _CHAINED.size)
        number, protocol, spi_size, count = body.unpack(_PROPOSAL)
        spi = body.take(spi_size)
        proposals.append(Proposal(number, protocol, spi, _parse_transforms_untrusted(body, count)))
    if more != _LAST:
        raise Malformed(f"proposal followed by {more}")
    reader.finish()
    return tuple(proposals)


def _parse_transforms_untrusted(reader: Reader, count: int) -> tuple[Transform, ...]:
    if count > MAX_TRANSFORMS:
        raise Malformed(f"more than {MAX_TRANSFORMS} transforms")
    transforms = []
    for index in range(count):
        expected = _LAST if index == count - 1 else _MORE_TRANSFORMS
        more, length = reader.unpack(_CHAINED)
        if more != expected:
            raise Malformed("number of transforms disagrees with their chain")
        body = reader.sub(length - _CHAINED.size)
        kind, identifier = body.unpack(_TRANSFORM)
        transforms.append(_parse_attributes_untrusted(body, kind, identifier))
    reader.finish()
    return tuple(transforms)


def _parse_attributes_untrusted(reader: Reader, kind: int, identifier: int) -> Transform:
    key_bits: int | None = None
    others: list[tuple[int, bytes]] = []
    while reader.remaining:
        attribute = reader.u16()
        value = reader.take(2 if attribute & _FIXED else reader.u16())
        if attribute != _KEY_LENGTH:
            others.append((attribute, value))
        elif key_bits is None:
            key_bits = int.from_bytes(value, "big")
        else:
            raise Malformed("two Key Length attributes in one transform")
    return Transform(kind, identifier, key_bits, tuple(others))
