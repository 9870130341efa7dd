"""ESP without UDP at the GMN: what nodes hear, over rekeys, migrations and lives; when it must not be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
from msgspec import structs
from trio.testing import MockClock

from protego_cli.config.model import Cluster
from protego_cli.control.channel.desired_records import Sa, Steer
from protego_cli.control.channel.operator_messages import (
    DownTunnel,
    GetEvents,
    ShowTunnel,
    TunnelDetail,
    UpTunnel,
)
from tests.support.gmn_cluster import make_cluster
from tests.support.gmn_reload import applied, edited
from tests.support.gmn_world import TUNNEL, World, world

By = Literal["peer", "gateway"]
BY: tuple[By, ...] = ("peer", "gateway")


def auto(by: By = "peer") -> Cluster:
    """Whose tunnels may do without UDP."""
    made = make_cluster(start="auto" if by == "gateway" else "wait")
    tenants = [
        structs.replace(
            tenant, tunnels=tuple(structs.replace(each, encapsulation="auto") for each in tenant.tunnels)
        )
        for tenant in made.tenants
    ]
    return structs.replace(made, tenants=tuple(tenants))


@asynccontextmanager
async def raw_world(by: By = "peer") -> AsyncIterator[World]:
    async with world(cluster=auto(by)) as w:
        yield w


def ports(w: World) -> set[int]:
    """Where nodes believe that the tunnel's ESP comes from and goes to."""
    spis = set(w.tunnel.sas)
    held = [record for node in w.nodes.all.values() for record in node.held.values()]
    sas = {record.peer_port for record in held if isinstance(record, Sa)}
    return sas | {record.peer_port for record in held if isinstance(record, Steer) and record.spi in spis}


@pytest.mark.parametrize("by", BY)
async def test_gins_and_the_gpn_hear_of_a_peer_without_port(autojump_clock: MockClock, by: By) -> None:
    async with raw_world(by) as w:
        await w.up(by=by)
        assert ports(w) == {0}
        detail = await w.operations.answer(ShowTunnel(TUNNEL))
        assert isinstance(detail, TunnelDetail)
        assert not detail.ike_sas[0].encapsulated
        assert detail.child_sas[0].peer == w.peer.config.peer


async def test_rekeys_migrations_and_another_life_keep_the_form(autojump_clock: MockClock) -> None:
    async with raw_world() as w:
        await w.up()
        here = w.tunnel.sealing
        assert here is not None
        w.peer.rekey()
        await w.until(lambda: w.tunnel.sealing is not here and w.tunnel.settled)
        w.nodes.lacking = {"gin-1"}  # what was agreed on stands all the same
        for to in ("gpn-2", "gpn-3"):
            await w.migrations.migrate(TUNNEL, to)
            assert ports(w) == {0}
        w.kill_gmn()
        await w.gmn_returns()
        await w.settle(2)  # its nodes are back by then
        await w.migrations.migrate(TUNNEL, "gpn-1")
        await w.settle(10)
        assert ports(w) == {0}
        w.check_clean()


@pytest.mark.parametrize("by", BY)
async def test_while_a_gin_cannot_a_new_ike_sa_has_udp(autojump_clock: MockClock, by: By) -> None:
    async with raw_world(by) as w:
        w.nodes.lacking = {"gin-2"}
        await w.up(by=by)
        assert ports(w) == {4500}


async def test_another_form_comes_with_the_next_ike_sa(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        peer = edited(w, encapsulation="auto")
        assert await applied(w) == ["tunnel acme/hq changed now: done"]
        w.peer.configure(peer)
        await w.migrations.migrate(TUNNEL, "gpn-2")
        assert ports(w) == {4500}
        await w.operations.answer(DownTunnel(TUNNEL))
        await w.operations.answer(UpTunnel(TUNNEL))
        await w.settle(10)
        assert ports(w) == {0}


async def test_a_gin_that_comes_and_cannot_is_an_event(autojump_clock: MockClock) -> None:
    async with raw_world() as w:
        await w.up()
        w.nodes.kill("gin-2")
        w.nodes.lacking = {"gin-2"}
        await w.nodes.start("gin-2")
        await w.settle()
        (event,) = [each for each in w.sad.events.read(GetEvents()).events if each.kind == "raw ESP missing"]
        assert event.node == "gin-2"
        assert event.details == {"tunnels": 1}
