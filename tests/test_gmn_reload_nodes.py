"""The cluster file read again: nodes that come, change and go, and settings."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from protego_cli.config.model import Node
from protego_cli.errors import Refused
from tests.support.gmn_cluster import make_tenant
from tests.support.gmn_reload import (
    OTHER,
    applied,
    footprint,
    nothing_sent,
    reload,
    sealing,
    told,
    with_nodes,
    with_settings,
    with_tenants,
    without_node,
)
from tests.support.gmn_world import TUNNEL, world


async def test_a_new_gpn_takes_a_tunnel(autojump_clock: MockClock) -> None:
    async with world(tunnels=2) as w:
        await w.up()
        before = footprint(w, OTHER)
        with_nodes(w, Node("gpn-4", "gpn", "10.0.1.40"))
        assert await applied(w) == ["node gpn-4 added now: done"]
        with pytest.raises(Refused, match="gpn-4 is down"):
            await w.migrations.migrate(TUNNEL, "gpn-4")
        await w.nodes.start("gpn-4")
        await w.migrations.migrate(TUNNEL, "gpn-4")
        await w.settle(10)
        assert sealing(w).gpn == "gpn-4"
        assert footprint(w, OTHER) == before
        w.check_clean()


async def test_a_new_gin_and_gen_hold_what_the_others_do(autojump_clock: MockClock) -> None:
    async with world(tunnels=3) as w:
        await w.up()
        with_nodes(w, Node("gin-3", "gin", "10.0.1.50"), Node("gen-3", "gen", "10.0.1.51"))
        await applied(w)
        await w.nodes.start("gin-3")
        await w.nodes.start("gen-3")
        assert w.nodes.all["gin-3"].held == w.nodes.all["gin-1"].held
        assert w.nodes.all["gen-3"].held == w.nodes.all["gen-1"].held
        await w.migrations.migrate(TUNNEL, "gpn-3" if sealing(w).gpn != "gpn-3" else "gpn-2")
        await w.settle(10)
        w.check_clean()


async def test_a_new_gin_carries_ike(autojump_clock: MockClock) -> None:
    async with world() as w:
        with_nodes(w, Node("gin-3", "gin", "10.0.1.50"))
        await applied(w)
        await w.nodes.start("gin-3")
        await w.nodes.stop("gin-1")
        await w.nodes.stop("gin-2")
        await w.up()
        assert w.counters["gmn_drop_envelope"] == 0


async def test_what_goes_to_a_gin_that_left_has_no_way(autojump_clock: MockClock) -> None:
    async with world(gins=1, liveness=5.0) as w:
        await w.up()
        with_nodes(w, Node("gin-2", "gin", "10.0.1.50"))
        without_node(w, "gin-1")
        await applied(w)
        await w.settle(6)  # the peer is asked whether it lives
        assert w.counters["gmn_drop_no_gin"] > 0


async def test_a_gin_and_a_gen_leave(autojump_clock: MockClock) -> None:
    async with world(tunnels=2) as w:
        await w.up()
        before = [placed.spi for _, placed in w.sad.all()]
        without_node(w, "gin-1")
        without_node(w, "gen-1")
        assert await applied(w) == ["node gin-1 removed now: done", "node gen-1 removed now: done"]
        assert [placed.spi for _, placed in w.sad.all()] == before
        gpn = "gpn-3" if sealing(w).gpn != "gpn-3" else "gpn-2"
        await w.migrations.migrate(TUNNEL, gpn)
        await w.settle(10)
        w.check_clean()


async def test_a_gpn_leaves_once_it_is_empty(autojump_clock: MockClock) -> None:
    async with world(tunnels=2, linger=5.0) as w:
        await w.up()
        gpn = sealing(w).gpn
        without_node(w, gpn)
        w.log.clear()
        found = await reload(w)
        assert not found.applied
        (change,) = found.changes
        assert (change.outcome, change.reason) == (
            "refused", f"it holds tunnels (1: {TUNNEL}): `protego drain {gpn}` first",
        )  # fmt: skip
        assert nothing_sent(w)
        await w.migrations.migrate(TUNNEL, "gpn-3")
        (change,) = (await reload(w)).changes
        assert change.reason == "the last SAs that it held still linger: ask again in some seconds"
        await w.settle(6)
        assert await applied(w) == [f"node {gpn} removed now: done"]
        assert gpn not in w.nodes.all
        w.check_clean()


async def test_a_migration_to_a_gpn_that_leaves_goes_first(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.migrations.migrate, TUNNEL, "gpn-3")
            await trio.testing.wait_all_tasks_blocked()
            without_node(w, "gpn-3")
            (change,) = (await reload(w)).changes
            assert "(1: acme/hq)" in change.reason


async def test_a_dial_that_was_to_land_on_a_gpn_that_leaves_lands_elsewhere(
    autojump_clock: MockClock,
) -> None:
    async with world(start="auto") as w:
        w.tasks.start_soon(w.keeper.run)
        await w.until(lambda: any(w.on(gpn, "park") for gpn in ("gpn-1", "gpn-2", "gpn-3")))
        (gpn,) = (gpn for gpn in ("gpn-1", "gpn-2", "gpn-3") if w.on(gpn, "park"))
        without_node(w, gpn)
        w.interrupted.add(TUNNEL)
        await applied(w)
        await w.until(w.is_up)
        assert sealing(w).gpn != gpn
        await w.settle(10)
        w.check_clean()


async def test_a_node_that_is_up_keeps_its_address(autojump_clock: MockClock) -> None:
    async with world() as w:
        nodes = [
            msgspec.structs.replace(n, address="10.0.9.9") if n.name == "gpn-3" else n for n in w.file.nodes
        ]
        w.file = msgspec.structs.replace(w.file, nodes=tuple(nodes))
        (change,) = (await reload(w)).changes
        assert (change.outcome, change.reason) == (
            "refused", "gpn-3 is up: stop it, reload, then start it with this file",
        )  # fmt: skip
        await w.nodes.stop("gpn-3")
        assert await applied(w) == ["node gpn-3 changed restart: at restart"]


# ---- settings


@pytest.mark.parametrize("fields", [{"name": "other"}, {"state": "/elsewhere"}, {"pki": "/elsewhere"}])
async def test_what_the_gmn_reads_when_it_starts_is_refused(
    autojump_clock: MockClock, fields: dict[str, Any]
) -> None:
    async with world() as w:
        w.file = msgspec.structs.replace(w.file, **fields)
        with_tenants(w, make_tenant(1))
        found = await reload(w)
        assert not found.applied
        assert [change.outcome for change in found.changes] == ["refused", "planned", "planned"]
        assert OTHER not in w.sad.tunnels


async def test_settings_hold_from_now_on(autojump_clock: MockClock) -> None:
    async with world(linger=5.0) as w:
        await w.up()
        with_settings(w, linger=1.0, liveness=7.0)
        assert await applied(w) == [
            "setting ike.liveness changed now: done",
            "setting ike.linger changed now: done",
        ]
        old = sealing(w)
        await w.migrations.migrate(TUNNEL, "gpn-3")
        await w.settle(1.5)
        assert old.spi not in w.tunnel.sas
        w.log.clear()
        await w.settle(8)
        assert ("wire", "gmn", "INFORMATIONAL", False) in w.log


async def test_what_a_data_node_reads_when_it_starts_waits_for_that(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.file = msgspec.structs.replace(w.file, ingress="nft", vips=(*w.file.vips, "203.0.113.99"))
        found = await reload(w)
        assert [(told(change), change.restart) for change in found.changes] == [
            ("setting cluster.vips changed now: done", ("gin-1", "gin-2")),
            ("setting cluster.ingress changed restart: at restart", ("gin-1", "gin-2", "gen-1", "gen-2")),
        ]
