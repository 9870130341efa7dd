"""Migration: the order of its steps, whoever answers late, dies or rekeys between any two of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protego_cli.control.channel.desired_records import Rule, Sa, Steer
from protego_cli.control.channel.operator_messages import Migrated
from protego_cli.control.sas.ranges import EXTENDED_SIZE
from protego_cli.control.sas.tunnel import Placed
from protego_cli.control.state import crash
from protego_cli.errors import NoAdditionalSas, NotFound, ProtegoError, Refused, TemporaryFailure
from protego_cli.ike.events import ChildEstablished, ExchangeFailed
from protego_cli.wire.payloads import ExchangeType
from tests.support.gmn_world import TUNNEL, World, world
from tests.support.stores import MemoryStore

GINS = ("gin-1", "gin-2")
GENS = ("gen-1", "gen-2")


def sealing(w: World) -> Placed:
    placed = w.tunnel.sealing
    assert placed is not None
    return placed


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    crash.hook = None


async def migrated(w: World, to: str) -> Migrated:
    return await w.migrations.migrate(TUNNEL, to)


# ---- the order of the steps


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("by", ["peer", "gateway"])
@pytest.mark.parametrize("seed", range(4))
async def test_every_step_waits_for_the_one_before(
    autojump_clock: MockClock, seed: int, by: str, lazy: bool
) -> None:
    """Whatever order the nodes answer in: their delays are from the seed, up to 50 ms."""
    async with world(seed, delay=(0.0001, 0.05), start="auto") as w:
        w.peer.lazy = lazy
        await w.up(by=by)  # type: ignore[arg-type]
        old = sealing(w)
        w.log.clear()
        await migrated(w, "gpn-2")
        new = sealing(w)
        await w.settle(10)

        steer, park, sa = ("steer", new.spi), ("park", new.spi), ("sa", new.spi)
        rekey = ("wire", "gmn", "CREATE_CHILD_SA", False)
        installed = ("acknowledged", "gpn-2", sa, ("rule", TUNNEL))
        diverted, unruled = Rule(TUNNEL, old.spi, direct=False), ("drop", "gpn-1", ("rule", TUNNEL))
        w.ordered(
            rekey,
            ("put", "gpn-1", diverted),
            ("acknowledged", "gpn-1", ("rule", TUNNEL)),
            ("wire", "gmn", "INFORMATIONAL", False),  # the round trip: nothing is sealed there any more
            unruled,
        )
        for gin in GINS:
            w.ordered(("acknowledged", gin, steer), rekey)
        w.ordered(("acknowledged", "gpn-2", park), rekey, ("wire", "peer", "CREATE_CHILD_SA", True))
        w.ordered(rekey, ("sent", "gpn-2", sa), installed)
        for gen in GENS:
            w.ordered(installed, ("sent", gen, ("route", TUNNEL)), ("barrier", gen, "gpn-1"))
            w.ordered(("acknowledged", gen, ("route", TUNNEL)), unruled)
            w.never_before(unruled, ("acknowledged", gen, ("route", TUNNEL)))
            w.never_before(("wire", "gmn", "INFORMATIONAL", False), ("acknowledged", gen, ("route", TUNNEL)))
        w.ordered(
            ("wire", "gmn", "INFORMATIONAL", False),  # the round trip
            ("wire", "peer", "INFORMATIONAL", True),
            ("wire", "gmn", "INFORMATIONAL", False),
            ("peer deletes", old.spi),
            ("wire", "peer", "INFORMATIONAL", True),
            ("sent", "gpn-1", ("sa", old.spi)),
        )
        for gin in GINS:
            w.ordered(("peer deletes", old.spi), ("sent", gin, ("steer", old.spi)))
        w.check_clean()


async def test_the_new_sa_is_installed_while_it_is_stored_and_nothing_routed_to_it_before(
    autojump_clock: MockClock,
) -> None:
    async with world(delay=(0.001, 0.001), store=MemoryStore(delay=0.1)) as w:
        await w.up()
        await w.settle()
        w.log.clear()
        crash.hook = lambda name: w.nodes.note("commit", name) if name == "journal.after-commit" else None
        await migrated(w, "gpn-2")
        new, commit = sealing(w), ("commit", "journal.after-commit")
        answer, put = ("wire", "peer", "CREATE_CHILD_SA", True), ("acknowledged", "gpn-2", ("sa", new.spi))
        w.ordered(commit, ("wire", "gmn", "CREATE_CHILD_SA", False), answer, put, commit)
        behind = w.log[w.log.index(answer) :]
        assert behind.index(commit) > next(i for i, entry in enumerate(behind) if entry[0] == "acknowledged")
        for gen in GENS:
            assert behind.index(commit) < behind.index(("sent", gen, ("route", TUNNEL)))


async def test_the_old_sa_lingers_and_is_gone_then(autojump_clock: MockClock) -> None:
    async with world(linger=5.0) as w:
        await w.up()
        old = sealing(w)
        await migrated(w, "gpn-2")
        await trio.sleep(4.9)
        assert old.spi in w.on("gpn-1", "sa")
        assert old.spi in w.on("gin-1", "steer")
        assert w.nodes.all["gpn-1"].held["rule", TUNNEL] == Rule(TUNNEL, old.spi, direct=False)
        await trio.sleep(0.2)
        assert w.on("gpn-1", "sa") == w.on("gpn-1", "rule") == set()
        assert w.on("gin-1", "steer") == {sealing(w).spi}
        w.check_clean()
        steer, log = ("steer", old.spi), w.log
        told = [place for place, entry in enumerate(log) if entry[0] == "acknowledged" and steer in entry[2:]]
        assert max(told) < log.index(("drop", "gpn-1", ("sa", old.spi))), (
            "a GIN may have its packets till then"
        )


async def test_the_times_are_those_of_the_steps(autojump_clock: MockClock) -> None:
    async with world(delay=(0.004, 0.004), store=MemoryStore(delay=0.0)) as w:
        w.wire_delay = (0.01, 0.01)
        await w.up()
        found = await migrated(w, "gpn-2")
        assert (found.tunnel, found.source, found.to, found.method) == (TUNNEL, "gpn-1", "gpn-2", "rekey")
        # steering 8 ms and a round trip to the peer; SA, route and barrier; two round trips
        assert found.rekey_ms == pytest.approx(28)
        assert found.distribute_ms == pytest.approx(8 + 12)
        assert found.total_ms == pytest.approx(28 + 20 + 40)


@pytest.mark.parametrize("lazy", [False, True])
async def test_many_migrations_leave_nothing_behind(autojump_clock: MockClock, lazy: bool) -> None:
    async with world(7, tunnels=4) as w:
        for peer in w.peers.values():
            peer.lazy = lazy
        await w.up()
        for round_ in range(6):
            async with trio.open_nursery() as nursery:
                for i, tunnel in enumerate(w.sad.tunnels.values()):
                    here = tunnel.sealing.gpn if tunnel.sealing else ""
                    targets = [gpn for gpn in ("gpn-1", "gpn-2", "gpn-3") if gpn != here]
                    nursery.start_soon(w.migrations.migrate, tunnel.id, targets[(i + round_) % 2])
        await w.settle(10)
        w.check_clean()
        assert len(vars(w.sad)["_by_spi"]) == 4


async def test_migrating_back_at_once_reuses_the_gpn_whose_old_sa_lingers(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await migrated(w, "gpn-2")
        await migrated(w, "gpn-1")
        rule = w.nodes.all["gpn-1"].held["rule", TUNNEL]
        assert isinstance(rule, Rule)
        assert rule.spi_in == sealing(w).spi
        await w.settle(10)  # the end of the linger of either old SA touches nothing of the new one
        w.check_clean()


# ---- what is refused


@pytest.mark.parametrize(
    ("tunnel", "to", "error", "text"),
    [
        ("acme/hw", "gpn-2", NotFound, "there is no tunnel 'acme/hw'; did you mean acme/hq?"),
        ("nothing-like-it", "gpn-2", NotFound, "there is no tunnel 'nothing-like-it'"),
        (TUNNEL, "gpn2", NotFound, "there is no node 'gpn2'; did you mean gpn-2"),
        (TUNNEL, "gin-1", Refused, "gin-1 is a GIN; tunnels live on GPNs"),
        (TUNNEL, "gpn-1", Refused, "acme/hq is on gpn-1 already"),
        (TUNNEL, "gpn-3", Refused, "gpn-3 is down"),
    ],
)
async def test_what_makes_no_sense_is_refused_in_one_sentence(
    autojump_clock: MockClock, tunnel: str, to: str, error: type[ProtegoError], text: str
) -> None:
    async with world() as w:
        await w.up()
        await w.nodes.stop("gpn-3")
        w.log.clear()
        with pytest.raises(error) as caught:
            await w.migrations.migrate(tunnel, to)
        assert str(caught.value).startswith(text)
        assert w.log == []


@pytest.mark.parametrize("node", ["gin-1", "gen-1"])
async def test_nothing_moves_while_a_node_that_steers_is_cut_off(
    autojump_clock: MockClock, node: str
) -> None:
    async with world() as w:
        await w.up()
        await w.nodes.stop(node)
        w.log.clear()
        with pytest.raises(Refused, match=f"{node} is cut off"):
            await w.migrations.migrate(TUNNEL, "gpn-2")
        assert w.log == []


async def test_a_tunnel_that_is_not_up_has_nothing_to_move(autojump_clock: MockClock) -> None:
    async with world() as w:
        with pytest.raises(Refused, match="not up"):
            await migrated(w, "gpn-2")


async def test_a_second_migration_of_a_tunnel_is_refused_while_the_first_runs(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        await w.up()
        w.tasks.start_soon(migrated, w, "gpn-2")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused, match="being moved to gpn-2"):
            await migrated(w, "gpn-3")
        await w.until(lambda: sealing(w).gpn == "gpn-2")
        await w.settle(1)
        await migrated(w, "gpn-3")


# ---- a rekey that fails


async def test_a_peer_that_refuses_to_rekey_keeps_its_old_sa(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        w.peer.refuse = lambda: NoAdditionalSas("no more")
        with pytest.raises(Refused, match="NO_ADDITIONAL_SAS"):
            await migrated(w, "gpn-2")
        assert sealing(w) is old
        await w.settle(1)
        w.check_clean()


async def test_a_temporary_failure_is_tried_again(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        answers = [TemporaryFailure("busy"), TemporaryFailure("busy"), None]
        w.peer.refuse = lambda: answers.pop(0)
        await migrated(w, "gpn-2")
        assert answers == []
        assert sealing(w).gpn == "gpn-2"


async def test_a_peer_that_is_busy_for_ever_is_left_alone_at_last(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        w.peer.refuse = lambda: TemporaryFailure("busy")
        with pytest.raises(Refused, match="TEMPORARY_FAILURE"):
            await migrated(w, "gpn-2")
        await w.settle(1)
        w.check_clean()


async def test_a_peer_that_does_not_answer_loses_its_ike_sa_and_nothing_stays(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        await w.up()
        w.peer.deaf = True
        w.watching = False
        with pytest.raises(Refused, match="does not answer"):
            await migrated(w, "gpn-2")
        await w.settle(10)
        assert w.tunnel.sealing is None
        assert (await w.tunnel_status()).state == "down"
        assert not any(node.held for node in w.nodes.all.values())


# ---- nodes that die


@pytest.mark.parametrize("victim", ["gpn-1", "gpn-2", "gin-1", "gen-1"])
@pytest.mark.parametrize("step", range(0, 36, 2))
async def test_a_node_may_die_between_any_two_steps(
    autojump_clock: MockClock, victim: str, step: int
) -> None:
    """The peer's packets find a GPN that has or awaits their SA, no tunnel is left half moved, and once the
    node is back everything is as if nothing had happened.
    """
    async with world(step) as w:
        await w.up()
        await w.settle()
        w.log.clear()
        struck = False

        def strike(entry: tuple[object, ...]) -> None:
            nonlocal struck
            if len(w.log) > step and not struck:
                struck = True
                w.tasks.start_soon(w.nodes.stop, victim)

        w.nodes.tap = strike
        try:
            await migrated(w, "gpn-2")
        except ProtegoError as error:
            assert victim in str(error) or "gone" in str(error)  # noqa: PT017 - it may as well succeed
        w.nodes.tap = lambda entry: None
        await w.settle(1)
        if struck:
            await w.nodes.start(victim)
        await w.settle(15)
        w.check_clean()
        assert (await w.tunnel_status()).state == "up"
        here = sealing(w).gpn
        await migrated(w, "gpn-3" if here != "gpn-3" else "gpn-1")


async def test_the_new_sa_goes_back_when_the_target_dies_after_the_rekey(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)

        def strike(entry: tuple[object, ...]) -> None:
            if entry[:3] == ("wire", "peer", "CREATE_CHILD_SA"):
                w.nodes.kill("gpn-2")
            if entry[0] == "marks":
                steers = (w.nodes.all[gin].held[("steer", int(str(entry[1])))] for gin in ("gin-1", "gin-2"))
                steered.append({steer.gpn for steer in steers if isinstance(steer, Steer)})

        steered: list[set[str]] = []
        w.nodes.tap = strike
        with pytest.raises(Refused, match="gpn-2 is gone or refuses the SA; acme/hq is on gpn-1 now"):
            await migrated(w, "gpn-2")
        assert steered == [{"gpn-1"}], "what passes gpn-2 after the marks could be opened twice"
        new = sealing(w)
        assert new is not old
        assert new.gpn == "gpn-1"
        assert new.numbers.lo == EXTENDED_SIZE  # the first range may have been used on gpn-2
        w.never_before(("peer deletes", old.spi), ("acknowledged", "gpn-1", ("sa", new.spi)))
        await w.settle(10)
        assert (await w.tunnel_status()).state == "up"


async def test_a_peer_that_deletes_the_new_sa_at_once_keeps_its_tunnel_as_it_was(
    autojump_clock: MockClock,
) -> None:
    async with world(delay=(0.005, 0.005)) as w:
        await w.up()
        old = sealing(w)
        rules: list[Rule] = []

        def strike(entry: tuple[object, ...]) -> None:
            if entry[:2] == ("put", "gpn-1") and isinstance(entry[2], Rule):
                rules.append(entry[2])
            if entry[:2] == ("put", "gpn-2") and isinstance(entry[2], Sa):
                w.peer.delete(list(w.peer.opens)[-1])

        w.nodes.tap = strike
        with pytest.raises(Refused, match="deleted the new SA at once; it stays on gpn-1"):
            await migrated(w, "gpn-2")
        await w.settle(10)
        assert [rule.direct for rule in rules] == [False, True]
        assert sealing(w) is old
        w.check_clean()
        w.nodes.tap = lambda entry: None
        await migrated(w, "gpn-2")


async def test_a_barrier_that_is_not_echoed_does_not_stop_the_migration(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()

        def strike(entry: tuple[object, ...]) -> None:
            if entry[0] == "sent" and entry[1] == "gen-1":
                w.nodes.kill("gpn-1")

        w.nodes.tap = strike
        await migrated(w, "gpn-2")
        assert sealing(w).gpn == "gpn-2"
        assert (await w.tunnel_status()).state == "up"


async def test_a_tunnel_moves_off_a_gpn_that_is_down(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.nodes.stop("gpn-1")
        assert (await w.tunnel_status()).state == "down"
        await migrated(w, "gpn-2")
        assert (await w.tunnel_status()).state == "up"


# ---- collisions (RFC 7296 2.8.1)


@pytest.mark.parametrize("ahead", [-2, 0, 2, 4, 6, 8, 10, 12])
@pytest.mark.parametrize("seed", range(3))
async def test_a_rekey_of_the_peer_at_any_moment_ends_on_the_target(
    autojump_clock: MockClock, seed: int, ahead: int
) -> None:
    """The peer rekeys `ahead` steps after the migration has begun, or just before it begins."""
    async with world(seed) as w:
        await w.up()
        await w.settle()
        w.log.clear()
        asked = False

        def cross(entry: tuple[object, ...]) -> None:
            nonlocal asked
            if len(w.log) > ahead and not asked:
                asked = True
                w.peer.rekey()

        if ahead < 0:
            w.peer.rekey()
        else:
            w.nodes.tap = cross
        await migrated(w, "gpn-2")
        await w.settle(15)
        assert sealing(w).gpn == "gpn-2"
        w.check_clean()
        assert len(w.peer.opens) == 1


async def test_both_outcomes_of_a_crossing_occur_and_both_complete_on_the_target(
    autojump_clock: MockClock,
) -> None:
    outcomes = set()
    for seed in range(12):
        async with world(seed) as w:
            w.wire_delay = (0.02, 0.02)  # long enough for the requests to cross
            await w.up()
            await w.settle()

            def cross(entry: tuple[object, ...], w: World = w) -> None:
                if entry[:3] == ("wire", "gmn", "CREATE_CHILD_SA"):
                    w.nodes.tap = lambda entry: None
                    w.peer.rekey()

            w.nodes.tap = cross
            await migrated(w, "gpn-2")
            await w.settle(15)
            w.check_clean()
            assert sealing(w).gpn == "gpn-2"
            made = [event for event in w.peer.events if isinstance(event, ChildEstablished)]
            outcomes.add(made[-1].redundant)
    assert outcomes == {True, False}


async def test_every_spi_the_peer_gets_during_a_migration_lies_on_the_target(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        await w.up()
        w.lost = lambda sender, exchange, response: (
            sender == "gmn" and exchange == ExchangeType.CREATE_CHILD_SA
        )
        w.tasks.start_soon(migrated, w, "gpn-2")
        await w.settle()
        w.lost = lambda sender, exchange, response: False
        w.peer.rekey()
        await w.until(lambda: sealing(w).gpn == "gpn-2")
        await w.settle(15)
        assert not any(isinstance(event, ExchangeFailed) for event in w.peer.events[-3:])
        w.check_clean()
