"""The payloads of one message, looked up by type; what is missing or doubled is InvalidSyntax."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from protego_cli.errors import InvalidSyntax, UnsupportedCriticalPayload
from protego_cli.wire.notifies import FIRST_STATUS
from protego_cli.wire.payloads import (
    LEGAL,
    Auth,
    Delete,
    IdI,
    IdR,
    Ke,
    Nonce,
    Notify,
    Opaque,
    Payload,
    Sa,
    TsI,
    TsR,
)

Single = TypeVar("Single", Sa, Ke, IdI, IdR, Auth, Nonce, TsI, TsR)


class Payloads:
    def __init__(self, payloads: Iterable[Payload]) -> None:
        self._payloads: Sequence[Payload] = tuple(payloads)

    def check(self, exchange: int, *, protected: bool) -> None:
        """Raises for a critical payload we do not know, and for one where its type may not stand."""
        for payload in self._payloads:
            places = LEGAL.get(payload.type)
            if places is not None:
                if (exchange, protected) not in places:
                    raise InvalidSyntax(f"payload of type {payload.type} in exchange {exchange}")
            elif isinstance(payload, Opaque) and payload.critical:
                raise UnsupportedCriticalPayload(
                    f"critical payload of type {payload.type}", data=bytes((payload.type,))
                )

    def maybe(self, kind: type[Single]) -> Single | None:
        found = [payload for payload in self._payloads if isinstance(payload, kind)]
        if len(found) > 1:
            raise InvalidSyntax(f"{len(found)} {kind.__name__} payloads")
        return found[0] if found else None

    def one(self, kind: type[Single]) -> Single:
        payload = self.maybe(kind)
        if payload is None:
            raise InvalidSyntax(f"{kind.__name__} payload missing")
        return payload

    def require(self, *kinds: type[Payload]) -> None:
        """Raises InvalidSyntax unless each is there."""
        for kind in kinds:
            if not any(isinstance(payload, kind) for payload in self._payloads):
                raise InvalidSyntax(f"{kind.__name__} payload missing")

    def notifies(self) -> list[Notify]:
        return [payload for payload in self._payloads if isinstance(payload, Notify)]

    def notify(self, kind: int) -> Notify | None:
        """The first notification of this type."""
        return next((payload for payload in self.notifies() if payload.kind == kind), None)

    def error(self) -> Notify | None:
        """The first notification of an error."""
        return next((payload for payload in self.notifies() if payload.kind < FIRST_STATUS), None)

    def deletes(self) -> list[Delete]:
        return [payload for payload in self._payloads if isinstance(payload, Delete)]
