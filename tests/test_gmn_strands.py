"""Several CHILD_SAs of one tunnel side by side in the GMN: each lives by itself, and all move together.

The watch of `gmn_world` holds at every step; two of the pairs of subnets here have the remote one in common,
so a GEN that sent one of them to another GPN than the other would be caught.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest
import trio
from msgspec.structs import replace
from trio._core import _run as scheduler
from trio.testing import MockClock

from protego_cli.control.channel.desired_records import Route
from protego_cli.control.sas.stored import load_sa, load_tunnel, store_sa, store_tunnel
from protego_cli.control.sas.tunnel import STRANDS
from protego_cli.control.state import crash
from protego_cli.errors import EnvironmentFault, NoAdditionalSas, ProtegoError, ProtocolError, Refused
from protego_cli.ike.events import ChildEstablished, ChildSa, ExchangeFailed
from protego_cli.ike.exchanges.create_child import Selectors
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import ExchangeType
from protego_cli.wire.selectors import TrafficSelector
from tests.support.gmn_world import TUNNEL, World, world

A1, A2 = "10.2.0.0/25", "10.2.0.128/25"  # the peer's side
B1, B2 = "10.1.0.0/25", "10.1.0.128/25"  # the tenant's
PAIRS = ((A1, B1), (A2, B2), (A1, B2))


def selectors(theirs: str, tenants: str) -> Selectors:
    """As the peer asks for them: its own first."""
    return (TrafficSelector.from_prefix(theirs),), (TrafficSelector.from_prefix(tenants),)


async def create(w: World, theirs: str, tenants: str) -> object:
    token = w.peer.create(selectors(theirs, tenants))
    await w.until(lambda: w.peer.outcome(token) is not None)
    return w.peer.outcome(token)


async def up(w: World, pairs: tuple[tuple[str, str], ...] = PAIRS) -> None:
    """The peer has a CHILD_SA for each pair, the first of them from IKE_AUTH."""
    theirs, tenants = pairs[0]
    asked = replace(w.peer.config, remote_ts=(theirs,), local_ts=(tenants,))
    w.peer.configure(asked)
    await w.up()
    w.peer.configure(w.cluster.tenants[0].tunnels[0])
    for pair in pairs[1:]:
        assert isinstance(await create(w, *pair), ChildEstablished)
    await at_rest(w, len(pairs))


async def at_rest(w: World, count: int) -> None:
    """That many CHILD_SAs at both ends, the same ones, on one GPN; nothing else is left."""

    def quiet() -> bool:
        return (
            len(w.peer.opens) == count
            and len(w.tunnel.sas) == count
            and w.tunnel.settled
            and not w.peer.waits
            and not w.sad.asked
            and all(node.synced for node in w.nodes.all.values() if node.runs)
        )

    await w.until(quiet, 240)
    await w.settle(1)
    assert {sa.spi for sa in w.tunnel.seals} == {child.spi_out for child in w.peer.opens.values()}
    assert {pair_of(child) for child in w.peer.opens.values()} == {
        pair_of(sa.child, ours=True) for sa in w.tunnel.seals
    }
    w.check_clean()


def pair_of(child: ChildSa, *, ours: bool = False) -> tuple[str, str]:
    sides = child.remote_ts if ours else child.local_ts, child.local_ts if ours else child.remote_ts
    return str(sides[0][0]), str(sides[1][0])


def child(w: World, pair: tuple[str, str]) -> ChildSa:
    """The peer's CHILD_SA of a pair."""
    wanted = selectors(*pair)
    return next(c for c in reversed(w.peer.opens.values()) if (c.local_ts, c.remote_ts) == wanted)


def gpns(w: World) -> set[str]:
    return {sa.gpn for sa in w.tunnel.seals}


def elsewhere(w: World) -> str:
    return next(name for name in ("gpn-3", "gpn-2") if name not in gpns(w))


# ---- side by side


async def test_each_pair_of_subnets_has_its_child_sa_and_route(autojump_clock: MockClock) -> None:
    async with world() as w:
        await up(w)
        assert len(w.tunnel.ikes) == 1
        routes = [record for record in w.nodes.all["gen-1"].held.values() if isinstance(record, Route)]
        assert sorted((route.tunnel, route.prefixes) for route in routes) == [
            ("acme/hq", (A1,)),
            ("acme/hq#2", (A2,)),
            ("acme/hq#3", (A1,)),
        ]
        status = await w.tunnel_status()
        assert status.state == "up"


