"""The lives of a pool's nodes, on a mock clock: slow, failing, vanished, retired; a GMN that dies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from msgspec import structs

from protego_cli.config.model import Cluster
from tests.support.gmn_pools import Cloud, small
from tests.support.pools import REFUSES


@asynccontextmanager
async def cloud(
    cluster: Cluster, fault: Exception | None = None, *, silent: bool = False
) -> AsyncIterator[Cloud]:
    async with trio.open_nursery() as tasks:
        world = Cloud(cluster, tasks)
        world.cloud.fault, world.cloud.silent = fault, silent
        await world.begin()
        await world.start_nodes()
        await world.up()
        yield world
        tasks.cancel_scope.cancel()


async def test_the_minimum_is_launched_and_a_launch_takes_a_token(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with cloud(small(tmp_path, minimum=2)) as world:
        await world.until(lambda: world.states() == {"cloud-1": "up", "cloud-2": "up"})
        assert sorted(world.cloud.calls) == ["launch cloud-1", "launch cloud-2"]
        assert sorted(world.told()) == ["node launched: cloud-1", "node launched: cloud-2"]
        assert [(node.state, node.connected) for node in await world.pool_nodes()] == [("up", True)] * 2


async def test_a_launch_that_fails_is_tried_again_later_and_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with cloud(small(tmp_path), REFUSES) as world:
        began = trio.current_time()
        await world.until(lambda: len(world.told()) == 4)
        assert world.told() == ["launch failed: cloud-1"] * 4
        assert trio.current_time() - began >= 4 + 8, "the first had failed before"
        assert [(node.state, node.note) for node in await world.pool_nodes()] == [
            ("launching", "the cloud is full")
        ]
        assert not list(world.roster.launchable()), "nobody counts on a pool that fails"
        world.cloud.fault = None
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        assert list(world.roster.launchable())


@pytest.mark.parametrize("fault", [ValueError("no such flavour"), KeyError("token")])
async def test_a_plugin_that_raises_is_named_and_harms_nobody(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, fault: Exception
) -> None:
    async with cloud(small(tmp_path), fault) as world:
        await world.until(lambda: world.told())
        (node,) = await world.pool_nodes()
        assert node.note == f"the provisioner 'fake' of plugin 'tests' raised {type(fault).__name__}: {fault}"
        assert world.is_up()


async def test_a_node_that_never_connects_is_taken_back_and_launched_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with cloud(small(tmp_path), silent=True) as world:
        await world.until(lambda: world.told())
        (node,) = await world.pool_nodes()
        assert node.note == "it has not connected within 20 s of its launch"
        await world.until(lambda: "retire cloud-1" in world.cloud.calls)
        world.cloud.silent = False
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        assert world.cloud.calls == ["launch cloud-1", "retire cloud-1", "launch cloud-1"]


async def test_a_node_that_loses_its_link_is_let_be_and_one_that_is_gone_is_launched_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with cloud(small(tmp_path)) as world:
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        await world.nodes.stop("cloud-1")
        await world.settle(30)
        (node,) = await world.pool_nodes()
        assert (node.state, node.connected, node.note) == ("up", False, "its link to the GMN is down")
        del world.cloud.there["cloud-1"]
        await world.until(lambda: world.told()[-1] == "node vanished: cloud-1")
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        assert world.cloud.calls == ["launch cloud-1", "launch cloud-1"]


async def test_a_node_that_is_retired_is_emptied_first_and_its_certificate_is_void(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with cloud(small(tmp_path, minimum=0)) as world:
        world.roster.launch("cloud-1")
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        await world.migrations.migrate("acme/hq", "cloud-1")
        world.roster.retire("cloud-1")
        await world.until(lambda: world.states() == {"cloud-1": "retiring"} or not world.states())
        assert world.tunnel.sealing is not None
        assert world.tunnel.sealing.gpn == "gpn-1"
        assert "cloud-1" not in world.nodes.all, "it is no member any more"
        await world.until(lambda: not world.states())
        assert world.told()[-1] == "node retired: cloud-1"
        assert "cloud-1" not in world.sad.seats.draining
        world.check_clean()


async def test_a_node_that_is_the_last_one_stays_until_there_is_another(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with cloud(small(tmp_path, minimum=0)) as world:
        world.roster.launch("cloud-1")
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        await world.migrations.migrate("acme/hq", "cloud-1")
        await world.nodes.stop("gpn-1")
        world.roster.retire("cloud-1")
        await world.settle(30)
        (node,) = await world.pool_nodes()
        assert node.state == "leaving"
        assert "no other GPN is up" in node.note
        await world.nodes.start("gpn-1")
        await world.until(lambda: not world.states())


async def test_what_could_not_be_ended_is_ended_later(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with cloud(small(tmp_path, minimum=0)) as world:
        world.roster.launch("cloud-1")
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        world.cloud.fault = REFUSES
        world.roster.retire("cloud-1")
        await world.until(lambda: world.told()[-1] == "retiring failed: cloud-1")
        assert world.states() == {"cloud-1": "retiring"}
        assert "cloud-1" not in [node.name for node in world.roster.launchable()]
        world.cloud.fault = None
        await world.until(lambda: not world.states())


async def test_a_lower_maximum_retires_what_is_beyond_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = small(tmp_path, minimum=2)
    async with cloud(cluster) as world:
        await world.until(lambda: list(world.states().values()) == ["up", "up"])
        world.file = structs.replace(
            cluster, pools=(structs.replace(cluster.pools[0], minimum=0, maximum=1),)
        )
        reloaded = await world.reloads.reload()
        assert reloaded.applied
        await world.until(lambda: world.states() == {"cloud-1": "up"})


async def test_a_pool_that_goes_is_refused_while_the_gmn_runs(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = small(tmp_path)
    async with cloud(cluster) as world:
        world.file = structs.replace(cluster, pools=())
        reloaded = await world.reloads.reload()
        assert not reloaded.applied
        assert [(change.what, change.outcome) for change in reloaded.changes] == [("pool", "refused")]


async def test_of_a_pool_in_order_only_the_highest_goes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = small(tmp_path, minimum=1)
    async with cloud(cluster) as world:
        world.cloud.ordered = True
        world.roster.launch("cloud-2")
        world.roster.launch("cloud-3")
        await world.until(lambda: list(world.states().values()) == ["up"] * 3)
        pool = cluster.pools[0]
        assert [life.name for life in world.roster.spare(pool)] == ["cloud-3"]
        world.cloud.fault = REFUSES
        world.roster.retire("cloud-3")
        await world.until(lambda: world.states()["cloud-3"] == "retiring")
        assert [node.name for node in world.roster.launchable()] == [], "cloud-4 is behind one that is to go"


@pytest.mark.parametrize("when", ["launching", "up", "leaving", "retiring"])
async def test_another_life_of_the_gmn_goes_on_where_this_one_was(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, when: str
) -> None:
    async with cloud(small(tmp_path, minimum=0)) as world:
        if when == "launching":
            world.cloud.delay = 3.0
        world.roster.launch("cloud-1")
        if when != "launching":
            await world.until(lambda: world.states() == {"cloud-1": "up"})
            await world.migrations.migrate("acme/hq", "cloud-1")
        else:
            await world.until(lambda: world.cloud.calls)
        if when in ("leaving", "retiring"):
            world.roster.retire("cloud-1")
        if when == "retiring":
            world.cloud.fault = REFUSES
        await world.until(lambda: world.states() == {"cloud-1": when})
        await world.journal.stored()
        world.kill_gmn()
        await world.gmn_returns()
        if when in ("launching", "up"):
            await world.until(lambda: world.states() == {"cloud-1": "up"})
            assert world.cloud.calls == ["launch cloud-1"], "nothing is launched twice"
            await world.settle(10)
            where = "cloud-1" if when == "up" else "gpn-1"
            assert world.tunnel.sealing is not None
            assert world.tunnel.sealing.gpn == where, "and nothing moves"
            world.check_clean()
        else:
            world.cloud.fault = None
            await world.until(lambda: not world.states())
            assert "cloud-1" not in world.nodes.all
