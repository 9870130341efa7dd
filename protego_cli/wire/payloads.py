"""IKEv2 payloads: bytes <-> frozen dataclasses (RFC 7296 3.2-3.14).

Flow: `parse_chain_untrusted` walks a chain of generic payload headers, bounded in number and length, and
hands each body to the parser of its type in `PARSERS`; types without one become `Opaque`. `build_chain` is
its inverse. `LEGAL` says in which exchange, inside or outside the encryption, a payload may appear.

The critical bit of a payload whose type we know means nothing (RFC 7296 2.5) and is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar

from protego_cli.errors import Malformed
from protego_cli.wire.proposals import Proposal, build_proposals, parse_proposals_untrusted
from protego_cli.wire.reader import Reader
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.ts import build_selectors, parse_selectors_untrusted

MAX_PAYLOADS = 64
_GENERIC = Struct("!BBH")  # next payload, flags, length; Notify and Delete begin alike
_CRITICAL = 0x80


class PayloadType(IntEnum):
    """RFC 7296 3.2."""

    NONE = 0
    SA = 33
    KE = 34
    ID_I = 35
    ID_R = 36
    CERT = 37
    CERTREQ = 38
    AUTH = 39
    NONCE = 40
    NOTIFY = 41
    DELETE = 42
    VENDOR = 43
    TS_I = 44
    TS_R = 45
    SK = 46
    CP = 47
    EAP = 48


class ExchangeType(IntEnum):
    """RFC 7296 3.1."""

    IKE_SA_INIT = 34
    IKE_AUTH = 35
    CREATE_CHILD_SA = 36
    INFORMATIONAL = 37


_INIT = (ExchangeType.IKE_SA_INIT, False)
_AUTH = (ExchangeType.IKE_AUTH, True)
_CHILD = (ExchangeType.CREATE_CHILD_SA, True)
_INFO = (ExchangeType.INFORMATIONAL, True)

LEGAL: dict[int, frozenset[tuple[int, bool]]] = {
    PayloadType.SA: frozenset({_INIT, _AUTH, _CHILD}),
    PayloadType.KE: frozenset({_INIT, _CHILD}),
    PayloadType.ID_I: frozenset({_AUTH}),
    PayloadType.ID_R: frozenset({_AUTH}),
    PayloadType.CERT: frozenset({_AUTH}),
    PayloadType.CERTREQ: frozenset({_INIT, _AUTH}),
    PayloadType.AUTH: frozenset({_AUTH}),
    PayloadType.NONCE: frozenset({_INIT, _CHILD}),
    PayloadType.NOTIFY: frozenset({_INIT, _AUTH, _CHILD, _INFO}),
    PayloadType.DELETE: frozenset({_INFO}),
    PayloadType.VENDOR: frozenset({_INIT, _AUTH, _CHILD, _INFO}),
    PayloadType.TS_I: frozenset({_AUTH, _CHILD}),
    PayloadType.TS_R: frozenset({_AUTH, _CHILD}),
    PayloadType.SK: frozenset({(exchange, False) for exchange, _ in (_AUTH, _CHILD, _INFO)}),
    PayloadType.CP: frozenset({_AUTH, _CHILD, _INFO}),
    PayloadType.EAP: frozenset({_AUTH}),
}
"""Payload type -> the (exchange, inside the encryption) pairs where RFC 7296 lets it stand."""


@dataclass(frozen=True, slots=True)
class Sa:
    """Security Association: what is proposed, or the one proposal chosen."""

    type: ClassVar[int] = PayloadType.SA
    proposals: tuple[Proposal, ...]

    def body(self) -> bytes:
        return build_proposals(self.proposals)


@dataclass(frozen=True, slots=True)
class Ke:
    """Key Exchange: a public value."""

    type: ClassVar[int] = PayloadType.KE
    group: int
    data: bytes

    def body(self) -> bytes:
        return self.group.to_bytes(2, "big") + bytes(2) + self.data


@dataclass(frozen=True, slots=True)
class IdI:
    """Identification of the initiator."""

    type: ClassVar[int] = PayloadType.ID_I
    kind: int
    data: bytes

    def body(self) -> bytes:
        return bytes((self.kind, 0, 0, 0)) + self.data


@dataclass(frozen=True, slots=True)
class IdR:
    """Identification of the responder."""

    type: ClassVar[int] = PayloadType.ID_R
    kind: int
    data: bytes

    def body(self) -> bytes:
        return bytes((self.kind, 0, 0, 0)) + self.data


@dataclass(frozen=True, slots=True)
class Auth:
    """Authentication data."""

    type: ClassVar[int] = PayloadType.AUTH
    method: int
    data: bytes

    def body(self) -> bytes:
        return bytes((self.method, 0, 0, 0)) + self.data


@dataclass(frozen=True, slots=True)
class Nonce:
    """16 to 256 bytes (RFC 7296 3.9)."""

    type: ClassVar[int] = PayloadType.NONCE
    data: bytes

    def body(self) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True)
class Notify:
    """An error (below 16384) or a status."""

    type: ClassVar[int] = PayloadType.NOTIFY
    kind: int
    data: bytes = b""
    protocol: int = 0
    spi: bytes = b""

    def body(self) -> bytes:
        return bytes((self.protocol, len(self.spi))) + self.kind.to_bytes(2, "big") + self.spi + self.data


@dataclass(frozen=True, slots=True)
class Delete:
    """SAs the sender has closed, by the SPIs it received on; none for the IKE_SA itself."""

    type: ClassVar[int] = PayloadType.DELETE
    protocol: int
    spis: tuple[bytes, ...] = ()

    def body(self) -> bytes:
        size = len(self.spis[0]) if self.spis else 0
        return bytes((self.protocol, size)) + len(self.spis).to_bytes(2, "big") + b"".join(self.spis)


@dataclass(frozen=True, slots=True)
class Vendor:
    type: ClassVar[int] = PayloadType.VENDOR
    data: bytes

    def body(self) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True)
class TsI:
    """Traffic selectors of the exchange's initiator."""

    type: ClassVar[int] = PayloadType.TS_I
    selectors: tuple[TrafficSelector, ...]

    def body(self) -> bytes:
        return build_selectors(self.selectors)


