"""Requests the engine never makes by itself: any payloads at all."""

from __future__ import annotations

from protego_cli.ike.exchanges.base import Exchange, ExchangeState
from protego_cli.ike.message import Payloads
from protego_cli.ike.sa import IkeSa
from protego_cli.wire.payloads import ExchangeType, Payload
from tests.support.network import Network, Site


class Ask(Exchange):
    """Any request at all, from an authentic peer."""

    def __init__(self, kind: ExchangeType, *payloads: Payload) -> None:
        super().__init__(None)
        self.type = kind  # type: ignore[misc]  # a test's exchange has the type it is given
        self.payloads = payloads
        self.answer: Payloads | None = None

    def build(self, sa: IkeSa, now: float) -> tuple[Payload, ...]:
        return self.payloads

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        self.answer = payloads

    def state(self) -> ExchangeState:
        raise NotImplementedError("a peer that asks anything is not stored")


def ask(network: Network, site: Site, kind: ExchangeType, *payloads: Payload) -> Payloads:
    """What the other side answers to this."""
    exchange = Ask(kind, *payloads)
    site.context.by_handle[site.ike].start(exchange, site.now)
    site.settle()
    network.run(lambda: exchange.answer is not None)
    assert exchange.answer is not None
    return exchange.answer


def error(payloads: Payloads) -> int | None:
    found = payloads.error()
    return found.kind if found else None
