"""Draining and rebalancing at the GMN, with real engines, slow nodes and peers of every temper."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from protego_cli.control.channel.node_messages import Report, SaUsage
from protego_cli.control.channel.pool_messages import (
    Drain,
    GetJob,
    JobStatus,
    Plan,
    Rebalance,
    StopJob,
    Undrain,
    Undrained,
)
from protego_cli.control.packing.jobs import KEPT, Jobs
from protego_cli.control.packing.mover import AT_ONCE, PATIENCE
from protego_cli.control.packing.placement import Move, Packer, PackingView, PolicyFault, TunnelView
from protego_cli.errors import NoAdditionalSas, NotFound, ProtocolError, Refused, UsageError
from tests.support.gmn_world import Peer, World, world


async def drain(w: World, node: str) -> JobStatus:
    """Drain, and follow it as an operator does."""
    began = await w.operations.answer(Drain(node))
    assert isinstance(began, JobStatus)
    return await followed(w, began.id)


async def followed(w: World, job: str) -> JobStatus:
    revision = -1
    while True:
        status = await w.operations.answer(GetJob(job, revision, 1.0))
        assert isinstance(status, JobStatus)
        if status.state != "running":
            return status
        revision = status.revision


async def rebalance(w: World, policy: str | None = None, *, dry_run: bool = False) -> Plan:
    plan = await w.operations.answer(Rebalance(policy, dry_run))
    assert isinstance(plan, Plan)
    return plan


def at(w: World, node: str) -> list[str]:
    return [t.id for t in w.sad.tunnels.values() if t.sealing is not None and t.sealing.gpn == node]


def peer_at(w: World, node: str) -> Peer:
    """The peer of the first tunnel on a GPN."""
    return w.peers[w.sad.tunnels[at(w, node)[0]].config.peer or ""]


async def carry(w: World, loads: dict[str, float], seconds: int = 4) -> None:
    """Reports of so much CPU for each tunnel, while the GPNs' processes are as busy as that."""
    for second in range(1, seconds + 1):
        for gpn in w.nodes.connected("gpn"):
            here = at(w, gpn)
            usage = []
            for name in here:
                sealing = w.sad.tunnels[name].sealing
                assert sealing is not None
                count = int(100_000 * second * loads.get(name, 0.0))
                usage.append(SaUsage(sealing.spi, count, 1000 * count, 0, 0, 1, 1))
            cpu = sum(loads.get(name, 0.0) for name in here)
            await w.nodes.observer.reported(gpn, Report(cpu, tuple(usage)))
        await trio.sleep(1)


# ---- drain


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("seed", range(3))
async def test_a_drained_gpn_is_empty_and_the_others_share_its_tunnels(
    autojump_clock: MockClock, seed: int, lazy: bool
) -> None:
    async with world(seed, tunnels=60) as w:
        for peer in w.peers.values():
            peer.lazy = lazy
        await w.up()
        assert len(at(w, "gpn-2")) == 20
        status = await drain(w, "gpn-2")
        assert (status.state, status.total, status.done, status.failed) == ("done", 20, 20, ())
        assert w.on("gpn-2", "sa") == w.on("gpn-2", "rule") == w.on("gpn-2", "park") == set()
        assert (len(at(w, "gpn-1")), len(at(w, "gpn-3"))) == (30, 30)
        node = next(node for node in (await w.status()).nodes if node.name == "gpn-2")
        assert (node.state, node.draining, node.tunnels) == ("up", True, 0)
        await w.settle()
        w.check_clean()


async def test_a_bounded_number_moves_side_by_side(autojump_clock: MockClock) -> None:
    async with world(tunnels=100, delay=(0.05, 0.05)) as w:
        await w.up()
        most = 0

        def tap(entry: tuple[object, ...]) -> None:
            nonlocal most
            most = max(most, sum(1 for tunnel in w.sad.tunnels.values() if tunnel.target))

        w.nodes.tap = tap
        await drain(w, "gpn-1")
        assert AT_ONCE // 2 < most <= AT_ONCE


async def test_new_tunnels_and_rekeys_of_peers_go_elsewhere(autojump_clock: MockClock) -> None:
    async with world(tunnels=6) as w:
        peers = list(w.peers.values())
        for peer in peers[:3]:
            peer.dial()
        await w.until(lambda: sum(len(at(w, f"gpn-{i}")) for i in (1, 2, 3)) == 3)
        await w.settle()
        (stubborn,) = at(w, "gpn-1")
        peer = peer_at(w, "gpn-1")
        peer.refuse = lambda: NoAdditionalSas("none of yours")
        status = await drain(w, "gpn-1")
        (fault,) = status.failed
        assert fault.subject == stubborn
        assert "cannot be rekeyed" in fault.reason
        assert (status.state, status.done, status.total) == ("done", 0, 1)
        assert at(w, "gpn-1") == [stubborn]
        for late in peers[3:]:
            late.dial()
        await w.until(w.is_up)
        await w.settle()
        assert at(w, "gpn-1") == [stubborn]
        peer.rekey()  # a rekey of the peer's own is a migration for free
        await w.until(lambda: not at(w, "gpn-1"))
        await w.settle(20)
        w.check_clean()