async def test_one_beside_the_others_seals_before_its_peer_hears_of_it(autojump_clock: MockClock) -> None:
    """Whose first packet may be answered at once; or who says nothing, and waits for the tenant's."""
    async with world(delay=(0.0001, 0.02)) as w:
        await up(w, PAIRS[:1])
        w.peer.silent = True
        w.log.clear()
        await create(w, *PAIRS[1])
        w.ordered(
            ("wire", "peer", "CREATE_CHILD_SA", False),
            ("acknowledged", "gpn-1", ("rule", f"{TUNNEL}#2")),
            ("acknowledged", "gen-1", ("route", f"{TUNNEL}#2")),
            ("wire", "gmn", "CREATE_CHILD_SA", True),
        )
        assert len(w.tunnel.seals) == 2


async def test_a_tunnel_has_a_bounded_number(autojump_clock: MockClock) -> None:
    async with world() as w:
        await up(w, tuple((f"10.2.0.{16 * i}/28", B1) for i in range(STRANDS)))
        refused = await create(w, f"10.2.0.{16 * STRANDS}/28", B1)
        assert isinstance(refused, ExchangeFailed)
        assert refused.notify == NotifyType.NO_ADDITIONAL_SAS
        await at_rest(w, STRANDS)


async def test_one_for_all_takes_over_from_all(autojump_clock: MockClock) -> None:
    async with world() as w:
        await up(w)
        w.peer.create()
        await at_rest(w, 1)
        assert w.tunnel.standing


