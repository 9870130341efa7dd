"""Records that a node cannot act on, such as an SA whose suite no plugin there provides."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from protego_cli.control.channel.messages import AnyRecord, GetEvents, Sa
from protego_cli.errors import Refused
from tests.support.gmn_world import TUNNEL, World, world

REASON = "no plugin here provides esp cipher 'rot13'"
OTHER = "tenant1/hq"


def lacking(w: World, gpn: str) -> None:
    """This GPN takes no SA of one of the tunnels."""

    def refuse(name: str, record: AnyRecord) -> str | None:
        return REASON if name == gpn and isinstance(record, Sa) and record.tunnel == TUNNEL else None

    w.nodes.refuse = refuse


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
        (event,) = [each for each in w.sad.events.read(GetEvents()).events if each.kind == "records refused"]
        assert (event.node, event.severity, event.details["records"]) == ("gpn-1", "error", 1)


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
