"""Updates of one node: what is desired at the same time shares one; nobody fails for what another wants."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from protego_cli.config.model import Cluster
from protego_cli.control.channel import pki
from protego_cli.control.channel.fabric import NodeDown
from protego_cli.control.channel.messages import AnyRequest, Failed, Key, Park, Reply, Stale, Sync
from protego_cli.errors import Refused
from tests.support.control import dialled, make_cluster, running_gmn, until
from tests.support.node import Node, hello


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = make_cluster(tmp_path)
    pki.init(made)
    return made


async def test_what_is_desired_while_an_update_is_on_its_way_shares_the_next(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node, gate = Node(), trio.Event()

        async def later(request: AnyRequest) -> Reply:
            await gate.wait()
            return node.apply(request)

        async with dialled(gmn.cluster, "gpn-1", node) as link, trio.open_nursery() as nursery:
            await link.call(hello())
            await until(lambda: gmn.fabric.connected("gpn"))
            node.answer = later
            done: list[int] = []

            async def apply(spi: int) -> None:
                await gmn.fabric.apply("gpn-1", put=[Park(spi)])
                done.append(spi)

            nursery.start_soon(apply, 300)
            await until(node.updates)
            for spi in (301, 302):
                nursery.start_soon(apply, spi)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gmn.fabric.desire("gpn-1", put=[Park(303)])
            gmn.fabric.push("gpn-1")
            nursery.start_soon(gmn.fabric.apply, "gpn-1", [], [], ["gpn-2"])  # a barrier goes beside
            await until(lambda: len(node.updates()) == 2)
            assert done == []
            gate.set()
            await until(lambda: len(done) == 3)
        first, barrier, *rest = node.updates()
        assert (first.put, barrier.barriers, len(rest)) == ((Park(300),), ("gpn-2",), 1)
        assert {*barrier.put, *rest[0].put} == {Park(301), Park(302), Park(303)}


async def test_a_push_is_heard_without_anybody_waiting(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        gmn.fabric.push("gpn-1")  # it is not there
        gmn.fabric.push("gpn-9")
        plane, _ = await gmn.join("gpn-1")
        gmn.fabric.push("gpn-1")  # nothing to say
        gmn.fabric.desire("gpn-1", put=[Park(300)])
        gmn.fabric.push("gpn-1")
        await until(lambda: ("park", 300) in plane.records)


@pytest.mark.parametrize("again", range(4))  # tasks run in another order each time
async def test_nothing_is_sent_ahead_of_the_sync_and_all_behind_it(cluster: Cluster, again: int) -> None:
    """A node takes no Update before its Sync; what was gathering behind one would then be left behind."""
    async with running_gmn(cluster) as gmn:
        node, spi = Node(), 300

        async def push() -> None:
            nonlocal spi
            while not gmn.fabric.connected("gpn"):
                gmn.fabric.desire("gpn-1", put=[Park(spi)])
                gmn.fabric.push("gpn-1")
                await trio.lowlevel.checkpoint()
                spi += 1

        async with dialled(gmn.cluster, "gpn-1", node) as link, trio.open_nursery() as nursery:
            nursery.start_soon(push)
            await link.call(hello())
            await until(lambda: gmn.fabric.connected("gpn"))
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert isinstance(node.asked[0], Sync)
        heard = {*node.asked[0].records, *(record for update in node.updates() for record in update.put)}
        assert heard >= {Park(each) for each in range(300, spi)}


async def test_of_those_who_share_an_update_only_who_wants_the_bad_record_fails(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        plane.bad.add(("park", 302))
        plane.slow = trio.Event()
        outcome: dict[int, str] = {}

        async def apply(spi: int) -> None:
            try:
                await gmn.fabric.apply("gpn-1", put=[Park(spi)])
            except Refused as error:
                outcome[spi] = str(error)
            else:
                outcome[spi] = "applied"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(apply, 300)
            await until(lambda: ("park", 300) in plane.records)
            for spi in (301, 302, 303):
                nursery.start_soon(apply, spi)
            await trio.testing.wait_all_tasks_blocked(0.01)
            plane.slow.set()
        assert {outcome.pop(spi) for spi in (300, 301, 303)} == {"applied"}
        assert "is bad" in outcome.pop(302)
        plane.bad.clear()
        await gmn.fabric.apply("gpn-1", put=[Park(302)])
        assert ("park", 302) in plane.records


async def test_a_bad_record_that_nobody_waits_for_fails_nobody(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        plane.bad.add(("park", 302))
        plane.slow = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gmn.fabric.apply, "gpn-1", [Park(300)])
            await until(lambda: ("park", 300) in plane.records)
            nursery.start_soon(gmn.fabric.apply, "gpn-1", [Park(301)])
            await trio.testing.wait_all_tasks_blocked(0.01)
            gmn.fabric.desire("gpn-1", put=[Park(302)])
            gmn.fabric.push("gpn-1")
            plane.slow.set()
        assert ("park", 301) in plane.records


async def test_a_bad_record_that_left_with_the_barriers_of_another_fails_who_wants_it(
    cluster: Cluster,
) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        plane.bad.add(("park", 301))
        plane.slow = trio.Event()
        outcome: dict[str, bool] = {}

        async def apply(name: str, *parks: Park, barriers: tuple[str, ...] = ()) -> None:
            try:
                await gmn.fabric.apply("gpn-1", put=parks, barriers=barriers)
            except Refused:
                outcome[name] = False
            else:
                outcome[name] = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(apply, "first", Park(300))
            await until(lambda: ("park", 300) in plane.records)
            nursery.start_soon(apply, "bad", Park(301))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(partial(apply, "barrier", barriers=("gpn-2",)))
            await trio.testing.wait_all_tasks_blocked(0.01)
            plane.slow.set()
        assert outcome == {"first": True, "bad": False, "barrier": False}


async def test_a_bad_record_that_was_pushed_before_fails_who_needs_it_and_nobody_else(
    cluster: Cluster,
) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        plane.bad.add(("park", 300))
        gmn.fabric.desire("gpn-1", put=[Park(300)])
        gmn.fabric.push("gpn-1")
        outcome: dict[str, str] = {}

        async def apply(name: str, *needs: Key) -> None:
            try:
                await gmn.fabric.apply("gpn-1", needs=needs)
            except Refused as error:
                outcome[name] = str(error)
            else:
                outcome[name] = "applied"

        for _ in range(2):  # while it is on its way, and when its answer is there
            async with trio.open_nursery() as nursery:
                nursery.start_soon(apply, "other")
                nursery.start_soon(apply, "owner", ("park", 300))
            assert outcome.pop("other") == "applied"
            assert "is bad" in outcome.pop("owner")


@pytest.mark.parametrize("end", ["cut", "late", "stale"])
async def test_what_gathers_shares_the_end_of_what_it_waits_for(cluster: Cluster, end: str) -> None:
    async with running_gmn(cluster, deadline=0.5 if end == "late" else 5.0) as gmn:
        node, gate = Node(), trio.Event()

        async def later(request: AnyRequest) -> Reply:
            await gate.wait()
            return Stale(0)

        async with dialled(gmn.cluster, "gpn-1", node) as link, trio.open_nursery() as nursery:
            await link.call(hello())
            await until(lambda: gmn.fabric.connected("gpn"))
            node.answer = later
            outcome: list[str] = []

            async def apply(spi: int) -> None:
                try:
                    await gmn.fabric.apply("gpn-1", put=[Park(spi)])
                except NodeDown:
                    outcome.append("down")
                else:
                    outcome.append("applied")

            nursery.start_soon(apply, 300)
            await until(node.updates)
            for spi in (301, 302):
                nursery.start_soon(apply, spi)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert outcome == []
            if end == "cut":
                link.close("cut")
            elif end == "stale":
                node.answer = node.apply
                gate.set()
            await until(lambda: len(outcome) == 3)
            assert set(outcome) == {"applied" if end == "stale" else "down"}
            if end == "stale":
                assert {Park(300), Park(301), Park(302)} <= set(node.syncs()[-1].records)
                assert len(node.syncs()) == 2


async def test_what_an_update_held_that_was_refused_as_a_whole_is_not_held(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with dialled(gmn.cluster, "gpn-1", node) as link:
            await link.call(hello())
            await until(lambda: gmn.fabric.connected("gpn"))
            node.answer = lambda request: Failed("too many")
            with pytest.raises(Refused, match="too many"):
                await gmn.fabric.apply("gpn-1", put=[Park(300)])
            with pytest.raises(Refused, match="too many"):
                await gmn.fabric.apply("gpn-1", needs=[("park", 300)])
            node.answer = node.apply
            await gmn.fabric.apply("gpn-1", put=[Park(300)])
        assert [update.put for update in node.updates()] == [(Park(300),)] * 2


async def test_no_barrier_is_passed_by_an_update_of_which_a_record_is_refused(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gen-1")
        plane.bad.add(("park", 300))
        with pytest.raises(Refused, match="no barrier was sent"):
            await gmn.fabric.apply("gen-1", put=[Park(300)], barriers=["gpn-1"])
        assert ("barrier", "gpn-1") not in plane.log
        await gmn.fabric.apply("gen-1", barriers=["gpn-1"])
        assert ("barrier", "gpn-1") in plane.log
