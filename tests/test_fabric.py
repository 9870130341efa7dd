"""The GMN and its nodes over real mTLS: membership, desired state, resync, and who may say what."""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from msgspec import structs

from protego_cli.config.model import Cluster
from protego_cli.control.channel import pki
from protego_cli.control.channel.agent import Agent
from protego_cli.control.channel.desired_records import Neighbour, Park, Steer, Tenant
from protego_cli.control.channel.fabric import Fabric, NodeDown
from protego_cli.control.channel.message import Failed, Reply
from protego_cli.control.channel.messages import AnyRequest
from protego_cli.control.channel.node_messages import (
    Applied,
    FirstPacket,
    GetMarks,
    Marks,
    PeerAddress,
    Report,
    Stale,
    Sync,
    Update,
    Welcome,
)
from protego_cli.control.channel.operator_messages import GetStatus, ListNames
from protego_cli.control.state.journal import Journal
from protego_cli.errors import NotFound, Refused
from tests.support.control import FakePlane, Gmn, dialled, make_certified, make_cluster, running_gmn, until
from tests.support.node import Node, hello
from tests.support.stores import MemoryStore


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return make_certified(tmp_path)


# ---- what the fabric desires by itself


async def test_tenants_and_one_key_for_each_pair(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        planes = {name: (await gmn.join(name))[0] for name in ("gin-1", "gen-1", "gpn-1", "gpn-2")}
        records = {name: plane.records for name, plane in planes.items()}

        def tag_key(node: str, other: str) -> bytes:
            record = records[node]["neighbour", other]
            assert isinstance(record, Neighbour)
            return record.tag_key

        keys = set()
        for edge in ("gin-1", "gen-1"):
            for gpn in ("gpn-1", "gpn-2"):
                assert tag_key(edge, gpn) == tag_key(gpn, edge)
                keys.add(tag_key(edge, gpn))
        assert len(keys) == 4
        assert {len(key) for key in keys} == {32}
        tenant = records["gen-1"]["tenant", 1001]
        assert isinstance(tenant, Tenant)
        assert tenant.vteps[0].address == "127.2.0.1"
        assert records["gpn-1"]["tenant", 1001] == tenant
        assert set(records["gin-1"]) == {("neighbour", "gpn-1"), ("neighbour", "gpn-2")}
        assert set(records["gpn-1"]) == {("neighbour", "gin-1"), ("neighbour", "gen-1"), ("tenant", 1001)}


async def test_ports_of_neighbours(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        gen, _ = await gmn.join("gen-1")
        gpn, _ = await gmn.join("gpn-1")
        seen = {
            record.name: (record.role, record.address, record.esp_port, record.vxlan_port)
            for record in [*gen.records.values(), *gpn.records.values()]
            if isinstance(record, Neighbour)
        }
        assert seen["gpn-1"] == ("gpn", "127.1.0.3", 4500, 4789)
        assert seen["gen-1"] == ("gen", "127.1.0.2", 0, 4789)
        assert seen["gin-1"] == ("gin", "127.1.0.1", 0, 0)


async def test_the_envelope_key_goes_to_gins_only(cluster: Cluster) -> None:
    async with running_gmn(cluster, epoch=7) as gmn:
        gin, _ = await gmn.join("gin-1")
        gpn, _ = await gmn.join("gpn-1")
        assert gin.welcomes == [Welcome(7, gmn.fabric.envelope_key("gin-1"))]
        assert len(gmn.fabric.envelope_key("gin-1")) == 32
        assert gpn.welcomes == [Welcome(7, b"")]


# ---- applying


async def test_apply_returns_when_the_node_acts_on_it(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        await gmn.apply("gpn-1", put=[Park(300), Park(301)])
        assert {("park", 300), ("park", 301)} <= set(plane.records)
        await gmn.apply("gpn-1", put=[Park(302)], drop=[("park", 300)])
        assert ("park", 300) not in plane.records
        assert plane.log[-2:] == [("put", ("park", 302)), ("drop", ("park", 300))]


async def test_esp_does_without_udp_when_every_gin_that_is_known_can(tmp_path: Path) -> None:
    made = make_cluster(tmp_path)
    second = structs.replace(made.nodes[1], name="gin-2", address="127.1.0.99")
    made = structs.replace(made, nodes=(*made.nodes, second))
    pki.init(made)

    async def say(gmn: Gmn, name: str, *, raw_esp: bool) -> None:
        async with dialled(gmn.cluster, name, Node()) as link:
            await link.call(hello(raw_esp=raw_esp))

    async with running_gmn(made) as gmn:
        assert not gmn.fabric.raw_esp(), "no GIN has said so"
        await say(gmn, "gpn-1", raw_esp=True)
        assert not gmn.fabric.raw_esp()
        await say(gmn, "gin-1", raw_esp=True)
        assert gmn.fabric.raw_esp()
        await say(gmn, "gen-1", raw_esp=False)
        assert gmn.fabric.raw_esp()
        await say(gmn, "gin-2", raw_esp=False)
        assert not gmn.fabric.raw_esp()
        assert not gmn.fabric.connected("gin"), "it may come back at any time"
        gmn.fabric.reload(structs.replace(gmn.cluster, nodes=gmn.cluster.nodes[:-1]))
        assert gmn.fabric.raw_esp()


@pytest.mark.parametrize("raw_esp", [True, False])
async def test_an_agent_says_what_its_data_path_can(cluster: Cluster, raw_esp: bool) -> None:
    async with running_gmn(cluster) as gmn:
        node = gmn.cluster.node("gin-1")
        assert node is not None
        gmn.nursery.start_soon(Agent(gmn.cluster, node, FakePlane(), raw_esp=raw_esp).run)
        await until(lambda: gmn.fabric.connected("gin"))
        assert gmn.fabric.raw_esp() is raw_esp


async def test_only_changes_are_sent(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gin-1", node):
            steer = Steer(300, "gpn-1", "192.0.2.1", 4500)
            await gmn.apply("gin-1", put=[steer])
            await gmn.apply("gin-1", put=[steer])
            await gmn.apply("gin-1", drop=[("steer", 999)])
            assert node.updates() == [Update(1, 2, (steer,))]
            await gmn.apply("gin-1", put=[steer], barriers=["gpn-1"])
            assert node.updates()[1:] == [Update(1, 3, barriers=("gpn-1",))]


async def test_desire_goes_out_with_the_next_apply(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gpn-1", node):
            gmn.fabric.desire("gpn-1", put=[Park(300)])
            await trio.testing.wait_all_tasks_blocked()
            assert node.updates() == []
            await gmn.apply("gpn-1", put=[Park(301)])
            assert node.updates() == [Update(1, 2, (Park(300), Park(301)))]


async def test_an_identical_put_still_waits_for_the_first(cluster: Cluster) -> None:
    """What is on its way may not be taken for applied."""
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gpn-1", node), trio.open_nursery() as nursery:
            gate = node.hold()
            done: list[str] = []

            async def apply(name: str) -> None:
                await gmn.apply("gpn-1", put=[Park(300)])
                done.append(name)

            nursery.start_soon(apply, "first")
            await until(node.updates)
            nursery.start_soon(apply, "second")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert done == []
            gate.set()
            await until(lambda: len(done) == 2)
            assert len(node.updates()) == 1


async def test_concurrent_applies_arrive_in_order_and_none_is_lost(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        async with trio.open_nursery() as nursery:
            for spi in range(300, 600):
                nursery.start_soon(gmn.apply, "gpn-1", [Park(spi)])
        assert {("park", spi) for spi in range(300, 600)} <= set(plane.records)
        assert not [entry for entry in plane.log if entry[0] == "drop"]


async def test_a_refused_record_is_the_callers_error_and_can_be_tried_again(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        plane.bad.add(("park", 300))
        with pytest.raises(Refused, match="is bad"):
            await gmn.apply("gpn-1", put=[Park(300), Park(301)])
        assert ("park", 301) in plane.records
        with pytest.raises(Refused, match="is bad"):
            await gmn.apply("gpn-1", put=[Park(300)])
        await gmn.apply("gpn-1", put=[Park(302)])  # others are not held up
        plane.bad.clear()
        await gmn.apply("gpn-1", put=[Park(300)])
        assert ("park", 300) in plane.records


async def test_an_unknown_node(cluster: Cluster) -> None:
    fabric = Fabric(cluster, 1, Journal(MemoryStore(), {}))
    with pytest.raises(NotFound, match="gpn-9"):
        await fabric.applied("gpn-9")


async def test_the_desired_state_outlives_the_absence_of_the_node(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        with pytest.raises(NodeDown, match="gpn-1: not connected"):
            await gmn.apply("gpn-1", put=[Park(300)])
        plane, _ = await gmn.join("gpn-1")
        assert ("park", 300) in plane.records


# ---- barriers


async def test_a_barrier_holds_its_own_answer_only(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn, trio.open_nursery() as nursery:
        plane, _ = await gmn.join("gen-1")
        plane.echo = trio.Event()
        passed = trio.Event()

        async def flip() -> None:
            await gmn.apply("gen-1", put=[Park(300)], barriers=["gpn-1"])
            passed.set()

        nursery.start_soon(flip)
        await until(lambda: ("barrier", "gpn-1") in plane.log)
        await gmn.apply("gen-1", put=[Park(301)])
        assert not passed.is_set()
        assert plane.log.index(("put", ("park", 300))) < plane.log.index(("barrier", "gpn-1"))
        plane.echo.set()
        with trio.fail_after(5):
            await passed.wait()


async def test_a_barrier_without_echo_fails_and_the_node_stays(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gen-1")
        plane.echo = trio.Event()
        with pytest.raises(Refused, match=r"gen-1: barrier not passed by gpn-1 \(no echo"):
            await gmn.apply("gen-1", put=[Park(300)], barriers=["gpn-1"])
        assert ("park", 300) in plane.records
        assert gmn.fabric.connected("gen") == ["gen-1"]


# ---- stale, late and gone


async def test_stale_gets_a_sync_and_the_apply_succeeds(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gen-1", node):
            stale = iter([Stale(0), Stale(0)])

            def once_stale(request: AnyRequest) -> Reply:
                if isinstance(request, Update):
                    return next(stale, Applied(request.revision))
                return node.apply(request)

            node.answer = once_stale
            async with trio.open_nursery() as nursery:
                nursery.start_soon(gmn.apply, "gen-1", [Park(300)])
                await until(node.updates)
                nursery.start_soon(gmn.apply, "gen-1", [Park(301)], ["gpn-1"])
            synced = node.syncs()[-1]
            assert {Park(300), Park(301)} <= set(synced.records)
            assert node.updates()[-1].barriers == ("gpn-1",)  # a Sync passes no barrier
            assert node.updates()[-1].revision > synced.revision
            revisions = [request.revision for request in node.asked if isinstance(request, Sync | Update)]
            assert revisions == sorted(set(revisions))


async def test_a_node_that_misses_the_deadline_is_withdrawn_and_comes_back_whole(cluster: Cluster) -> None:
    async with running_gmn(cluster, deadline=0.05) as gmn:
        node = Node()
        async with gmn.linked("gin-1", node) as link:
            node.answer = node.never
            with pytest.raises(NodeDown, match=r"gin-1: withdrawn: Update not applied within 0\.05 s"):
                await gmn.apply("gin-1", put=[Park(300)])
            await until(lambda: link.closed)
        assert gmn.fabric.connected("gin") == []
        await until(lambda: ("down", "gin-1") in gmn.observer.log)
        again, _ = await gmn.join("gin-1")
        assert ("park", 300) in again.records


async def test_a_disconnect_fails_the_applies_that_wait(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gpn-1", node) as link:
            node.answer = node.never
            down: list[int] = []

            async def apply(spi: int) -> None:
                with pytest.raises(NodeDown):
                    await gmn.apply("gpn-1", put=[Park(spi)])
                down.append(spi)

            async with trio.open_nursery() as nursery:
                for spi in (300, 301, 302):
                    nursery.start_soon(apply, spi)
                await until(node.updates)
                link.close("cut")
        assert sorted(down) == [300, 301, 302]
        plane, _ = await gmn.join("gpn-1")
        assert {("park", 300), ("park", 301), ("park", 302)} <= set(plane.records)


async def test_a_cancelled_apply_leaves_the_rest_in_order(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gpn-1", node):
            gate = node.hold()
            with trio.move_on_after(math.inf) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(gmn.apply, "gpn-1", [Park(300)])
                    await until(node.updates)
                    scope.cancel()
            gate.set()
            await gmn.apply("gpn-1", put=[Park(300)])  # it is still on its way
            await gmn.apply("gpn-1", put=[Park(301)])
            assert [update.revision for update in node.updates()] == [2, 3]


async def test_a_silent_link_is_closed(cluster: Cluster) -> None:
    async with running_gmn(cluster, silence=0.05) as gmn:
        async with dialled(gmn.cluster, "gpn-1", Node()) as link:
            await link.call(hello())
            await until(lambda: link.closed)
        await until(lambda: ("down", "gpn-1") in gmn.observer.log)


# ---- membership


async def test_the_observers_calls(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        _, scope = await gmn.join("gpn-1")
        state = {state.name: state for state in gmn.fabric.nodes()}
        assert state["gpn-1"].connected
        assert not state["gpn-2"].connected
        assert [state.name for state in gmn.fabric.nodes()] == ["gin-1", "gen-1", "gpn-1", "gpn-2"]
        scope.cancel()
        await until(lambda: ("down", "gpn-1") in gmn.observer.log)
        assert gmn.fabric.connected("gpn") == []
        with pytest.raises(NodeDown):
            await gmn.apply("gpn-1", put=[Park(1)])
        await gmn.start("gpn-1", FakePlane())
        await until(lambda: len(gmn.observer.log) == 5)
        assert gmn.observer.log == [
            ("connecting", "gpn-1"),
            ("up", "gpn-1"),
            ("down", "gpn-1"),
            ("restarted", "gpn-1"),
            ("up", "gpn-1"),
        ]


async def test_a_reconnection_of_one_process_is_no_restart(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        for _ in range(2):
            async with gmn.linked("gpn-1", Node(), "same"):
                pass
            await until(lambda: gmn.observer.log[-1] == ("down", "gpn-1"))
        assert ("restarted", "gpn-1") not in gmn.observer.log


async def test_what_is_desired_while_connecting_is_in_the_sync(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        gmn.observer.on_connecting = lambda name: gmn.fabric.desire(name, put=[Park(300)])
        node = Node()
        async with gmn.linked("gpn-1", node):
            assert Park(300) in node.syncs()[0].records
            assert node.updates() == []


async def test_a_second_connection_replaces_the_first_in_order(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        gmn.observer.hold_down = trio.Event()
        old, new = Node(), Node()
        async with gmn.linked("gpn-1", old, "one") as first, dialled(gmn.cluster, "gpn-1", new) as second:
            await second.call(hello("two"))
            await until(lambda: first.closed)
            await trio.testing.wait_all_tasks_blocked()
            assert gmn.observer.log == [("connecting", "gpn-1"), ("up", "gpn-1")]
            gmn.observer.hold_down.set()
            await until(lambda: gmn.fabric.connected("gpn"))
            await gmn.apply("gpn-1", put=[Park(300)])
            assert new.updates()
            assert not old.updates()
        assert gmn.observer.log[2:5] == [("down", "gpn-1"), ("restarted", "gpn-1"), ("up", "gpn-1")]


async def test_of_two_processes_of_one_name_the_first_stays(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        async with dialled(gmn.cluster, "gpn-1", Node()) as first:
            await first.call(hello("one"))
            await until(lambda: gmn.fabric.connected("gpn"))
            async with dialled(gmn.cluster, "gpn-1", Node()) as second:
                await second.call(hello("two"))
                await until(lambda: first.closed)  # for all that is known, it has ended
                async with dialled(gmn.cluster, "gpn-1", Node()) as again:
                    await again.call(hello("one"))
                    await until(lambda: second.closed)
                    await until(lambda: gmn.fabric.connected("gpn"))
                    for _ in range(2):
                        async with dialled(gmn.cluster, "gpn-1", Node()) as other:
                            with pytest.raises(Refused, match="another process runs as gpn-1"):
                                await other.call(hello("two"))
                    assert again.closed is None
        await until(lambda: gmn.observer.log[-1] == ("down", "gpn-1"))
        async with dialled(gmn.cluster, "gpn-1", Node()) as second:
            await second.call(hello("two"))  # the first is gone


async def test_a_node_that_refuses_a_record_of_its_sync_is_up_with_the_rest(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        gmn.fabric.desire("gpn-1", put=[Park(300), Park(301)])
        plane = FakePlane()
        plane.bad.add(("park", 300))
        await gmn.join("gpn-1", plane)
        (state,) = [node for node in gmn.fabric.nodes() if node.name == "gpn-1"]
        assert (state.connected, list(state.refused)) == (True, [("park", 300)])
        assert "is bad" in state.refused["park", 300]
        assert ("park", 301) in plane.records
        await gmn.apply("gpn-1", put=[Park(302)], needs=[("park", 301)])
        with pytest.raises(Refused, match="is bad"):
            await gmn.apply("gpn-1", needs=[("park", 300)])
        plane.bad.clear()
        await gmn.apply("gpn-1", put=[Park(300)])
        assert ("park", 300) in plane.records
        assert not state.refused


async def test_what_is_refused_and_dropped_is_refused_no_more(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        plane.bad.add(("park", 300))
        with pytest.raises(Refused, match="is bad"):
            await gmn.apply("gpn-1", put=[Park(300)])
        await gmn.apply("gpn-1", drop=[("park", 300)], needs=[("park", 300)])
        assert not any(node.refused for node in gmn.fabric.nodes())


async def test_a_sync_refused_as_a_whole_keeps_the_node_down(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        node.answer = lambda request: Failed("no such cipher")
        async with dialled(gmn.cluster, "gpn-1", node) as link:
            await link.call(hello())
            await until(lambda: link.closed)
        assert gmn.observer.log == [("connecting", "gpn-1")]
        assert gmn.fabric.connected("gpn") == []


# ---- what nodes say


async def test_reports_and_notices_reach_the_observer(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane = FakePlane()
        plane.silent = ("gpn-2",)
        agent, _ = await gmn.start("gpn-1", plane)
        agent.notify(FirstPacket(300))  # before there is a connection
        await until(lambda: agent.connected)
        agent.notify(PeerAddress(300, "192.0.2.9", 4500))
        await until(lambda: len(gmn.observer.notices()) == 2)
        assert set(gmn.observer.notices()) == {  # in any order: each has a task of its own
            ("gpn-1", FirstPacket(300)),
            ("gpn-1", PeerAddress(300, "192.0.2.9", 4500)),
        }
        await until(lambda: gmn.fabric.nodes()[2].report)
        assert gmn.fabric.nodes()[2].silent == ("gpn-2",)
        report = gmn.fabric.nodes()[2].report
        assert report is not None
        assert abs(report.clock - time.time()) < 60
        assert msgspec.structs.replace(report, clock=0.0) == Report(0.5, silent=("gpn-2",))


async def test_marks_are_the_highest_of_all_gins(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        assert await gmn.fabric.marks([300]) == {}
        plane, _ = await gmn.join("gin-1")
        plane.seen = {300: 17}
        assert await gmn.fabric.marks([300, 301]) == {300: 17, 301: 0}


async def test_a_mark_that_one_gin_cannot_know_is_left_out(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gin-1", node):
            node.answer = lambda request: Marks({300: 17})
            assert await gmn.fabric.marks([300, 301]) == {300: 17}


async def test_a_mark_that_is_missing_is_an_error(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        node = Node()
        async with gmn.linked("gin-1", node) as link:
            node.answer = lambda request: link.close("cut") or Marks({})  # type: ignore[func-returns-value]
            with pytest.raises(NodeDown):
                await gmn.fabric.marks([300])
            assert GetMarks((300,)) in node.asked


# ---- who may say what


async def test_hello_comes_first_and_once(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn, dialled(gmn.cluster, "gpn-1", Node()) as link:
        with pytest.raises(Refused, match="Hello comes first"):
            await link.call(Report(0.0))
        await link.call(hello())
        with pytest.raises(Refused, match="Hello comes once"):
            await link.call(hello())


async def test_a_node_that_has_seen_a_higher_epoch_is_told_so(cluster: Cluster) -> None:
    async with running_gmn(cluster, epoch=3) as gmn:
        async with dialled(gmn.cluster, "gpn-1", Node()) as link:
            with pytest.raises(Refused, match="epoch 3 is below 4"):
                await link.call(hello(epoch=4))
        assert gmn.observer.log == []


OPERATORS = [GetStatus(), ListNames()]
GMNS = [Sync(9, 9, ()), Update(9, 9), GetMarks((1,))]


@pytest.mark.parametrize("request_", [*OPERATORS, *GMNS], ids=lambda r: type(r).__name__)
async def test_a_node_may_not_ask_as_gmn_or_operator(cluster: Cluster, request_: AnyRequest) -> None:
    async with running_gmn(cluster) as gmn:
        gmn.fabric.operator_handler = lambda request: Node.never(request)
        async with dialled(gmn.cluster, "gpn-1", Node()) as link:
            await link.call(hello())
            with pytest.raises(Refused, match="a gpn may not send"):
                await link.call(request_)


@pytest.mark.parametrize("name", ["gin-1", "gen-1"])
async def test_only_gpns_speak_of_sas(cluster: Cluster, name: str) -> None:
    async with running_gmn(cluster) as gmn:
        async with dialled(gmn.cluster, name, Node()) as link:
            await link.call(hello())
            with pytest.raises(Refused, match="may not send FirstPacket"):
                await link.call(FirstPacket(300))
        assert gmn.observer.notices() == []


@pytest.mark.parametrize(
    "request_", [hello(), Report(0.0), FirstPacket(1), *GMNS], ids=lambda r: type(r).__name__
)
async def test_an_operator_may_not_speak_as_a_node(cluster: Cluster, request_: AnyRequest) -> None:
    async with running_gmn(cluster) as gmn, dialled(gmn.cluster, "operator", Node()) as link:
        with pytest.raises(Refused, match="an operator may not send"):
            await link.call(request_)