@dataclass(frozen=True, slots=True)
class TsR:
    """Traffic selectors of the exchange's responder."""

    type: ClassVar[int] = PayloadType.TS_R
    selectors: tuple[TrafficSelector, ...]

    def body(self) -> bytes:
        return build_selectors(self.selectors)


@dataclass(frozen=True, slots=True)
class Sk:
    """Encrypted and Authenticated: always the last; `inner` is the type of the first payload inside."""

    type: ClassVar[int] = PayloadType.SK
    inner: int
    data: bytes

    def body(self) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True)
class Opaque:
    """A payload whose body we do not look into, or whose type we do not know."""

    type: int
    data: bytes
    critical: bool = False

    @property
    def known(self) -> bool:
        """Whether RFC 7296 defines the type, so that its critical bit must be ignored."""
        return self.type in LEGAL

    def body(self) -> bytes:
        return self.data


Payload = Sa | Ke | IdI | IdR | Auth | Nonce | Notify | Delete | Vendor | TsI | TsR | Sk | Opaque


def build_chain(payloads: Sequence[Payload]) -> tuple[int, bytes]:
    """The type of the first payload and the bytes of all. `Sk` may only come last."""
    parts = []
    for index, payload in enumerate(payloads):
        following = index + 1
        if isinstance(payload, Sk):
            next_type = payload.inner
        else:
            next_type = payloads[following].type if following < len(payloads) else PayloadType.NONE
        body = payload.body()
        flags = _CRITICAL if isinstance(payload, Opaque) and payload.critical else 0
        parts += [_GENERIC.pack(next_type, flags, _GENERIC.size + len(body)), body]
    return (payloads[0].type if payloads else PayloadType.NONE), b"".join(parts)


def parse_chain_untrusted(first: int, data: bytes | memoryview) -> tuple[Payload, ...]:
    """All payloads of `data`, the first being of type `first`. Raises Malformed."""
    reader = Reader(data)
    payloads: list[Payload] = []
    kind = first
    while kind != PayloadType.NONE:
        if len(payloads) == MAX_PAYLOADS:
            raise Malformed(f"more than {MAX_PAYLOADS} payloads")
        following, flags, length = reader.unpack(_GENERIC)
        if length < _GENERIC.size:  # a length of zero would make the walk stand still
            raise Malformed(f"payload of type {kind} with length {length}")
        body = reader.sub(length - _GENERIC.size)
        if kind == PayloadType.SK:
            payloads.append(Sk(following, body.rest()))
            break
        parse = PARSERS.get(kind)
        payloads.append(parse(body) if parse else Opaque(kind, body.rest(), bool(flags & _CRITICAL)))
        kind = following
    reader.finish()
    return tuple(payloads)


def _parse_ke_untrusted(reader: Reader) -> Ke:
    group = reader.u16()
    reader.take(2)
    return Ke(group, reader.rest())


def _parse_kind_untrusted(reader: Reader) -> tuple[int, bytes]:
    """The shape that ID and AUTH payloads share: a kind, three reserved bytes, data."""
    kind = reader.u8()
    reader.take(3)
    return kind, reader.rest()


def _parse_nonce_untrusted(reader: Reader) -> Nonce:
    if not 16 <= reader.remaining <= 256:
        raise Malformed(f"nonce of {reader.remaining} bytes")
    return Nonce(reader.rest())


def _parse_notify_untrusted(reader: Reader) -> Notify:
    protocol, spi_size, kind = reader.unpack(_GENERIC)
    spi = reader.take(spi_size)
    return Notify(kind, reader.rest(), protocol, spi)


def _parse_delete_untrusted(reader: Reader) -> Delete:
    protocol, size, count = reader.unpack(_GENERIC)
    if size * count != reader.remaining or (count and not size):
        raise Malformed(f"{count} SPIs of {size} bytes in {reader.remaining} bytes")
    return Delete(protocol, tuple(reader.take(size) for _ in range(count)))


PARSERS: dict[int, Callable[[Reader], Payload]] = {
    PayloadType.SA: lambda reader: Sa(parse_proposals_untrusted(reader)),
    PayloadType.KE: _parse_ke_untrusted,
    PayloadType.ID_I: lambda reader: IdI(*_parse_kind_untrusted(reader)),
    PayloadType.ID_R: lambda reader: IdR(*_parse_kind_untrusted(reader)),
    PayloadType.AUTH: lambda reader: Auth(*_parse_kind_untrusted(reader)),
    PayloadType.NONCE: _parse_nonce_untrusted,
    PayloadType.NOTIFY: _parse_notify_untrusted,
    PayloadType.DELETE: _parse_delete_untrusted,
    PayloadType.VENDOR: lambda reader: Vendor(reader.rest()),
    PayloadType.TS_I: lambda reader: TsI(parse_selectors_untrusted(reader.rest())),
    PayloadType.TS_R: lambda reader: TsR(parse_selectors_untrusted(reader.rest())),
}
