"""The GMN's side of rate limits: which node holds what, also while tunnels move and loads change."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protego_cli.config.model import Cluster, LimitConfig, Node, Rate
from protego_cli.control.channel.desired_records import Limit, Sa, Steer
from protego_cli.control.channel.node_messages import Report, SaUsage
from protego_cli.control.sas.limits import GEN_CEILING, GIN_CEILING, LEAST_BURST, parts
from protego_cli.control.sas.tunnel import Placed
from tests.support.gmn_cluster import make_cluster
from tests.support.gmn_reload import applied, edited, footprint, with_nodes
from tests.support.gmn_world import TUNNEL, World, world
from tests.support.stores import MemoryStore

M = 10**6
TEN = Rate(10 * M, 100_000)
HUNDRED = Rate(100 * M, 1_000_000)
replace = msgspec.structs.replace
bits = st.floats(0, 1e9)
gpns = st.dictionaries(st.sampled_from(["gpn-1", "gpn-2", "gpn-3"]), bits, min_size=1)


# ---- dividing


@given(gpns)
def test_the_parts_of_a_limit_add_up_to_it(home: dict[str, float]) -> None:
    found = parts(HUNDRED, home, {})
    assert found.keys() == home.keys()
    total = sum(part.bits for part in found.values())
    assert HUNDRED.bits - len(home) <= total <= HUNDRED.bits + len(home)
    assert sum(part.burst for part in found.values()) <= HUNDRED.burst + len(home) * LEAST_BURST


@given(gpns)
def test_whoever_asks_for_less_than_there_is_gets_it(home: dict[str, float]) -> None:
    if sum(home.values()) <= HUNDRED.bits:
        assert all(part.bits >= int(home[gpn]) for gpn, part in parts(HUNDRED, home, {}).items())


@given(gpns, bits)
def test_at_both_ends_of_a_migration_is_what_the_tunnel_had(home: dict[str, float], moving: float) -> None:
    """A tunnel at home on gpn-1 is on its way to gpn-9; nobody else's part changes by that."""
    home = {**home, "gpn-1": home.get("gpn-1", 0.0) + moving}
    before, during = parts(HUNDRED, home, {}), parts(HUNDRED, home, {"gpn-9": moving})
    assert {gpn: part for gpn, part in during.items() if gpn != "gpn-9"} == before
    alone = parts(HUNDRED, {**home, "gpn-1": moving}, {"gpn-9": moving})
    assert alone["gpn-9"] == alone["gpn-1"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"gpn-1": 0.0}, [100]),
        ({"gpn-1": 500.0 * M}, [100]),
        ({"gpn-1": 0.0, "gpn-2": 0.0}, [50, 50]),
        ({"gpn-1": 60.0 * M, "gpn-2": 20.0 * M}, [70, 30]),
        ({"gpn-1": 300.0 * M, "gpn-2": 100.0 * M}, [75, 25]),
    ],
)
def test_what_is_spare_is_shared_equally_and_what_is_scarce_in_proportion(
    asked: dict[str, float], expected: list[int]
) -> None:
    assert [part.bits for part in parts(HUNDRED, asked, {}).values()] == [mega * M for mega in expected]


# ---- which node holds what


def cluster(tunnel: LimitConfig, tenant: LimitConfig, tunnels: int = 1) -> Cluster:
    """One tenant with so many tunnels."""
    made = make_cluster(tunnels=tunnels)
    acme = made.tenants[0]
    own = tuple(
        replace(
            config,
            tenant="acme",
            name="hq" if not i else f"site{i}",
            remote_ts=(f"10.{2 + i}.0.0/24",),
            limit=tunnel,
        )
        for i, config in enumerate(made.tunnels())
    )
    return replace(made, tenants=(replace(acme, tunnels=own, limit=tenant),))


def held(w: World, node: str) -> dict[int | str, Limit]:
    records = w.nodes.all[node].held.values()
    return {record.of: record for record in records if isinstance(record, Limit)}


def ceiling(w: World, gin: str, placed: Placed) -> Rate | None:
    steer = w.nodes.all[gin].held["steer", placed.spi]
    assert isinstance(steer, Steer)
    return steer.ceiling


def sealing(w: World, tunnel: str = TUNNEL) -> Placed:
    placed = w.sad.tunnels[tunnel].sealing
    assert placed is not None
    return placed


def scaled(rate: Rate, factor: float) -> Rate:
    return Rate(int(rate.bits * factor), int(rate.burst * factor))


NONE = LimitConfig()
BOTH = LimitConfig(TEN, HUNDRED)