async def test_what_fails_once_is_tried_again(autojump_clock: MockClock) -> None:
    async with world(tunnels=3) as w:
        await w.up()
        answers: list[ProtocolError] = [NoAdditionalSas("not now")]
        peer_at(w, "gpn-1").refuse = lambda: answers.pop() if answers else None
        status = await drain(w, "gpn-1")
        assert (status.done, status.failed) == (1, ())


async def test_a_gen_that_is_away_for_a_moment_leaves_no_tunnel_behind(autojump_clock: MockClock) -> None:
    async with world(tunnels=90) as w:
        await w.up()
        began = await w.operations.answer(Drain("gpn-1"))
        assert isinstance(began, JobStatus)
        await w.until(lambda: len(at(w, "gpn-1")) < 25)
        await w.nodes.stop("gen-1")
        await w.settle(2)
        status = await w.operations.answer(GetJob(began.id, -1, 0.0))
        assert isinstance(status, JobStatus)
        assert status.note == "gen-1 cut off from the GMN: waiting"
        assert len(at(w, "gpn-1")) > 0
        await w.nodes.start("gen-1")
        status = await followed(w, began.id)
        assert (status.done, status.failed, status.note) == (30, (), "")
        w.check_clean()


async def test_one_that_does_not_come_back_is_waited_for_once(autojump_clock: MockClock) -> None:
    async with world(tunnels=9) as w:
        await w.up()
        await w.nodes.stop("gen-1")
        before = trio.current_time()
        status = await drain(w, "gpn-1")
        assert PATIENCE < trio.current_time() - before < 2 * PATIENCE
        assert {fault.reason.partition(" and ")[0] for fault in status.failed} == {
            "gen-1 is cut off from the GMN"
        }
        assert len(status.failed) == 3


async def test_a_peer_that_is_gone_is_not_left_behind(autojump_clock: MockClock) -> None:
    """Its IKE_SA ends while it is asked to rekey: then there is nothing to move."""
    async with world(tunnels=3) as w:
        await w.up()
        peer_at(w, "gpn-1").deaf = True
        w.watching = False  # the peer does not know that it is gone
        status = await drain(w, "gpn-1")
        assert (status.state, status.failed) == ("done", ())
        assert at(w, "gpn-1") == []


async def test_a_tunnel_on_its_way_there_is_moved_on(autojump_clock: MockClock) -> None:
    async with world(tunnels=3, delay=(0.05, 0.05)) as w:
        await w.up()
        async with trio.open_nursery() as nursery:
            name = at(w, "gpn-1")[0]
            nursery.start_soon(w.migrations.migrate, name, "gpn-2")
            await w.until(lambda: w.sad.tunnels[name].target == "gpn-2")
            status = await drain(w, "gpn-2")
        assert (status.state, status.failed) == ("done", ())
        assert at(w, "gpn-2") == []
        await w.settle(10)
        w.check_clean()


async def test_a_tunnel_on_its_way_off_is_waited_for(autojump_clock: MockClock) -> None:
    async with world(tunnels=3, delay=(0.05, 0.05)) as w:
        await w.up()
        async with trio.open_nursery() as nursery:
            name = at(w, "gpn-1")[0]
            nursery.start_soon(w.migrations.migrate, name, "gpn-2")
            await w.until(lambda: w.sad.tunnels[name].target == "gpn-2")
            status = await drain(w, "gpn-1")
        assert (status.state, status.total) == ("done", 0)
        assert at(w, "gpn-1") == []


async def test_a_tunnel_that_comes_up_there_after_all_is_moved(autojump_clock: MockClock) -> None:
    """Its GPN was chosen, and its handshake on its way, when the drain began."""
    async with world(start="auto", delay=(0.05, 0.05)) as w:
        w.wire_delay = (0.5, 0.5)
        w.tasks.start_soon(w.keeper.run)
        await w.until(lambda: w.on("gpn-1", "park"))
        status = await drain(w, "gpn-1")
        assert (status.state, status.total) == ("done", 0)
        await w.until(w.is_up)
        await w.until(lambda: not at(w, "gpn-1"))
        await w.settle(10)
        w.check_clean()


