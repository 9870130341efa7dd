"""CREATE_CHILD_SA that rekeys the IKE_SA, from either side (RFC 7296 1.3.2, 2.8.2, 2.18, 2.25.2).

    HDR, SK {SA(IKE, new SPIi), Ni, KEi}  -->   <--  HDR, SK {SA(IKE, new SPIr), Nr, KEr}
                                                 or  HDR, SK {N(error)}

The new IKE_SA takes the old one's place (`IkeSa.give_way`): it inherits the children, the waiting requests
and the driver's handle, so for the driver nothing happens. Who began the rekey deletes the old IKE_SA, which
answers on until then. While a request of ours that changes CHILD_SAs is under way the peer has to try again
later; while we rekey the IKE_SA, so has a peer that asks for a CHILD_SA (2.25.2).

An IKE_SA whose place is taken answers a rekey by TEMPORARY_FAILURE. `ike.succession` tells what happens when
both sides rekey at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from protego_cli.crypto.algorithms import KeGroup
from protego_cli.crypto.proposal import IkeProposal, parse_ike
from protego_cli.crypto.shares import KeyShare
from protego_cli.errors import InvalidSyntax, NoProposalChosen, TemporaryFailure
from protego_cli.ike.context import NO_SPI
from protego_cli.ike.events import CLOSED_BY_PEER, IkeRekeyed
from protego_cli.ike.exchanges.alive import CheckAlive
from protego_cli.ike.exchanges.base import Exchange, ExchangeState, record
from protego_cli.ike.exchanges.delete import DeleteIke
from protego_cli.ike.keys import ike_keys, rekeyed_skeyseed
from protego_cli.ike.message import Payloads
from protego_cli.ike.negotiation import (
    IKE_SPI_LENGTH,
    answer_ke,
    choose,
    confirm,
    difference,
    propose,
    share_again,
    wanted_group,
)
from protego_cli.ike.record import Failure, Story, bid
from protego_cli.ike.succession import Rival, settle, standing
from protego_cli.wire.notifies import notify_name
from protego_cli.wire.payloads import ExchangeType, Ke, Nonce, Notify, Payload, Sa
from protego_cli.wire.proposals import Proposal

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


class RekeyIke(Exchange):
    """Our rekey of the IKE_SA whose SPI of ours is `old`. Without a token it is the engine's own, tried again
    when it fails.
    """

    type = ExchangeType.CREATE_CHILD_SA

    def __init__(self, token: int | None, old: bytes) -> None:
        super().__init__(token)
        self._old = old
        self._suites: tuple[IkeProposal, ...] = ()
        self._group: KeGroup | None = None
        self._share: KeyShare | None = None
        self._retried = False
        self._spi = NO_SPI
        self._nonce = b""

    def build(self, sa: IkeSa, now: float) -> Sequence[Payload] | None:
        if sa.local_spi != self._old:  # it waited, and the peer was quicker
            self._report(sa)
            return None
        if not self._retried:
            self._suites = tuple(sorted(sa.tunnel.ike, key=lambda suite: suite != sa.suite))
            self._group = self._suites[0].group
        if self._group is None:
            raise RuntimeError("an IKE proposal without a group")
        self._spi, self._nonce = sa.context.new_spi(), sa.context.new_nonce()
        self._share = KeyShare.generate(self._group, sa.context.random)
        return (
            Sa(propose(self._suites, self._spi)),
            Nonce(self._nonce),
            Ke(self._group.transform_id, self._share.public),
        )

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        error = payloads.error()
        if error is not None:
            self._refused(sa, error, now)
            return
        share, nonce, ke = self._share, payloads.one(Nonce).data, payloads.one(Ke)
        chosen = confirm(self._suites, payloads.one(Sa).proposals, IKE_SPI_LENGTH)
        if chosen is None or chosen.spi == NO_SPI or share is None or chosen.suite.group != share.group:
            raise InvalidSyntax("the peer chose an IKE proposal that was not offered")
        if ke.group != chosen.suite.group.transform_id:
            raise InvalidSyntax(f"no KE payload for the group {chosen.suite.group.keyword} that was chosen")
        nonces = (self._nonce, nonce)
        spis = (self._spi, chosen.spi)
        new = _successor(sa, chosen.suite, share.shared(ke.data), nonces, spis, now, initiator=True)
        if sa.rival is not None and (sa.heir is not None or min(nonces) < sa.rival.lowest):
            new.start(DeleteIke("redundant"), now)
            self._lose(sa, now)
            return
        rival = standing(sa)
        if rival is not None:
            rival.sa.give_way(new, now)
        sa.give_way(new, now)
        sa.start(DeleteIke("rekeyed"), now)
        self._report(sa)

    def fail(self, sa: IkeSa, detail: str, notify: int | None = None) -> None:
        if sa.heir is not None:
            self._report(sa)
        else:
            super().fail(sa, detail, notify)

    def _refused(self, sa: IkeSa, error: Notify, now: float) -> None:
        if sa.rival is not None:
            self._lose(sa, now)
            return
        group = wanted_group(error, self._suites)
        if group is not None and not self._retried:
            self._retried = True
            self._group = group
            sa.queue.appendleft(self)
            return
        if self.token is None:
            sa.put_off_rekey(now)
        offered = " | ".join(str(suite) for suite in self._suites)
        detail = f"the peer answered {notify_name(error.kind)}; ours: {offered}"
        story = Story(bid(sa.context.registry, self._suites))
        record(sa, story, self.type, initiator=True, failure=Failure(detail, error.kind, by_peer=True))
        self.fail(sa, detail, error.kind)

    def _lose(self, sa: IkeSa, now: float) -> None:
        """The peer's rekey counts. If it has deleted what came of that, it has deleted the IKE_SA."""
        settle(sa, now)
        if sa.heir is not None:
            self._report(sa)
        else:
            self.fail(sa, "the peer deleted it")
            sa.finish(CLOSED_BY_PEER, now)

    def _report(self, sa: IkeSa) -> None:
        """The old IKE_SA has its heir, by whichever side's rekey."""
        new = sa.home
        if new.handle is not None:
            new.context.emit(IkeRekeyed(self.token, new.handle, new.name, str(new.suite), new.initiator))
        else:
            super().fail(sa, "the IKE_SA is gone")

    def state(self) -> RekeyIkeState:
        share = self._share
        return RekeyIkeState(
            self.token,
            self._old,
            tuple(str(suite) for suite in self._suites),
            (share.group.keyword, share.seed) if share else None,
            self._retried,
            self._spi,
            self._nonce,
        )


