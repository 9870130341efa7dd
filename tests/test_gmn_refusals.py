"""Records that a node cannot act on, such as an SA whose suite no plugin there provides."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from protego_cli.control.channel.desired_records import AnyRecord, Sa
from protego_cli.control.channel.operator_messages import Event, GetEvents
from protego_cli.errors import Refused
from tests.support.gmn_world import TUNNEL, World, world

REASON = "no plugin here provides esp cipher 'rot13'"
OTHER = "tenant1/hq"


def lacking(w: World, *gpns: str) -> None:
    """These GPNs take no SA of one of the tunnels."""

    def refuse(name: str, record: AnyRecord) -> str | None:
        return REASON if name in gpns and isinstance(record, Sa) and record.tunnel == TUNNEL else None

    w.nodes.refuse = refuse


def events(w: World) -> tuple[Event, ...]:
    return w.sad.events.read(GetEvents()).events


async def test_a_gpn_that_comes_back_without_a_plugin_serves_the_rest(autojump_clock: MockClock) -> None:
    async with world(tunnels=2) as w:
        await w.up()
        await w.settle(1.0)
        for tunnel in w.sad.tunnels.values():
            if tunnel.seat != "gpn-1":
                await w.migrations.migrate(tunnel.id, "gpn-1")
        w.interrupted.add(TUNNEL)
        for peer in w.peers.values():
            peer.deaf = True  # rekeys are another matter
        lacking(w, "gpn-1")
        await w.nodes.stop("gpn-1")
        await w.nodes.start("gpn-1")
        status = await w.status()
        (node,) = [node for node in status.nodes if node.name == "gpn-1"]
        assert (node.state, node.refused, node.reason) == ("up", 1, REASON)
        states = {tunnel.id: (tunnel.state, tunnel.error) for tunnel in status.tunnels}
        assert states == {TUNNEL: ("down", f"gpn-1 refuses its SA: {REASON}"), OTHER: ("up", None)}
        (event,) = [each for each in events(w) if each.kind == "records refused"]
        assert (event.node, event.severity, event.details["records"]) == ("gpn-1", "error", 1)
        for peer in w.peers.values():
            peer.deaf = False
        await w.until(lambda: w.tunnel.seat != "gpn-1" and w.is_up(), 60.0)  # by the rekey that is due
        await w.until(lambda: all(tunnel.settled for tunnel in w.sad.tunnels.values()))
        await w.settle(w.cluster.ike.linger + 1)
        status = await w.status()
        assert {tunnel.id: tunnel.state for tunnel in status.tunnels} == {TUNNEL: "up", OTHER: "up"}
        assert not any(node.refused for node in status.nodes)
        assert w.sad.tunnels[OTHER].seat == "gpn-1"


async def test_a_peer_that_dials_gets_a_gpn_that_takes_its_sa(autojump_clock: MockClock) -> None:
    async with world() as w:
        lacking(w, "gpn-1")  # which is asked first
        w.peer.dial()
        await w.until(w.is_up)
        assert w.tunnel.seat != "gpn-1"
        await w.settle(1.0)
        assert not w.nodes.all["gpn-1"].refused


async def test_a_peer_whose_sa_no_gpn_takes_is_told_so(autojump_clock: MockClock) -> None:
    async with world() as w:
        lacking(w, "gpn-1", "gpn-2", "gpn-3")
        w.peer.dial()
        await w.until(lambda: any(event.kind == "request rejected" for event in events(w)))
        await w.until(lambda: not w.peer.ikes)
        assert not w.sad.all()


async def test_a_gpn_that_refuses_one_tunnel_takes_the_other(autojump_clock: MockClock) -> None:
    async with world(tunnels=2) as w:
        await w.up()
        await w.settle(1.0)
        lacking(w, "gpn-3")
        w.watching = False  # what comes on the new SPI is lost until the SA lies elsewhere
        with pytest.raises(Refused, match="gpn-3 is gone or refuses the SA"):
            await w.migrations.migrate(TUNNEL, "gpn-3")
        assert w.tunnel.seat != "gpn-3"
        await w.migrations.migrate(OTHER, "gpn-3")
        assert w.sad.tunnels[OTHER].seat == "gpn-3"
        assert w.is_up()
