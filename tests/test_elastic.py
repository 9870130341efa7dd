"""The elastic controller on a mock clock: GPNs launched, relieved, packed, retired; when it keeps still."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from protego_cli.config.model import Cluster, ElasticConfig
from protego_cli.control.channel.node_messages import OfferedLoad, Report, SaUsage
from protego_cli.control.channel.operator_messages import GetEvents
from protego_cli.control.channel.pool_messages import ElasticPlan, GetPlan
from protego_cli.control.packing.load import Passed
from protego_cli.control.packing.packing_view import Move, PackingView, TunnelView
from protego_cli.control.packing.placement import Packer, PackingPolicy
from protego_cli.control.sas.tunnel import Totals
from protego_cli.plugins.manager import load_plugins
from tests.support.gmn_pools import Cloud, small

ON = ElasticConfig(mode="on", interval=60.0, high=0.9, low=0.8, hold=20.0, moves_per_hour=50)
PER_PACKET = 10e-6  # CPU seconds, in these worlds


class Elastic(Cloud):
    """A world whose tunnels have loads, as GPNs would report them, and a policy of the built-ins."""

    def __init__(self, cluster: Cluster, tasks: trio.Nursery, policy: PackingPolicy) -> None:
        super().__init__(cluster, tasks)
        self.policy = policy
        self.loads: dict[str, float] = {}
        tasks.start_soon(self._report)

    def _intent(self) -> Any:
        return super()._intent()._replace(packing=Packer(self.policy, "tests"))

    async def _report(self) -> None:
        """Every second each GPN reports what its tunnels have cost."""
        while True:
            await trio.sleep(1.0)
            for gpn in self.nodes.connected("gpn") if self.loads else ():
                passed, cpu = [], 0.0
                for tunnel in self.sad.tunnels.values():
                    sealing = tunnel.sealing
                    if sealing is not None and sealing.gpn == gpn and self.loads.get(tunnel.id):
                        cpu += self.loads[tunnel.id]
                        packets = round(self.loads[tunnel.id] / PER_PACKET)
                        passed.append(Passed(tunnel.id, "aes256gcm16", Totals(packets, 0, 0, 0)))
                self.sad.seats.loads.report(gpn, cpu, passed, trio.current_time())

    async def until(self, condition: Callable[[], object], limit: float = 120.0, every: float = 0.05) -> None:
        await super().until(condition, limit, every)

    def where(self) -> dict[str, str]:
        return {t.id: t.sealing.gpn for t in self.sad.tunnels.values() if t.sealing is not None}

    def used(self) -> set[str]:
        return set(self.where().values())

    def loaded(self) -> dict[str, float]:
        return {gpn.name: round(gpn.load, 3) for gpn in self.sad.seats.gpns()}

    def events(self, kind: str) -> list[Any]:
        return [event for event in self.sad.events.read(GetEvents()).events if event.kind == kind]

    async def plan(self) -> ElasticPlan:
        reply = await self.operations.answer(GetPlan())
        assert isinstance(reply, ElasticPlan)
        return reply


def policy(name: str) -> PackingPolicy:
    return load_plugins().packing_policies()[name].policy


@asynccontextmanager
async def elastic(
    directory: Path,
    config: ElasticConfig = ON,
    *,
    tunnels: int = 6,
    loads: Sequence[float] | None = None,
    chosen: PackingPolicy | None = None,
    minimum: int = 0,
) -> AsyncIterator[Elastic]:
    cluster = structs.replace(small(directory, minimum=minimum, tunnels=tunnels), elastic=config)
    async with trio.open_nursery() as tasks:
        world = Elastic(cluster, tasks, chosen or policy("protego"))
        await world.begin()
        world.sad.reload(cluster, Packer(world.policy, "tests"))
        await world.start_nodes()
        await world.up()
        for name, load in zip(world.sad.tunnels, loads or (), strict=False):
            world.loads[name] = load
        yield world
        tasks.cancel_scope.cancel()


Clock = trio.testing.MockClock


async def test_a_hot_gpn_is_relieved_by_one_that_is_launched_for_it(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with elastic(tmp_path, loads=[0.3] * 6) as world:
        assert world.used() == {"gpn-1"}
        await world.until(lambda: len(world.used()) == 2)
        await world.until(lambda: all(load <= 0.9 for load in world.loaded().values()))
        assert world.states() == {"cloud-1": "up"}
        assert [event.reason for event in world.events("packing")][:1] == ["hot spot"]
        await world.settle(30)
        world.check_clean()


async def test_the_reaction_comes_within_two_seconds_of_the_measurement(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with elastic(tmp_path, structs.replace(ON, hold=600.0), loads=[0.1] * 6, minimum=1) as world:
        await world.settle(20)
        world.loads = dict.fromkeys(world.loads, 0.22)
        await world.until(lambda: max(gpn.load for gpn in world.sad.seats.gpns()) > 0.9)
        measured = trio.current_time()
        await world.until(lambda: world.events("migration begun"))
        assert trio.current_time() - measured <= 2.0


async def test_what_has_become_quiet_is_packed_and_what_is_empty_is_retired(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with elastic(tmp_path, loads=[0.4] * 6) as world:
        await world.until(lambda: len(world.states()) == 2 and len(world.used()) == 3, limit=300)
        world.loads = dict.fromkeys(world.loads, 0.05)
        await world.until(lambda: len(world.used()) == 1, limit=300)
        emptied = trio.current_time()
        await world.until(lambda: not world.states(), limit=300)
        assert trio.current_time() - emptied >= 15, "an empty GPN is kept for a while"
        await world.settle(30)
        world.check_clean()


async def test_never_below_the_minimum_nor_beyond_the_maximum(tmp_path: Path, autojump_clock: Clock) -> None:
    async with elastic(tmp_path, loads=[0.9] * 6, minimum=1) as world:
        most = 0
        for _ in range(200):
            await world.settle(1)
            most = max(most, len(world.states()))
        assert most == 4, "six would be needed; four there may be"
        world.loads = dict.fromkeys(world.loads, 0.0)
        await world.settle(300)
        assert list(world.states().values()) == ["up"]


async def test_with_a_gin_away_nothing_moves(tmp_path: Path, autojump_clock: Clock) -> None:
    async with elastic(tmp_path, loads=[0.01] * 6) as world:
        await world.nodes.stop("gin-2")
        world.loads = dict.fromkeys(world.loads, 0.3)
        await world.settle(120)
        assert world.used() == {"gpn-1"}
        (hindered,) = world.events("packing hindered")
        assert hindered.reason == "gin-2 cannot be told: not connected"
        assert (await world.plan()).obstacle == hindered.reason
        await world.nodes.start("gin-2")
        await world.until(lambda: len(world.used()) > 1)


async def test_a_drained_gpn_gets_nothing(tmp_path: Path, autojump_clock: Clock) -> None:
    async with elastic(tmp_path, loads=[0.1] * 6, minimum=1) as world:
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        world.gpns.drains.drain("cloud-1")
        world.loads = dict.fromkeys(world.loads, 0.3)
        await world.until(lambda: len(world.used()) > 1, limit=300)
        assert "cloud-1" not in world.used()


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with elastic(tmp_path, structs.replace(ON, mode="dry-run"), loads=[0.3] * 6) as world:
        await world.settle(130)
        assert world.used() == {"gpn-1"}
        assert not world.states()
        assert [(event.reason, event.details["mode"]) for event in world.events("packing")] == [
            ("consolidation", "dry-run")
        ] * 2
        plan = await world.plan()
        assert plan.mode == "dry-run"
        assert plan.policy == "protego"
        assert plan.launch == ("cloud-1", "cloud-2")
        assert {move.source for move in plan.moves} == {"gpn-1"}
        assert {move.to for move in plan.moves} == {"cloud-1", "cloud-2"}
        assert not plan.retire


async def test_what_a_full_gpn_cannot_take_is_seen_before_it(tmp_path: Path, autojump_clock: Clock) -> None:
    """By the GPN's own counts nothing is wrong: it passes what it can."""
    async with elastic(tmp_path, structs.replace(ON, mode="off"), tunnels=1) as world:
        spi = world.tunnel.seals[0].spi
        for second in range(1, 31):
            await world.settle(1.0)
            passed = SaUsage(spi, 10**5 * second, 10**8 * second, 0, 0, 10**5 * second, 1)
            await world.nodes.observer.reported("gpn-1", Report(0.97, usage=(passed,)))
            came = (OfferedLoad(spi, 3 * 10**8 * second),)
            await world.nodes.observer.reported("gin-1", Report(0.1, offered=came))
        assert world.loaded()["gpn-1"] == pytest.approx(3 * 0.97, rel=0.05)
        assert (await world.tunnel_status()).cpu == pytest.approx(3 * 0.97, rel=0.05)


