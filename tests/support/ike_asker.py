"""Requests the engine never makes by itself: any payloads at all, and the rekey of an IKE_SA as initiator."""

from __future__ import annotations

from collections.abc import Sequence

from protego_cli.ike.exchanges.base import Exchange
from protego_cli.ike.exchanges.delete import DeleteIke
from protego_cli.ike.keys import ike_keys, rekeyed_skeyseed
from protego_cli.ike.message import Payloads
from protego_cli.ike.negotiation import propose
from protego_cli.ike.sa import IkeSa
from protego_cli.wire.payloads import ExchangeType, Ke, Nonce, Payload, Sa
from tests.support.network import Network, Site


class RekeyIke(Exchange):
    """CREATE_CHILD_SA for the IKE_SA itself; `error` is the NOTIFY that refused it."""

    type = ExchangeType.CREATE_CHILD_SA

    def __init__(self) -> None:
        super().__init__(None)
        self.error: int | None = None
        self.done = False

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload]:
        group = sa.suite.group
        self.spi = sa.context.new_spi()
        self.nonce = sa.context.new_nonce()
        self.private = group.generate(sa.context.random)
        return (
            Sa(propose((sa.suite,), self.spi)),
            Nonce(self.nonce),
            Ke(group.transform_id, self.private.public),
        )

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        error = payloads.error()
        self.done = True
        if error is not None:
            self.error = error.kind
            return
        nonces = (self.nonce, payloads.one(Nonce).data)
        spi_r = payloads.one(Sa).proposals[0].spi
        shared = self.private.shared(payloads.one(Ke).data)
        seed = rekeyed_skeyseed(sa.suite.prf, sa.keys.d, *nonces, shared)
        new = IkeSa(sa.context, sa.path, self.spi, spi_r, initiator=True)
        new.tunnel = sa.tunnel
        new.secure(sa.suite, ike_keys(sa.suite.prf, sa.suite.encryption, seed, nonces, (self.spi, spi_r)))
        new.inherit(sa, now)
        sa.queue.append(DeleteIke("rekeyed"))


def rekey_ike(site: Site) -> RekeyIke:
    """Start it on the site's only IKE_SA."""
    sa = site.context.by_handle[site.ike]
    exchange = RekeyIke()
    sa.start(exchange, site.now)
    site.settle()
    return exchange


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
