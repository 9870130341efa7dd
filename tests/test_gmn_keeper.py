"""Tunnels that the gateway dials, and dials again; what status says of them when they go down."""

from __future__ import annotations

from trio.testing import MockClock

from protego_cli.control.channel.operator_messages import GetEvents
from protego_cli.control.sas.tunnel import Placed
from protego_cli.errors import NoAdditionalSas
from protego_cli.wire.payloads import ExchangeType
from tests.support.gmn_world import TUNNEL, World, world


def sealing(w: World) -> Placed:
    placed = w.tunnel.sealing
    assert placed is not None
    return placed


async def test_the_gateway_dials_parks_first_and_routes_last(autojump_clock: MockClock) -> None:
    async with world(start="auto", delay=(0.0001, 0.02)) as w:
        await w.up(by="gateway")
        spi = sealing(w).spi
        w.ordered(
            ("acknowledged", "gpn-1", ("park", spi)),
            ("wire", "gmn", "IKE_SA_INIT", False),
            ("wire", "peer", "IKE_AUTH", True),
            ("acknowledged", "gpn-1", ("sa", spi), ("rule", TUNNEL)),
            ("sent", "gen-1", ("route", TUNNEL)),
        )
        w.ordered(("acknowledged", "gin-2", ("steer", spi)), ("wire", "gmn", "IKE_SA_INIT", False))
        await w.settle(1)
        w.check_clean()


async def test_the_gateway_dials_until_the_peer_is_there(autojump_clock: MockClock) -> None:
    async with world(start="auto", retransmit_tries=2) as w:
        w.peer.deaf = True
        w.tasks.start_soon(w.keeper.run)
        await w.until(lambda: w.tunnel.error, limit=60)
        assert (await w.tunnel_status()).state in ("down", "connecting")
        w.peer.deaf = False
        await w.until(w.is_up, limit=60)
        await w.settle(5)
        w.check_clean()


async def test_what_the_peer_brought_up_is_up_though_we_dialled_in_vain(
    autojump_clock: MockClock,
) -> None:
    async with world(start="auto", retransmit_tries=2) as w:
        init = "gmn", ExchangeType.IKE_SA_INIT, False
        w.lost = lambda *message: message == init
        w.tasks.start_soon(w.keeper.run)
        await w.until(lambda: w.tunnel.dialling)
        await w.up()
        assert w.tunnel.dialling
        await w.until(lambda: not w.tunnel.dialling)
        assert (await w.tunnel_status()).error is None
        assert "tunnel not up" not in {event.kind for event in w.sad.events.read(GetEvents()).events}


async def test_status_says_why_a_tunnel_went_down(autojump_clock: MockClock) -> None:
    async with world(liveness=5.0) as w:
        await w.up()
        w.peer.deaf = True
        await w.until(lambda: not w.is_up(), limit=120)
        assert (await w.tunnel_status()).error == "the peer does not answer"
        w.peer.deaf = False
        w.peer.opens.clear()
        await w.up()
        assert (await w.tunnel_status()).error is None
        w.peer.close()
        await w.until(lambda: not w.is_up())
        assert (await w.tunnel_status()).error is None, "that is what the peer wanted"


async def test_the_gateway_dials_again_when_the_peer_has_closed(autojump_clock: MockClock) -> None:
    async with world(start="auto") as w:
        await w.up(by="gateway")
        first = sealing(w)
        w.watching = False  # the routes of what went down go while the gateway dials already
        w.peer.close()
        await w.until(lambda: w.tunnel.sealing not in (None, first))
        await w.settle(0.1)
        w.watching = True
        await w.settle(10)
        w.check_clean()


async def test_a_peer_that_dials_first_is_as_good(autojump_clock: MockClock) -> None:
    async with world(start="auto", nodes=False) as w:
        w.tasks.start_soon(w.keeper.run)
        await w.nodes.start("gin-1")
        w.peer.dial()
        await w.settle(1)
        await w.nodes.start("gpn-1")
        await w.until(w.is_up)
        await w.settle(20)
        assert ("wire", "gmn", "IKE_SA_INIT", False) not in w.log
        assert len(w.tunnel.ikes) == 1


async def test_when_both_dial_at_once_one_ike_sa_stays(autojump_clock: MockClock) -> None:
    async with world(start="auto") as w:
        w.watching = False  # the first SA of a tunnel seals before its peer has it
        w.peer.dial()
        w.tasks.start_soon(w.keeper.run)
        await w.until(w.is_up)
        await w.settle(20)
        w.watching = True
        assert len(w.tunnel.ikes) == 1
        assert len(w.peer.opens) == 1
        w.check_clean()


async def test_an_ike_sa_whose_child_sa_the_peer_refused_is_closed(autojump_clock: MockClock) -> None:
    async with world(start="auto") as w:
        w.peer.refuse = lambda: NoAdditionalSas("none")
        w.tasks.start_soon(w.keeper.run)
        await w.until(lambda: w.tunnel.error)
        await w.until(lambda: not w.tunnel.ikes)
        assert "NO_ADDITIONAL_SAS" in str(w.tunnel.error)
        assert not w.on("gpn-1", "park")
        assert not w.on("gin-1", "steer")


async def test_the_peers_silence_takes_the_tunnel_down_and_the_gateway_dials(
    autojump_clock: MockClock,
) -> None:
    async with world(start="auto", liveness=5.0, retransmit_tries=2) as w:
        await w.up(by="gateway")
        first = sealing(w)
        w.watching = False
        w.lost = lambda sender, exchange, response: exchange == ExchangeType.INFORMATIONAL
        await w.until(lambda: w.tunnel.sealing not in (None, first))
