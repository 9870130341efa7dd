"""CREATE_CHILD_SA by which the peer rekeys the IKE_SA (RFC 7296 1.3.2, 2.18, 2.25.2).

    HDR, SK {SA(IKE, new SPIi), Ni, KEi}  -->   <--  HDR, SK {SA(IKE, new SPIr), Nr, KEr}

The new IKE_SA inherits the children, the waiting requests and the driver's handle: for the driver nothing
happens. The old one answers on until the peer deletes it. While a request of ours that changes CHILD_SAs is
under way the peer has to try again later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protego_cli.errors import InvalidKePayload, InvalidSyntax, NoProposalChosen, TemporaryFailure
from protego_cli.ike.context import NO_SPI
from protego_cli.ike.exchanges.alive import CheckAlive
from protego_cli.ike.keys import ike_keys, rekeyed_skeyseed
from protego_cli.ike.message import Payloads
from protego_cli.ike.negotiation import IKE_SPI_LENGTH, choose, difference
from protego_cli.ike.transitions import Trigger
from protego_cli.wire.payloads import Ke, Nonce, Sa
from protego_cli.wire.proposals import Proposal

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa


def answer(sa: IkeSa, payloads: Payloads, now: float) -> None:
    if sa.current is not None and not isinstance(sa.current, CheckAlive):
        raise TemporaryFailure("an exchange of ours is under way")
    offered, ke, nonce = payloads.one(Sa).proposals, payloads.one(Ke), payloads.one(Nonce).data
    chosen = choose(sa.tunnel.ike, offered, IKE_SPI_LENGTH)
    if chosen is None:
        raise NoProposalChosen(difference(sa.tunnel.ike, offered, sa.context.registry))
    if chosen.spi == NO_SPI:
        raise InvalidSyntax("an IKE SPI of zero")
    suite = chosen.suite
    if ke.group != suite.group.transform_id:
        wanted = suite.group.transform_id.to_bytes(2, "big")
        raise InvalidKePayload(f"{suite.group.keyword} was agreed on", data=wanted)
    private = suite.group.generate(sa.context.random)
    mine = sa.context.new_nonce()
    seed = rekeyed_skeyseed(sa.suite.prf, sa.keys.d, nonce, mine, private.shared(ke.data))

    new = sa.successor(chosen.spi, sa.context.new_spi())
    keys = ike_keys(suite.prf, suite.encryption, seed, (nonce, mine), (new.spi_i, new.spi_r))
    new.secure(suite, keys)
    answered = Proposal(chosen.answer.number, chosen.answer.protocol, new.spi_r, chosen.answer.transforms)
    sa.respond((Sa((answered,)), Nonce(mine), Ke(suite.group.transform_id, private.public)))
    new.inherit(sa, now)
    sa.move(Trigger.REPLACED)
    sa.expires = now + sa.context.settings.half_open_timeout
    new.pump(now)