class RekeyIkeState(ExchangeState, frozen=True, tag="rekey ike"):
    token: int | None
    old: bytes
    suites: tuple[str, ...]
    share: tuple[str, bytes] | None  # keyword of the group, seed; None before it is asked
    retried: bool
    spi: bytes
    nonce: bytes

    def restore(self, sa: IkeSa) -> RekeyIke:
        rekey = RekeyIke(self.token, self.old)
        rekey._suites = tuple(parse_ike(text, sa.context.registry) for text in self.suites)
        if self.share is not None:
            rekey._share = share_again(*self.share, rekey._suites)
            rekey._group = rekey._share.group
        rekey._retried, rekey._spi, rekey._nonce = self.retried, self.spi, self.nonce
        return rekey


def answer(sa: IkeSa, payloads: Payloads, now: float) -> None:
    """The peer rekeys the IKE_SA."""
    crossing = isinstance(sa.current, RekeyIke)
    if sa.rival is not None or not (crossing or sa.current is None or isinstance(sa.current, CheckAlive)):
        raise TemporaryFailure("an exchange of ours is under way")
    offered, ke, nonce = payloads.one(Sa).proposals, payloads.one(Ke), payloads.one(Nonce).data
    chosen = choose(sa.tunnel.ike, offered, IKE_SPI_LENGTH)
    if chosen is None:
        registry = sa.context.registry
        fault = NoProposalChosen(difference(sa.tunnel.ike, offered, registry))
        failure = Failure(str(fault), fault.notify, by_peer=False)
        story = Story(bid(registry, sa.tunnel.ike, offered))
        record(sa, story, RekeyIke.type, initiator=False, failure=failure)
        raise fault
    if chosen.spi == NO_SPI:
        raise InvalidSyntax("an IKE SPI of zero")
    suite = chosen.suite
    ours, shared = answer_ke(suite.group, ke, sa.context.random)
    nonces = (nonce, sa.context.new_nonce())
    spis = (chosen.spi, sa.context.new_spi())
    new = _successor(sa, suite, shared, nonces, spis, now, initiator=False)
    answered = Proposal(chosen.answer.number, chosen.answer.protocol, new.spi_r, chosen.answer.transforms)
    sa.respond((Sa((answered,)), Nonce(nonces[1]), ours))
    if crossing:
        sa.rival = Rival(new, min(nonces))
        new.contests = sa
        return
    sa.give_way(new, now)
    if new.handle is not None:
        sa.context.emit(IkeRekeyed(None, new.handle, new.name, str(new.suite), new.initiator))


def _successor(
    sa: IkeSa,
    suite: IkeProposal,
    shared: bytes,
    nonces: tuple[bytes, bytes],
    spis: tuple[bytes, bytes],
    now: float,
    *,
    initiator: bool,
) -> IkeSa:
    """The new IKE_SA of a rekey that we began if `initiator`."""
    seed = rekeyed_skeyseed(sa.suite.prf, sa.keys.d, *nonces, shared)
    keys = ike_keys(suite, seed, nonces, spis)
    return sa.successor(*spis, suite, keys, now, initiator=initiator)