async def test_a_gpn_that_moves_are_bound_for_is_not_retired_for_being_empty(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    class Spreading:
        name = "spreading"

        def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
            return view.candidates(tunnel.load)[0].name

        def plan(self, view: PackingView) -> list[Move]:
            *first, last = [tunnel.id for tunnel in view.tunnels if tunnel.gpn == "gpn-1"] or [""]
            if "cloud-2" not in [gpn.name for gpn in view.gpns if gpn.running] or not first:
                return []
            return [*(Move(name, "cloud-1") for name in first), Move(last, "cloud-2")]

    config = structs.replace(ON, interval=2.0, hold=6.0, at_once=1)
    async with elastic(tmp_path, config, chosen=Spreading()) as world:
        world.wire_delay = (0.8, 1.0)  # so all the moves take much longer than that
        for name in ("cloud-1", "cloud-2"):
            world.roster.launch(name)
        await world.until(lambda: len(world.events("migrated")) + len(world.events("migration failed")) == 6)
        assert not world.events("migration failed")
        assert world.used() == {"cloud-1", "cloud-2"}


async def test_off_is_off(tmp_path: Path, autojump_clock: Clock) -> None:
    async with elastic(tmp_path, structs.replace(ON, mode="off"), loads=[0.3] * 6) as world:
        await world.settle(130)
        assert (world.used(), world.states(), world.events("packing")) == ({"gpn-1"}, {}, [])
        world.file = structs.replace(world.file, elastic=ON)
        assert (await world.reloads.reload()).applied
        await world.until(lambda: len(world.used()) > 1)


async def test_a_launch_that_fails_leaves_everything_where_it_is(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with elastic(tmp_path, loads=[0.3] * 6) as world:
        world.cloud.silent = True
        await world.until(lambda: world.events("launch failed"), limit=300)
        await world.settle(2)
        assert world.used() == {"gpn-1"}
        assert not (await world.plan()).waiting
        world.cloud.silent = False
        await world.until(lambda: len(world.used()) > 1, limit=600)


async def test_moves_wait_for_their_gpn_and_are_shown(tmp_path: Path, autojump_clock: Clock) -> None:
    async with elastic(tmp_path, loads=[0.3] * 6) as world:
        world.cloud.delay = 10.0
        await world.until(
            lambda: (
                world.states() == {"cloud-1": "launching", "cloud-2": "launching"}
                or (len(world.states()) == 1)
            )
        )
        waiting = (await world.plan()).waiting
        assert waiting
        assert {move.source for move in waiting} == {"gpn-1"}
        assert world.used() == {"gpn-1"}
        await world.until(lambda: len(world.used()) > 1)


async def test_a_tunnel_moves_no_more_often_than_it_may(tmp_path: Path, autojump_clock: Clock) -> None:
    class Restless:
        name = "restless"

        def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
            return view.candidates(tunnel.load)[0].name

        def plan(self, view: PackingView) -> list[Move]:
            return [
                Move(tunnel.id, next(gpn.name for gpn in view.gpns if gpn.name != tunnel.gpn))
                for tunnel in view.tunnels
                if tunnel.movable
            ]

    config = structs.replace(ON, interval=10.0, moves_per_hour=3, hold=600.0)
    async with elastic(tmp_path, config, tunnels=2, chosen=Restless(), minimum=1) as world:
        await world.settle(600)
        moved = [event.tunnel for event in world.events("migrated")]
        assert sorted(moved) == ["acme/hq"] * 3 + ["tenant1/hq"] * 3


@pytest.mark.parametrize("answer", ["raises", "unknown", "overfills"])
async def test_a_policy_at_fault_is_named_and_harms_nobody(
    tmp_path: Path, autojump_clock: Clock, answer: str
) -> None:
    class Faulty:
        name = "faulty"

        def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
            return view.candidates(tunnel.load)[0].name

        def plan(self, view: PackingView) -> list[Move]:
            if answer == "raises":
                raise KeyError("gpn-7")
            if answer == "unknown":
                return [Move("nobody/hq", "gpn-1")]
            return [Move(tunnel.id, "cloud-1") for tunnel in view.tunnels if tunnel.gpn != "cloud-1"]

    async with elastic(tmp_path, loads=[0.3] * 6, chosen=Faulty(), minimum=1) as world:
        await world.until(lambda: world.events("policy failed"), limit=300)
        assert "'faulty' of plugin 'tests'" in world.events("policy failed")[0].reason
        assert not world.events("migrated")
        assert world.is_up()


async def test_the_last_gpn_stays_and_where_there_is_none_one_is_launched(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with elastic(tmp_path, loads=[0.0] * 6) as world:
        world.gpns.drains._set("gpn-1", draining=True)
        await world.until(lambda: world.states() == {"cloud-1": "up"})
        await world.settle(120)
        assert world.states() == {"cloud-1": "up"}


async def test_another_life_of_the_gmn_goes_on(tmp_path: Path, autojump_clock: Clock) -> None:
    async with elastic(tmp_path, loads=[0.3] * 6) as world:
        await world.until(lambda: world.events("migration begun"))
        world.kill_gmn()
        await world.gmn_returns()
        world.sad.reload(world.file, Packer(world.policy, "tests"))
        await world.until(
            lambda: len(world.used()) > 1 and max(world.loaded().values(), default=1) <= 0.9, limit=300
        )
        assert world.cloud.calls.count("launch cloud-1") == 1
        await world.settle(100)
        world.check_clean()
