"""What an operator does to a tunnel, with a real peer engine at the other end."""

from __future__ import annotations

import io

import msgspec
import pytest
import trio
from rich.console import Console
from trio.testing import MockClock

from protego_cli.cli.tunnel_view import detail_view
from protego_cli.config.model import TunnelConfig
from protego_cli.control.channel.message import Reply
from protego_cli.control.channel.operator_messages import (
    Acted,
    DownTunnel,
    GetEvents,
    RekeyTunnel,
    ShowTunnel,
    TunnelDetail,
    UpTunnel,
)
from protego_cli.control.operating import commands
from protego_cli.errors import NoAdditionalSas, NotFound, ProtegoError, Refused, TemporaryFailure
from protego_cli.ike.events import ExchangeFailed
from tests.support.gmn_world import TUNNEL, World, world
from tests.support.stores import MemoryStore


async def act(w: World, request: UpTunnel | DownTunnel | RekeyTunnel) -> Acted:
    reply = await w.operations.answer(request)
    assert isinstance(reply, Acted)
    return reply


async def kinds(w: World) -> list[str]:
    return [event.kind for event in w.sad.events.read(GetEvents(tunnel=TUNNEL)).events]


async def refusal(w: World, request: UpTunnel | DownTunnel | RekeyTunnel | ShowTunnel) -> ProtegoError:
    with pytest.raises(ProtegoError) as caught:
        await w.operations.answer(request)
    return caught.value


async def test_up_dials_a_tunnel_that_waits(autojump_clock: MockClock) -> None:
    async with world() as w:
        acted = await act(w, UpTunnel(TUNNEL))
        assert (acted.tunnel.state, acted.note) == ("up", None)
        assert 0 < acted.seconds < 1
        assert w.is_up()
        assert (await act(w, UpTunnel(TUNNEL))).note == "it is up already"
        await w.settle()
        w.check_clean()


async def test_up_says_why_the_peer_is_not_reached(autojump_clock: MockClock) -> None:
    async with world(retransmit_tries=2) as w:
        w.peer.deaf = True
        error = await refusal(w, UpTunnel(TUNNEL))
        assert isinstance(error, Refused)
        assert "does not answer" in str(error)
        status = await w.tunnel_status()
        assert (status.state, status.error) == ("down", str(error))
        assert await kinds(w) == ["tunnel not up"]


@pytest.mark.parametrize("missing", ["gin", "gpn"])
async def test_up_without_a_way_to_the_peer(autojump_clock: MockClock, missing: str) -> None:
    async with world() as w:
        for name in [name for name in w.nodes.all if name.startswith(missing)]:
            await w.nodes.stop(name)
        assert f"no {missing.upper()} is connected" in str(await refusal(w, UpTunnel(TUNNEL)))