async def test_a_tunnels_limit_is_where_its_sas_are_and_its_ceilings_at_the_edge(
    autojump_clock: MockClock,
) -> None:
    async with world(cluster=cluster(BOTH, NONE)) as w:
        await w.up()
        gpn = sealing(w).gpn
        assert held(w, gpn) == {TUNNEL: Limit(TUNNEL, TEN, HUNDRED)}
        for gen in ("gen-1", "gen-2"):
            assert held(w, gen) == {TUNNEL: Limit(TUNNEL, None, scaled(HUNDRED, GEN_CEILING))}
        for gin in ("gin-1", "gin-2"):
            assert ceiling(w, gin, sealing(w)) == scaled(TEN, GIN_CEILING)
        assert all(not held(w, other) for other in ("gpn-1", "gpn-2", "gpn-3") if other != gpn)


async def test_a_limit_is_there_before_the_sa_and_leaves_after_it(autojump_clock: MockClock) -> None:
    async with world(cluster=cluster(BOTH, NONE)) as w:
        await w.up()
        old = sealing(w).gpn
        to = next(name for name in w.nodes.connected("gpn") if name != old)
        await w.migrations.migrate(TUNNEL, to)
        assert held(w, old) == held(w, to) == {TUNNEL: Limit(TUNNEL, TEN, HUNDRED)}
        for gin in ("gin-1", "gin-2"):
            assert ceiling(w, gin, sealing(w)) == scaled(TEN, GIN_CEILING)
        await w.settle(10)
        assert held(w, old) == {}
        assert held(w, to) == {TUNNEL: Limit(TUNNEL, TEN, HUNDRED)}
        w.ordered(("sent", to, ("limit", TUNNEL)), ("acknowledged", to, ("limit", TUNNEL)))


async def test_a_tenants_limit_takes_no_sa_to_a_gpn_that_is_not_stored(autojump_clock: MockClock) -> None:
    """Its parts change with the SAs on each GPN, which is told at once: nothing else may leave too early."""
    stored: list[bool] = []
    async with world(cluster=cluster(NONE, BOTH), store=MemoryStore(delay=0.1)) as w:

        def put(entry: tuple[object, ...]) -> None:
            if entry[0] == "put" and isinstance(entry[2], Sa):
                stored.append(b"sa/" + entry[2].spi_in.to_bytes(4) in w.store.held)

        w.nodes.tap = put
        await w.up()
        assert stored
        assert all(stored)