async def test_nothing_else_goes_to_a_draining_gpn(autojump_clock: MockClock) -> None:
    async with world(tunnels=3) as w:
        await w.up()
        await drain(w, "gpn-3")
        with pytest.raises(Refused, match="gpn-3 is draining and takes no tunnels; `protego undrain gpn-3`"):
            await w.migrations.migrate(at(w, "gpn-1")[0], "gpn-3")
        assert await w.operations.answer(Undrain("gpn-3")) == Undrained("gpn-3", True)
        assert await w.operations.answer(Undrain("gpn-3")) == Undrained("gpn-3", False)
        await w.migrations.migrate(at(w, "gpn-1")[0], "gpn-3")


async def test_draining_the_last_gpn_is_refused(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await drain(w, "gpn-2")
        await w.nodes.stop("gpn-3")
        with pytest.raises(Refused, match="gpn-1 cannot be drained: no other GPN is up and takes tunnels"):
            await drain(w, "gpn-1")
        assert w.sad.seats.draining == {"gpn-2"}


@pytest.mark.parametrize(
    ("node", "error", "says"),
    [("gpn-9", NotFound, "there is no node 'gpn-9'; did you mean"), ("gin-1", Refused, "gin-1 is a GIN")],
)
async def test_only_gpns_are_drained(
    autojump_clock: MockClock, node: str, error: type[Exception], says: str
) -> None:
    async with world() as w:
        for request in (Drain(node), Undrain(node)):
            with pytest.raises(error, match=says):
                await w.operations.answer(request)


async def test_a_gpn_that_is_down_is_drained_by_rekeys(autojump_clock: MockClock) -> None:
    async with world(tunnels=3) as w:
        await w.up()
        w.watching = False  # what it carried is lost until then
        await w.nodes.stop("gpn-1")
        status = await drain(w, "gpn-1")
        assert (status.state, status.done, status.failed) == ("done", 1, ())
        assert at(w, "gpn-1") == []


async def test_the_targets_death_is_survived(autojump_clock: MockClock) -> None:
    async with world(tunnels=30, delay=(0.02, 0.05)) as w:
        await w.up()
        w.watching = False
        began = await w.operations.answer(Drain("gpn-1"))
        assert isinstance(began, JobStatus)
        await w.until(lambda: w.on("gpn-2", "park"))
        await w.nodes.stop("gpn-2")
        status = await followed(w, began.id)
        assert (status.state, status.failed) == ("done", ())
        assert at(w, "gpn-1") == []


async def test_without_a_gpn_that_takes_them_tunnels_stay(autojump_clock: MockClock) -> None:
    async with world(tunnels=3, delay=(0.02, 0.02)) as w:
        await w.up()
        w.watching = False
        (name,) = at(w, "gpn-1")
        began = await w.operations.answer(Drain("gpn-1"))
        assert isinstance(began, JobStatus)
        await w.nodes.stop("gpn-2")
        await w.nodes.stop("gpn-3")
        status = await followed(w, began.id)
        assert status.state == "done"
        assert [fault.subject for fault in status.failed] == [name]
        assert at(w, "gpn-1") == [name]


async def test_a_drain_is_stopped_resumed_and_taken_back(autojump_clock: MockClock) -> None:
    async with world(tunnels=180, delay=(0.02, 0.02)) as w:
        await w.up()
        began = await w.operations.answer(Drain("gpn-1"))
        assert isinstance(began, JobStatus)
        again = await w.operations.answer(Drain("gpn-1"))
        assert isinstance(again, JobStatus)
        assert again.id == began.id  # whoever asks follows the one that is at it
        await w.until(lambda: w.gpns.jobs.find(began.id).done)
        await w.operations.answer(StopJob(began.id))
        stopped = await followed(w, began.id)
        assert stopped.state == "stopped"
        assert 0 < stopped.done < 60
        assert len(at(w, "gpn-1")) == 60 - stopped.done
        resumed = await w.operations.answer(Drain("gpn-1"))
        assert isinstance(resumed, JobStatus)
        await w.settle(0.02)
        await w.operations.answer(Undrain("gpn-1"))
        assert (await followed(w, resumed.id)).state == "stopped"
        assert at(w, "gpn-1")
        assert (await drain(w, "gpn-1")).state == "done"
        assert at(w, "gpn-1") == []
        await w.settle(10)
        w.check_clean()


async def test_two_gpns_are_drained_at_once(autojump_clock: MockClock) -> None:
    async with world(tunnels=30) as w:
        await w.up()
        found: list[JobStatus] = []

        async def one(node: str) -> None:
            found.append(await drain(w, node))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "gpn-1")
            nursery.start_soon(one, "gpn-2")
        assert [status.failed for status in found] == [(), ()]
        assert len(at(w, "gpn-3")) == 30
        await w.settle(10)
        w.check_clean()