async def test_up_of_a_tunnel_whose_peer_may_be_anywhere(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.tunnel.config = msgspec.structs.replace(w.tunnel.config, peer=None)
        w.watching = False  # the watch finds peers by their tunnels' addresses
        await act(w, DownTunnel(TUNNEL))
        acted = await act(w, UpTunnel(TUNNEL))
        assert "its peer has to dial" in str(acted.note)
        assert not acted.tunnel.held
        await w.up()


async def test_up_waits_for_what_is_under_way(autojump_clock: MockClock) -> None:
    async with world(start="auto") as w:
        w.tasks.start_soon(w.keeper.run)
        await w.until(lambda: w.tunnel.dialling)
        assert (await act(w, UpTunnel(TUNNEL))).tunnel.state == "up"
        assert len(w.tunnel.ikes) == 1


async def test_down_stays_down_until_up(autojump_clock: MockClock) -> None:
    async with world(start="auto") as w:
        await w.up(by="gateway")
        acted = await act(w, DownTunnel(TUNNEL))
        assert (acted.tunnel.state, acted.tunnel.held, acted.note) == ("down", True, None)
        assert not w.peer.ikes
        await w.until(lambda: not w.on("gpn-1", "rule"), limit=0.1)
        await trio.sleep(300)  # the keeper would have dialled
        assert not w.tunnel.ikes

        token = w.peer.dial()
        await w.until(lambda: any(isinstance(event, ExchangeFailed) for event in w.peer.events))
        failed = next(event for event in w.peer.events if isinstance(event, ExchangeFailed))
        assert (failed.token, failed.notify) == (token, 24)  # AUTHENTICATION_FAILED
        assert not w.peer.ikes
        await w.until(lambda: w.tunnel.error)
        assert "down by operator" in str(w.tunnel.error)
        assert (await act(w, DownTunnel(TUNNEL))).note == "it was down by operator already"

        acted = await act(w, UpTunnel(TUNNEL))
        assert (acted.tunnel.state, acted.tunnel.held, acted.tunnel.error) == ("up", False, None)
        told = await kinds(w)
        assert told.count("tunnel held") == told.count("tunnel released") == 1
        await w.settle()
        w.check_clean()


async def test_a_tunnel_that_is_dialled_while_it_is_taken_down_does_not_come_up(
    autojump_clock: MockClock,
) -> None:
    async with world(start="auto") as w:
        w.tasks.start_soon(w.keeper.run)
        await w.until(lambda: w.tunnel.dialling)
        w.watching = False  # what the peer sends before it hears of the end is lost, and meant to be
        await act(w, DownTunnel(TUNNEL))
        await w.until(lambda: not w.tunnel.dialling)
        await w.until(lambda: not w.peer.ikes)
        await trio.sleep(60)
        assert w.tunnel.sealing is None
        assert not w.tunnel.ikes


async def test_a_peer_that_does_not_confirm_is_left(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        w.peer.deaf = True
        w.watching = False
        begun = trio.current_time()
        acted = await act(w, DownTunnel(TUNNEL))
        assert commands.CLOSING <= trio.current_time() - begun < commands.CLOSING + 1
        assert "has not confirmed" in str(acted.note)
        assert acted.tunnel.state == "down"
        assert not w.on("gpn-1", "rule")
        assert not w.on("gen-1", "route")
        await w.until(lambda: not w.tunnel.ikes, limit=600)
        assert not w.on("gpn-1", "sa")


async def test_a_gateway_that_restarts_goes_on_holding(autojump_clock: MockClock) -> None:
    async with world(start="auto", store=MemoryStore({b"held/" + TUNNEL.encode(): b"\xc3"})) as w:
        w.tasks.start_soon(w.keeper.run)
        w.peer.dial()
        await w.until(lambda: any(isinstance(event, ExchangeFailed) for event in w.peer.events))
        await trio.sleep(60)
        status = await w.tunnel_status()
        assert (status.state, status.held) == ("down", True)


async def test_rekey_renews_the_sa_where_it_is(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        before = await w.tunnel_status()
        acted = await act(w, RekeyTunnel(TUNNEL))
        assert acted.tunnel.spi_in != before.spi_in
        assert acted.tunnel.gpn == before.gpn
        assert "rekeyed" in await kinds(w)
        await w.settle(10)
        w.check_clean()


async def test_rekey_of_the_ike_sa(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        before = await w.operations.answer(ShowTunnel(TUNNEL))
        acted = await act(w, RekeyTunnel(TUNNEL, ike=True))
        after = await w.operations.answer(ShowTunnel(TUNNEL))
        assert isinstance(before, TunnelDetail)
        assert isinstance(after, TunnelDetail)
        assert acted.tunnel.spi_in == before.status.spi_in
        assert after.ike_sas[0].spi_i != before.ike_sas[0].spi_i
        assert "IKE_SA rekeyed" in await kinds(w)


async def test_a_rekey_of_the_ike_sa_waits_for_what_the_peer_is_at(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        w.peer.create()  # crosses: each side has the other try again later
        await act(w, RekeyTunnel(TUNNEL, ike=True))
        failed = [event for event in w.peer.events if isinstance(event, ExchangeFailed)]
        assert [event.notify for event in failed] == [TemporaryFailure.notify]
        assert (await kinds(w)).count("IKE_SA rekeyed") == 1


async def test_a_rekey_that_the_peer_refuses_is_told(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        w.peer.refuse = lambda: NoAdditionalSas("no more")
        assert "NO_ADDITIONAL_SAS" in str(await refusal(w, RekeyTunnel(TUNNEL)))
        assert (await kinds(w))[-1] == "rekey failed"
        assert (await w.tunnel_status()).state == "up"


@pytest.mark.parametrize("ike", [False, True])
async def test_what_is_not_up_is_not_rekeyed(autojump_clock: MockClock, ike: bool) -> None:
    async with world() as w:
        assert "is not up" in str(await refusal(w, RekeyTunnel(TUNNEL, ike)))


@pytest.mark.parametrize("request_", [UpTunnel, DownTunnel, RekeyTunnel, ShowTunnel])
async def test_a_name_that_is_none(
    autojump_clock: MockClock, request_: type[UpTunnel | DownTunnel | RekeyTunnel | ShowTunnel]
) -> None:
    async with world() as w:
        error = await refusal(w, request_("acme/hk"))
        assert isinstance(error, NotFound)
        assert str(error) == "there is no tunnel 'acme/hk'; did you mean acme/hq?"
        assert not list(w.held)


async def test_show_tells_all_but_secrets(autojump_clock: MockClock) -> None:
    async with world() as w:
        reply: Reply = await w.operations.answer(ShowTunnel(TUNNEL))
        assert isinstance(reply, TunnelDetail)
        assert (reply.ike_sas, reply.child_sas) == ((), ())
        await w.up()
        await w.migrations.migrate(TUNNEL, "gpn-2")
        reply = await w.operations.answer(ShowTunnel(TUNNEL))
        assert isinstance(reply, TunnelDetail)
        assert reply.config["local_ts"] == ["10.1.0.0/24"]
        assert reply.config["auth"] == "psk, psk"
        told = {"tenant", "name"} | reply.config.keys()  # a key of the file that is not shown is not known
        assert told == set(TunnelConfig.__struct_fields__)
        assert reply.config["limit"] is None
        console = Console(file=io.StringIO(), width=80)
        with console.capture() as shown:
            console.print(detail_view(reply, 0.0))
        assert "None" not in shown.get()
        (ike,) = reply.ike_sas
        assert (ike.initiator, ike.peer, len(ike.spi_i)) == ("peer", "198.51.100.7:4500", 16)
        assert ike.rekey is not None
        assert ike.expires is not None
        assert ike.heard < ike.rekey < ike.expires
        old, new = reply.child_sas
        assert (old.state, old.gpn, new.state, new.gpn) == ("retiring", "gpn-1", "sealing", "gpn-2")
        assert (new.seal_lo, new.seal_hi, new.sealed) == (1, 1 << 31, 0)
        assert new.spi_in == reply.status.spi_in
        keys = [placed.child for placed in w.tunnel.sas.values()]
        assert not any(key.hex() in repr(reply) for child in keys for key in (child.key_in, child.key_out))