async def test_without_a_limit_nothing_is_said_of_it(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.migrations.migrate(TUNNEL, "gpn-2")
        assert all(not held(w, node) for node in w.nodes.all)
        assert ceiling(w, "gin-1", sealing(w)) is None


async def test_a_gin_holds_each_spi_to_the_tenants_limit_where_that_is_lower(
    autojump_clock: MockClock,
) -> None:
    async with world(cluster=cluster(LimitConfig(HUNDRED), LimitConfig(TEN))) as w:
        await w.up()
        assert ceiling(w, "gin-1", sealing(w)) == scaled(TEN, GIN_CEILING)


async def test_a_tenants_limit_follows_what_its_tunnels_ask_for(autojump_clock: MockClock) -> None:
    async with world(cluster=cluster(NONE, LimitConfig(HUNDRED, HUNDRED), tunnels=2)) as w:
        await w.up()
        one, two = (sealing(w, tunnel) for tunnel in (TUNNEL, "acme/site1"))
        if one.gpn == two.gpn:
            assert held(w, one.gpn)[1001].inward == HUNDRED
            await w.migrations.migrate(
                "acme/site1", next(g for g in w.nodes.connected("gpn") if g != one.gpn)
            )
            await w.settle(10)
            two = sealing(w, "acme/site1")
        assert [held(w, placed.gpn)[1001].inward for placed in (one, two)] == [half(HUNDRED)] * 2

        async def seconds(count: int, *megabits: tuple[float, float]) -> None:
            """Both GPNs report each second: what passed in, and what limits dropped."""
            for _ in range(count):
                for placed, (passed, dropped) in zip((one, two), megabits, strict=True):
                    so_far = sent.setdefault(placed.gpn, [0, 0])
                    so_far[0] += int(passed * M / 8)
                    so_far[1] += int(dropped * M / 8)
                    usage = SaUsage(
                        placed.spi, so_far[0] // 1000, so_far[0], 0, 0, 1, 1, so_far[1] // 1000, so_far[1]
                    )
                    await w.nodes.observer.reported(placed.gpn, Report(0.1, (usage,)))
                await w.settle(1)

        sent: dict[str, list[int]] = {}
        await seconds(10, (10, 0), (50, 40))  # idle beside a tunnel that asks for 90 of the 100
        assert [part(w, placed) for placed in (one, two)] == pytest.approx([10, 90], abs=2)
        await seconds(10, (10, 290), (90, 10))  # both ask for more than there is
        assert [part(w, placed) for placed in (one, two)] == pytest.approx([75, 25], abs=2)
        assert part(w, one) + part(w, two) <= 100
        outward = [held(w, placed.gpn)[1001].outward for placed in (one, two)]
        assert outward == [half(HUNDRED)] * 2
        for gen in ("gen-1", "gen-2"):
            assert held(w, gen) == {1001: Limit(1001, None, scaled(HUNDRED, GEN_CEILING))}


def part(w: World, placed: Placed) -> float:
    """What the GPN of an SA holds of the tenant's inward limit, in Mbit/s."""
    inward = held(w, placed.gpn)[1001].inward
    assert inward is not None
    return inward.bits / M


def half(rate: Rate) -> Rate:
    return Rate(rate.bits // 2, rate.burst // 2)


async def test_a_tenants_last_sa_takes_its_part_along(autojump_clock: MockClock) -> None:
    async with world(cluster=cluster(NONE, LimitConfig(HUNDRED, None))) as w:
        await w.up()
        gpn = sealing(w).gpn
        assert held(w, gpn) == {1001: Limit(1001, HUNDRED, None)}
        to = next(name for name in w.nodes.connected("gpn") if name != gpn)
        await w.migrations.migrate(TUNNEL, to)
        assert held(w, gpn) == held(w, to) == {1001: Limit(1001, HUNDRED, None)}
        await w.settle(10)
        assert held(w, gpn) == {}
        w.peer.close()
        await w.settle(10)
        assert held(w, to) == {}


async def test_what_limits_dropped_is_told_by_tunnel(autojump_clock: MockClock) -> None:
    async with world(cluster=cluster(BOTH, NONE)) as w:
        await w.up()
        placed = sealing(w)
        usage = SaUsage(placed.spi, 5, 500, 7, 700, 9, 8, 4, 400, 1, 100)
        await w.nodes.observer.reported(placed.gpn, Report(0.1, (usage,)))
        status = await w.tunnel_status()
        assert (status.packets_in, status.packets_out) == (5, 7)
        assert (status.limited_in, status.limited_out) == (4, 1)


# ---- reload


async def test_a_changed_limit_lands_at_once_and_touches_no_sa(autojump_clock: MockClock) -> None:
    async with world(cluster=cluster(BOTH, NONE)) as w:
        await w.up()
        before, gpn = footprint(w, TUNNEL)[:-1], sealing(w).gpn
        w.log.clear()
        edited(w, limit=LimitConfig(HUNDRED, TEN))
        assert await applied(w) == ["tunnel acme/hq changed now: done"]
        assert footprint(w, TUNNEL)[:-1] == before
        assert held(w, gpn) == {TUNNEL: Limit(TUNNEL, HUNDRED, TEN)}
        assert held(w, "gen-2") == {TUNNEL: Limit(TUNNEL, None, scaled(TEN, GEN_CEILING))}
        assert ceiling(w, "gin-2", sealing(w)) == scaled(HUNDRED, GIN_CEILING)
        put = [type(entry[2]) for entry in w.log if entry[0] == "put"]
        assert set(put) == {Limit, Steer}
        edited(w, limit=NONE)
        assert await applied(w) == ["tunnel acme/hq changed now: done"]
        assert all(not held(w, node) for node in w.nodes.all)
        assert ceiling(w, "gin-1", sealing(w)) is None


async def test_a_tenants_limit_comes_changes_by_little_and_goes(autojump_clock: MockClock) -> None:
    async with world(cluster=cluster(NONE, NONE)) as w:
        await w.up()
        gpn = sealing(w).gpn
        for limit in (LimitConfig(HUNDRED), LimitConfig(Rate(HUNDRED.bits + 1, HUNDRED.burst)), BOTH):
            tenants = (replace(w.file.tenants[0], limit=limit),)
            w.file = replace(w.file, tenants=tenants)
            assert await applied(w) == ["tenant acme changed now: done"]
            assert held(w, gpn) == {1001: Limit(1001, limit.inward, limit.outward)}
        w.file = replace(w.file, tenants=(replace(w.file.tenants[0], limit=NONE),))
        assert await applied(w) == ["tenant acme changed now: done"]
        assert all(not held(w, node) for node in w.nodes.all)


async def test_a_new_gen_holds_the_ceilings_too(autojump_clock: MockClock) -> None:
    async with world(cluster=cluster(BOTH, LimitConfig(None, HUNDRED))) as w:
        await w.up()
        with_nodes(w, Node("gen-3", "gen", "10.0.1.99"))
        await applied(w)
        await w.nodes.start("gen-3")
        assert held(w, "gen-3") == held(w, "gen-1")
        assert set(held(w, "gen-3")) == {TUNNEL, 1001}


async def test_limits_outlive_the_gmn(autojump_clock: MockClock) -> None:
    async with world(cluster=cluster(BOTH, LimitConfig(HUNDRED, HUNDRED))) as w:
        await w.up()
        gpn, before = sealing(w).gpn, held(w, sealing(w).gpn)
        assert set(before) == {TUNNEL, 1001}
        w.kill_gmn()
        await w.gmn_returns()
        await w.settle(5)
        assert sealing(w).gpn == gpn
        assert held(w, gpn) == before
        assert ceiling(w, "gin-1", sealing(w)) == scaled(TEN, GIN_CEILING)