# ---- rebalance


async def test_consolidation_uses_fewer_gpns(autojump_clock: MockClock) -> None:
    async with world(tunnels=9) as w:
        await w.up()
        await carry(w, dict.fromkeys(w.sad.tunnels, 0.1))
        shown = await rebalance(w, "first-fit-decreasing", dry_run=True)
        assert shown.job is None
        assert len(at(w, "gpn-1")) == 3
        plan = await rebalance(w, "first-fit-decreasing")
        assert plan.moves == shown.moves
        assert {move.source for move in plan.moves} <= {"gpn-2", "gpn-3"}
        assert all(move.load == pytest.approx(0.1, rel=0.3) for move in plan.moves)
        assert plan.job is not None
        status = await followed(w, plan.job)
        assert (status.state, status.done, status.failed) == ("done", len(plan.moves), ())
        assert (len(at(w, "gpn-1")), len(at(w, "gpn-3"))) == (9 - len(at(w, "gpn-2")), 0)
        assert (await rebalance(w, "first-fit-decreasing")).moves == ()
        await w.settle(10)
        w.check_clean()


async def test_a_rebalance_needs_a_policy_that_is_there(autojump_clock: MockClock) -> None:
    async with world() as w:
        with pytest.raises(UsageError, match=r"'tetris'; known: .*first-fit-decreasing, .*spread"):
            await rebalance(w, "tetris")


async def test_a_second_rebalance_follows_the_first(autojump_clock: MockClock) -> None:
    async with world(tunnels=30, delay=(0.02, 0.02)) as w:
        await w.up()
        await w.nodes.stop("gpn-3")
        await w.nodes.start("gpn-3")
        plan = await rebalance(w, "first-fit-decreasing")
        assert (await rebalance(w, "first-fit-decreasing")) == plan
        with pytest.raises(Refused, match="a rebalance by the policy first-fit-decreasing is under way"):
            await rebalance(w)
        assert (await rebalance(w, dry_run=True)).policy == "spread"
        assert plan.job is not None
        await followed(w, plan.job)


async def test_tunnels_that_a_drain_moves_are_left_to_it(autojump_clock: MockClock) -> None:
    async with world(tunnels=30, delay=(0.02, 0.02)) as w:
        await w.up()
        began = await w.operations.answer(Drain("gpn-1"))
        assert isinstance(began, JobStatus)
        leaving = set(at(w, "gpn-1"))
        plan = await rebalance(w, "first-fit-decreasing", dry_run=True)
        assert not leaving & {move.tunnel for move in plan.moves}
        assert all(move.to != "gpn-1" for move in plan.moves)
        await followed(w, began.id)


class Nonsense:
    name = "nonsense"

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        return "gpn-9"

    def plan(self, view: PackingView) -> Sequence[Move]:
        return [Move("acme/hq", "gpn-9")]


async def test_a_policy_of_nonsense_moves_nothing(autojump_clock: MockClock) -> None:
    async with world(tunnels=3) as w:
        await w.up()
        w.sad.seats.packer = Packer(Nonsense(), "acme")
        with pytest.raises(PolicyFault, match="policy 'nonsense' of plugin 'acme' moves acme/hq to 'gpn-9'"):
            await rebalance(w)
        (name,), peer = at(w, "gpn-1"), peer_at(w, "gpn-1")
        status = await drain(w, "gpn-1")
        (fault,) = status.failed
        assert fault.reason == "the packing policy nonsense has no other GPN for it"
        peer.rekey()
        await w.settle(20)
        assert at(w, "gpn-1") == [name]  # rather there than nowhere


# ---- jobs


async def test_jobs_that_ended_are_kept_for_a_while(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        jobs = Jobs(7, nursery)

        async def fail(job: object) -> None:
            raise Refused("it cannot be done")

        first = jobs.start("test", "a", fail)
        assert first.id == "7-1"
        await trio.sleep(1)
        status = await first.news(-1, 5.0)
        assert (status.state, status.note, status.seconds) == ("failed", "it cannot be done", 0.0)
        for _ in range(KEPT):
            jobs.start("test", "b", fail)
            await trio.sleep(1)
        with pytest.raises(NotFound, match="there is no job '7-1'"):
            jobs.find("7-1")


async def test_news_are_waited_for_and_no_longer_than_asked(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        jobs = Jobs(1, nursery)

        async def work(job: object) -> None:
            await trio.sleep(3)

        job = jobs.start("test", "a", work)
        assert (await job.news(job.status().revision, 1.0)).state == "running"
        assert trio.current_time() == pytest.approx(1.0)
        assert (await job.news(job.status().revision, 5.0)).state == "done"
        assert trio.current_time() == pytest.approx(3.0)
