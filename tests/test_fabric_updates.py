"""Updates of one node: what is desired at the same time shares one; nobody fails for what another wants."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from protego_cli.config.model import Cluster
from protego_cli.control.channel.desired_records import Park
from protego_cli.control.channel.fabric import NodeDown
from protego_cli.control.channel.message import Failed, Key, Reply
from protego_cli.control.channel.messages import AnyRequest
from protego_cli.control.channel.node_messages import Stale, Sync
from protego_cli.errors import Refused
from tests.support.control import Gmn, dialled, make_certified, running_gmn, until
from tests.support.node import Node, hello


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return make_certified(tmp_path)


class Outcome:
    """What becomes of those who wait for gpn-1 side by side, by their names."""

    def __init__(self, gmn: Gmn) -> None:
        self.told: dict[str, str] = {}
        self._gmn = gmn

    async def of(
        self, name: str, *spis: int, barriers: Sequence[str] = (), needs: Sequence[Key] = ()
    ) -> None:
        try:
            await self._gmn.apply("gpn-1", [Park(spi) for spi in spis], barriers, needs)
        except NodeDown:
            self.told[name] = "down"
        except Refused as error:
            self.told[name] = str(error)
        else:
            self.told[name] = "applied"


async def test_what_is_desired_while_an_update_is_on_its_way_shares_the_next(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node, outcome = Node(), Outcome(gmn)
        async with gmn.linked("gpn-1", node), trio.open_nursery() as nursery:
            gate = node.hold()
            nursery.start_soon(outcome.of, "first", 300)
            await until(node.updates)
            nursery.start_soon(outcome.of, "second", 301)
            nursery.start_soon(outcome.of, "third", 302)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gmn.fabric.desire("gpn-1", put=[Park(303)])
            gmn.fabric.push("gpn-1")
            nursery.start_soon(gmn.fabric.applied, "gpn-1", ["gpn-2"])  # a barrier goes beside
            await until(lambda: len(node.updates()) == 2)
            assert outcome.told == {}
            gate.set()
        assert set(outcome.told.values()) == {"applied"}
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
        outcome = Outcome(gmn)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.of, "first", 300)
            await until(lambda: ("park", 300) in plane.records)
            for name, spi in (("before", 301), ("bad", 302), ("behind", 303)):
                nursery.start_soon(outcome.of, name, spi)
            await trio.testing.wait_all_tasks_blocked(0.01)
            plane.slow.set()
        assert "is bad" in outcome.told.pop("bad")
        assert outcome.told == {"first": "applied", "before": "applied", "behind": "applied"}
        plane.bad.clear()
        await gmn.apply("gpn-1", put=[Park(302)])
        assert ("park", 302) in plane.records


async def test_a_bad_record_that_nobody_waits_for_fails_nobody(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        plane.bad.add(("park", 302))
        plane.slow = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gmn.apply, "gpn-1", [Park(300)])
            await until(lambda: ("park", 300) in plane.records)
            nursery.start_soon(gmn.apply, "gpn-1", [Park(301)])
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
        outcome = Outcome(gmn)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome.of, "first", 300)
            await until(lambda: ("park", 300) in plane.records)
            nursery.start_soon(outcome.of, "bad", 301)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(partial(outcome.of, "barrier", barriers=("gpn-2",)))
            await trio.testing.wait_all_tasks_blocked(0.01)
            plane.slow.set()
        assert "is bad" in outcome.told["bad"]
        assert "no barrier was sent" in outcome.told["barrier"]
        assert outcome.told["first"] == "applied"


async def test_a_bad_record_that_was_pushed_before_fails_who_needs_it_and_nobody_else(
    cluster: Cluster,
) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        plane.bad.add(("park", 300))
        gmn.fabric.desire("gpn-1", put=[Park(300)])
        gmn.fabric.push("gpn-1")
        outcome = Outcome(gmn)
        for _ in range(2):  # while it is on its way, and when its answer is there
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outcome.of, "other")
                nursery.start_soon(partial(outcome.of, "owner", needs=[("park", 300)]))
            assert outcome.told.pop("other") == "applied"
            assert "is bad" in outcome.told.pop("owner")


@pytest.mark.parametrize("end", ["cut", "late", "stale"])
async def test_what_gathers_shares_the_end_of_what_it_waits_for(cluster: Cluster, end: str) -> None:
    async with running_gmn(cluster, deadline=0.5 if end == "late" else 5.0) as gmn:
        node, gate, outcome = Node(), trio.Event(), Outcome(gmn)

        async def later(request: AnyRequest) -> Reply:
            await gate.wait()
            return Stale(0)

        async with gmn.linked("gpn-1", node) as link, trio.open_nursery() as nursery:
            node.answer = later
            nursery.start_soon(outcome.of, "first", 300)
            await until(node.updates)
            nursery.start_soon(outcome.of, "second", 301)
            nursery.start_soon(outcome.of, "third", 302)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert outcome.told == {}
            if end == "cut":
                link.close("cut")
            elif end == "stale":
                node.answer = node.apply
                gate.set()
            await until(lambda: len(outcome.told) == 3)
            assert set(outcome.told.values()) == {"applied" if end == "stale" else "down"}
            if end == "stale":
                assert {Park(300), Park(301), Park(302)} <= set(node.syncs()[-1].records)
                assert len(node.syncs()) == 2


async def test_what_an_update_held_that_was_refused_as_a_whole_is_not_held(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gpn-1", node):
            node.answer = lambda request: Failed("too many")
            with pytest.raises(Refused, match="too many"):
                await gmn.apply("gpn-1", put=[Park(300)])
            with pytest.raises(Refused, match="too many"):
                await gmn.apply("gpn-1", needs=[("park", 300)])
            node.answer = node.apply
            await gmn.apply("gpn-1", put=[Park(300)])
        assert [update.put for update in node.updates()] == [(Park(300),)] * 2


async def test_no_barrier_is_passed_by_an_update_of_which_a_record_is_refused(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gen-1")
        plane.bad.add(("park", 300))
        with pytest.raises(Refused, match="no barrier was sent"):
            await gmn.apply("gen-1", put=[Park(300)], barriers=["gpn-1"])
        assert ("barrier", "gpn-1") not in plane.log
        await gmn.apply("gen-1", barriers=["gpn-1"])
        assert ("barrier", "gpn-1") in plane.log