async def test_the_rest_goes_on_when_one_is_deleted_and_its_place_is_taken_again(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        await up(w)
        for pair in PAIRS[:2]:
            w.peer.delete(child(w, pair).spi_in)
        await at_rest(w, 1)
        assert w.tunnel.standing
        assert len(w.tunnel.ikes) == 1
        assert isinstance(await create(w, *PAIRS[1]), ChildEstablished)
        await at_rest(w, 2)
        assert len(w.tunnel.strands) == len(PAIRS)
        for each in list(w.peer.opens.values()):
            w.peer.delete(each.spi_in)
        await w.until(lambda: not w.tunnel.seals)
        assert not w.tunnel.standing
        await w.until(lambda: not w.tunnel.ikes)  # without any CHILD_SA


@pytest.mark.parametrize("lazy", [False, True])
async def test_each_is_rekeyed_from_either_side(autojump_clock: MockClock, lazy: bool) -> None:
    async with world() as w:
        await up(w)
        w.peer.lazy = lazy
        first = {sa.spi for sa in w.tunnel.seals}
        for pair in PAIRS:
            w.peer.rekey(child(w, pair))
        await at_rest(w, len(PAIRS))
        second = {sa.spi for sa in w.tunnel.seals}
        await w.migrations.rekey(w.tunnel)
        await at_rest(w, len(PAIRS))
        assert not first & second
        assert not second & {sa.spi for sa in w.tunnel.seals}


async def test_a_new_ike_sa_takes_over_each(autojump_clock: MockClock) -> None:
    async with world() as w:
        await up(w)
        before = set(w.tunnel.ikes)
        old = set(w.peer.ikes)
        w.peer.configure(replace(w.peer.config, remote_ts=(A1,), local_ts=(B1,)))
        w.peer.dial()
        await w.until(lambda: len(w.peer.ikes - old) == 1)
        w.peer.configure(w.cluster.tenants[0].tunnels[0])
        (new,) = w.peer.ikes - old
        for pair in PAIRS[1:]:
            w.peer.engine.create_child(new, w.peer.spi(), trio.current_time(), selectors(*pair))
        w.peer.work()
        await w.until(lambda: not before & w.tunnel.ikes)
        await at_rest(w, len(PAIRS))
        assert {sa.ike for sa in w.tunnel.seals} == w.tunnel.ikes


async def test_each_ages_by_itself(autojump_clock: MockClock) -> None:
    async with world() as w:
        await up(w)
        before = {sa.spi for sa in w.tunnel.seals}
        await w.until(lambda: not before & {sa.spi for sa in w.tunnel.seals}, limit=7200, every=5)
        await at_rest(w, len(PAIRS))


# ---- moved


@pytest.mark.parametrize("lazy", [False, True])
async def test_all_move_together(autojump_clock: MockClock, lazy: bool) -> None:
    async with world(delay=(0.0001, 0.02)) as w:
        await up(w)
        w.peer.lazy = lazy
        source, target = gpns(w).pop(), elsewhere(w)
        moved = await w.migrations.migrate(w.tunnel.id, target)
        assert (moved.source, moved.to) == (source, target)
        assert gpns(w) == {target}
        await at_rest(w, len(PAIRS))


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_the_peer_does_meanwhile(autojump_clock: MockClock, seed: int) -> None:
    """Rekeys, DELETEs and new CHILD_SAs at any moment of a move: in the end all are on one GPN."""
    async with world(seed, delay=(0.0001, 0.02)) as w:
        await up(w)
        chance = Random(seed)
        w.peer.lazy = chance.random() < 0.5
        target = elsewhere(w)
        acts: list[Callable[[], object]] = [
            lambda: w.peer.rekey(child(w, PAIRS[1])),
            lambda: w.peer.delete(child(w, PAIRS[2]).spi_in),
            lambda: w.peer.create(selectors(A2, B1)),
        ]
        failures: list[ProtegoError] = []

        async def move() -> None:
            try:
                await w.migrations.migrate(w.tunnel.id, target)
            except ProtegoError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            await w.settle(chance.uniform(0, 0.1))
            acts[seed % len(acts)]()
        await w.settle(20)
        await at_rest(w, len(w.peer.opens))
        if not failures:
            assert gpns(w) == {target}


@pytest.mark.parametrize("refused", [1, 2, 3])
async def test_none_moves_when_one_cannot_be_rekeyed(autojump_clock: MockClock, refused: int) -> None:
    async with world() as w:
        await up(w)
        before, asked = {sa.spi for sa in w.tunnel.seals}, 0

        def refuse() -> ProtocolError | None:
            nonlocal asked
            asked += 1
            return NoAdditionalSas("no more") if asked == refused else None

        w.peer.refuse = refuse
        target = elsewhere(w)
        with pytest.raises(Refused, match="NO_ADDITIONAL_SAS"):
            await w.migrations.migrate(w.tunnel.id, target)
        assert {sa.spi for sa in w.tunnel.seals} == before
        await at_rest(w, len(PAIRS))
        await w.migrations.migrate(w.tunnel.id, target)
        await at_rest(w, len(PAIRS))
        assert gpns(w) == {target}


async def test_the_target_dies_before_all_are_there(autojump_clock: MockClock) -> None:
    async with world() as w:
        await up(w)
        before, target = {sa.spi for sa in w.tunnel.seals}, elsewhere(w)
        asked = 0

        def refuse() -> None:
            nonlocal asked
            asked += 1
            if asked == 2:
                w.watching = False  # what stands aside there is lost with it, till it is deleted
                w.tasks.start_soon(w.nodes.stop, target)

        w.peer.refuse = refuse
        with pytest.raises(ProtegoError):
            await w.migrations.migrate(w.tunnel.id, target)
        await at_rest(w, len(PAIRS))
        assert {sa.spi for sa in w.tunnel.seals} == before


async def test_a_drain_moves_them_together(autojump_clock: MockClock) -> None:
    async with world() as w:
        await up(w)
        (source,) = gpns(w)
        w.gpns.drains.drain(source)
        w.peer.rekey(child(w, PAIRS[0]))  # stays with the others, and moves with them
        await w.until(lambda: source not in gpns(w))
        await at_rest(w, len(PAIRS))


async def test_the_death_of_their_gpn_parts_them_for_a_moment_only(autojump_clock: MockClock) -> None:
    async with world() as w:
        await up(w)
        (source,) = gpns(w)
        w.watching = False  # the SAs it held are nowhere
        await w.nodes.stop(source)
        w.peer.rekey(child(w, PAIRS[0]))
        await w.until(lambda: source not in gpns(w))
        await w.settle(1)
        w.watching = True
        await at_rest(w, len(PAIRS))


# ---- the GMN ends and returns


@pytest.mark.parametrize("name", ["rekeyed", "aside", "distributed", "round-trip", "deleted"])
@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_a_gmn_that_ends_in_a_move_completes_it(
    autojump_clock: MockClock, name: str, turn: int
) -> None:
    async with world() as w:
        await up(w)
        target, passed = elsewhere(w), 0

        def hook(found: str) -> None:
            nonlocal passed
            if found == f"migration.{name}" and w.socket.alive:
                passed += 1
                if passed == min(turn, 3 if name in ("rekeyed", "aside") else 1):
                    crash.hook = None
                    w.kill_gmn()

        crash.hook = hook
        try:
            w.life_task(w.migrations.migrate, w.tunnel.id, target)
            await w.gmn_ended()
        finally:
            crash.hook = None
        await w.gmn_returns()
        await w.settle(30)
        await at_rest(w, len(PAIRS))
        assert gpns(w) == {target}


@pytest.mark.parametrize("seed", range(3))
async def test_a_rekey_that_is_held_in_a_new_life_waits_for_nothing_that_waits_for_it(
    autojump_clock: MockClock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The move of one SA was completed by its peer's DELETE, another rekey is not answered: the new life has
    to end the former under the IKE_SA that the latter holds up.
    """
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    scheduler._r.seed(seed)
    asked = 0

    def lost(sender: str, exchange: int, response: bool) -> bool:
        nonlocal asked
        rekey = sender == "gmn" and exchange == ExchangeType.CREATE_CHILD_SA and not response
        asked += rekey
        return rekey and asked > 1

    async with world() as w:
        await up(w, PAIRS[:2])
        w.lost = lost
        w.life_task(w.migrations.migrate, w.tunnel.id, elsewhere(w))
        await w.until(lambda: asked == 2)
        new = next(strand.aside for strand in w.tunnel.strands if strand.aside is not None)
        old = new.strand.sealing
        assert old is not None
        w.peer.delete(old.child.spi_out)
        await w.until(lambda: new.seals and old.retiring)
        await w.settle(0.2)
        w.kill_gmn()
        w.lost = lambda sender, exchange, response: False
        await w.gmn_returns()
        await at_rest(w, 2)


async def test_records_of_versions_that_knew_one_child_sa_are_read(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        (placed,) = w.tunnel.sas.values()
        *fields, strand = msgspec.msgpack.decode(store_sa(placed, 1))
        assert strand == 1
        again, granted, number = load_sa(msgspec.msgpack.encode(fields))
        assert (again.spi, granted, number) == (placed.spi, 1, 1)
        *fields, others = msgspec.msgpack.decode(store_tunnel(w.tunnel))
        assert not others
        stored = load_tunnel(msgspec.msgpack.encode(fields))
        assert [each.sealing for each in stored.strands] == [placed.spi]
        fields = [*msgspec.msgpack.decode(store_sa(placed, 1))[:-1], STRANDS + 1]
        with pytest.raises(EnvironmentFault, match="cannot read"):
            load_sa(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("seed", range(8))
async def test_a_gmn_that_ends_at_any_time_knows_them_again(autojump_clock: MockClock, seed: int) -> None:
    async with world(seed, delay=(0.0001, 0.02)) as w:
        await up(w)
        chance = Random(seed)
        pairs = {pair_of(sa.child, ours=True): sa.strand.number for sa in w.tunnel.seals}
        w.life_task(w.migrations.migrate, w.tunnel.id, elsewhere(w))
        if chance.random() < 0.5:
            await w.settle(chance.uniform(0, 0.05))
            w.peer.rekey(child(w, PAIRS[seed % 3]))
        await w.settle(chance.uniform(0, 0.15))
        w.kill_gmn()
        await w.gmn_returns()
        await w.settle(40)
        await at_rest(w, len(PAIRS))
        assert {pair_of(sa.child, ours=True): sa.strand.number for sa in w.tunnel.seals} == pairs
        await w.migrations.migrate(w.tunnel.id, elsewhere(w))
        await at_rest(w, len(PAIRS))
