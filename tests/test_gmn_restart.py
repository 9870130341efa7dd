"""The GMN is killed at every named point, and at any other, and carries on: no peer notices.

`World.watch` holds the promises all the while: on whatever SA a peer may seal a GPN opens, whatever is routed
is sealed on an SA that the peer can open, no sealing number is given to two processes. Peers are real
engines: a message ID or a state that went back would fail their exchanges, or close their IKE_SA.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path as FilePath
from random import Random

import msgspec
import pytest
import trio
import trio.testing
from trio._core import _run as scheduler
from trio.testing import MockClock

from protego_cli.control.channel.desired_records import Park, Sa, Steer
from protego_cli.control.sas.ranges import EXTENDED_SIZE
from protego_cli.control.state import crash
from protego_cli.errors import ChildSaNotFound, TemporaryFailure
from protego_cli.ike.events import ExchangeFailed, IkeClosed, NegotiationFailed
from tests.support.gmn_world import TUNNEL, World, world
from tests.support.stores import KilledSqlite, MemoryStore


@pytest.fixture(autouse=True)
def _no_hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test hooks ends with it. Tasks run in an order that the seed decides, as all else does."""
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    yield
    crash.hook = None


async def migrate(w: World) -> None:
    sealing = w.tunnel.sealing
    assert sealing is not None
    to = "gpn-2" if sealing.gpn != "gpn-2" else "gpn-3"
    w.life_task(w.migrations.migrate, TUNNEL, to)


async def handshake(w: World) -> None:
    w.peer.dial()


async def dial(w: World) -> None:
    w.life_task(w.keeper.run)


async def their_rekey(w: World) -> None:
    w.peer.rekey()


async def their_delete(w: World) -> None:
    """Of the older one of two."""
    w.peer.tidy = False
    w.peer.rekey()
    await w.until(lambda: len(w.peer.opens) == 2 and w.tunnel.settled)
    w.peer.tidy = True
    w.peer.delete(next(iter(w.peer.opens)))


async def both_rekey(w: World) -> None:
    await migrate(w)
    await trio.sleep(w.random.uniform(0, 0.012))
    w.peer.rekey()


async def ike_rekey(w: World) -> None:
    w.life_task(w.driver.rekey_ike, next(iter(w.tunnel.ikes)))


async def redial(w: World) -> None:
    """The peer has forgotten nothing, but makes another IKE_SA; the newer one takes over."""
    w.peer.dial()


async def gpn_restart(w: World) -> None:
    assert w.tunnel.sealing is not None
    gpn = w.tunnel.sealing.gpn
    w.watching = False  # the SAs it held are nowhere for the moment
    await w.nodes.stop(gpn)
    await w.nodes.start(gpn)


COLLISIONS = (TemporaryFailure.notify, ChildSaNotFound.notify)  # as RFC 7296 2.25 has it
BEFORE_UP: list[Callable[[World], Awaitable[None]]] = [handshake, dial]
WHEN_UP: list[Callable[[World], Awaitable[None]]] = [
    migrate,
    their_rekey,
    their_delete,
    both_rekey,
    ike_rekey,
    redial,
    gpn_restart,
]


async def settled(w: World) -> None:
    """All that was under way has come to its end, on both sides, without an error."""
    await w.settle(0.2)
    await w.until(w.agreed, 240.0)
    await w.settle(1.0)
    w.check_clean()


def complaints(w: World) -> list[object]:
    """What a peer saw that it should not have: an error that is no collision's, or nothing at all."""
    return [
        event
        for peer in w.peers.values()
        for event in peer.events
        if (isinstance(event, ExchangeFailed) and event.notify not in (None, *COLLISIONS))
        or isinstance(event, NegotiationFailed)
        or (isinstance(event, IkeClosed) and "does not answer" in event.reason)
    ]


async def still_works(w: World) -> None:
    """Both sides can rekey, and the tunnel moves."""
    w.peer.rekey()
    await settled(w)
    await migrate(w)
    await settled(w)
    assert complaints(w) == []


def killing(w: World, at: Callable[[str], bool]) -> None:
    """Kill the GMN at the first crash point that `at` accepts."""

    def hook(name: str) -> None:
        if w.socket.alive and at(name):
            crash.hook = None
            w.kill_gmn()

    crash.hook = hook


async def prepared(w: World, act: Callable[[World], Awaitable[None]], lazy: bool) -> None:
    w.peer.lazy = lazy
    if act not in BEFORE_UP:
        await w.up()
        await w.settle(1.0)


@pytest.mark.parametrize("act", BEFORE_UP + WHEN_UP)
async def test_every_crash_point_of_every_procedure(
    autojump_clock: MockClock, act: Callable[[World], Awaitable[None]], tmp_path: FilePath
) -> None:
    """One run of the world dies each time a crash point is passed; every other time, of some procedures."""
    number = 0
    while True:
        number += 1 if act in (handshake, migrate, redial) else 2
        place = tmp_path / str(number)
        place.mkdir()
        passed = 0
        scheduler._r.seed(number)

        def nth(name: str) -> bool:
            nonlocal passed
            passed += 1
            return passed == number  # noqa: B023 - it is used within this round

        start = "auto" if act is dial else "wait"
        async with world(number, start=start, store=KilledSqlite(place)) as w:
            await prepared(w, act, lazy=number % 2 == 0)
            killing(w, nth)
            w.tasks.start_soon(act, w)
            with trio.move_on_after(12.0):
                await w.gmn_ended()
            died = not w.socket.alive
            crash.hook = None
            if died:
                await trio.sleep(w.random.uniform(0, 2))
                await w.gmn_returns(keeper=act is dial)
            await settled(w)
            w.watching = True
            await still_works(w)
        if not died:
            break
    assert number > 5


@pytest.mark.parametrize("seed", range(20))
async def test_killed_at_any_time_again_and_again(autojump_clock: MockClock, seed: int) -> None:
    scheduler._r.seed(seed)
    source = Random(seed)
    acts = (migrate, their_rekey, both_rekey, ike_rekey)
    async with world(seed, tunnels=2) as w:
        for peer in w.peers.values():
            peer.lazy = source.random() < 0.5
        await w.up()
        for _ in range(4):
            for _ in range(source.randint(1, 2)):
                await w.until(lambda: w.tunnel.sealing is not None and w.peer.opens)
                await source.choice(acts)(w)
            await trio.sleep(source.choice((source.uniform(0, 0.03), source.uniform(0, 3))))
            w.kill_gmn()
            await trio.sleep(source.uniform(0, 3))
            await w.gmn_returns()
        await settled(w)
        await still_works(w)


@pytest.mark.parametrize("late", ["gin-1", "gin-2", "gpn-2"])
async def test_a_rekey_that_was_stored_leaves_no_new_life_before_the_nodes_know_its_spi(
    autojump_clock: MockClock, late: str
) -> None:
    """The request is stored while the nodes are told: the GMN dies between the two, and a node with it."""
    async with world(delay=(0.02, 0.02)) as w:
        await w.up()
        await w.settle(1.0)
        w.log.clear()
        killing(w, lambda name: name == "journal.after-commit")
        await migrate(w)
        await w.gmn_ended()
        (spi,) = (int.from_bytes(key[6:]) for key in w.store.held if key.startswith(b"asked/"))
        w.nodes.kill(late)
        w.tasks.start_soon(w.gmn_returns)
        await trio.sleep(4.5)
        assert not any(entry[0] == "wire" for entry in w.log)
        await w.nodes.start(late)
        await settled(w)
        sent = w.log.index(("wire", "gmn", "CREATE_CHILD_SA", False))
        put = [entry[2] for entry in w.log[:sent] if entry[:2] == ("put", late)]
        assert any(isinstance(record, Park | Steer) and record.spi == spi for record in put)
        await still_works(w)


async def installed_and_not_stored(w: World) -> int:
    """The GMN has died when a GPN had the new SA, and the journal did not. The SA's SPI."""
    await w.up()
    await w.settle(1.0)

    def strike(entry: tuple[object, ...]) -> None:
        if entry[:2] == ("put", "gpn-2") and isinstance(entry[2], Sa):
            w.nodes.tap = lambda entry: None
            w.kill_gmn()

    w.nodes.tap = strike
    await migrate(w)
    await w.gmn_ended()
    (spi,) = (int.from_bytes(key[6:]) for key in w.store.held if key.startswith(b"asked/"))
    assert b"sa/" + spi.to_bytes(4) not in w.store.held
    assert ("sa", spi) in w.nodes.all["gpn-2"].held
    return spi


async def test_nothing_is_sealed_before_the_answer_that_reveals_its_sa_is_stored(
    autojump_clock: MockClock,
) -> None:
    """A new life that knows nothing of an IKE_AUTH gets it again, and derives the same keys from it."""
    async with world(delay=(0.001, 0.001), store=MemoryStore(delay=0.01)) as w:
        killing(w, lambda name: name == "journal.before-commit" and ("sa" in acknowledged(w)))
        w.peer.dial()
        await w.gmn_ended()
        assert "rule" not in acknowledged(w)
        await w.gmn_returns()
        await settled(w)
        await still_works(w)


def acknowledged(w: World) -> set[object]:
    """The kinds of records that a GPN has confirmed."""
    confirmed = [key for entry in w.log if entry[:2] == ("acknowledged", "gpn-1") for key in entry[2:]]
    return {key[0] for key in confirmed if isinstance(key, tuple)}


async def test_an_sa_that_was_installed_and_not_stored_goes_on_in_the_same_process(
    autojump_clock: MockClock,
) -> None:
    """Nobody else can have had its numbers: it seals on in the range of its request, and opens all."""
    async with world(delay=(0.001, 0.001), store=MemoryStore(delay=0.1)) as w:
        spi = await installed_and_not_stored(w)
        await w.gmn_returns()
        await w.until(lambda: w.tunnel.sealing is not None and w.tunnel.sealing.spi == spi)
        sealing = w.tunnel.sealing
        assert sealing is not None
        assert (sealing.gpn, sealing.numbers.lo, sealing.opens) == ("gpn-2", 1, True)
        await settled(w)
        assert w.tunnel.sealing is sealing
        await still_works(w)


@pytest.mark.parametrize("dies_again", [False, True])
async def test_an_sa_that_was_installed_and_not_stored_begins_anew_in_another_process(
    autojump_clock: MockClock, dies_again: bool
) -> None:
    """Its numbers and what it has opened are gone with the process: another range, and it opens nothing."""
    async with world(delay=(0.001, 0.001), store=MemoryStore(delay=0.01)) as w:
        spi = await installed_and_not_stored(w)
        w.nodes.kill("gpn-2")
        w.lost = lambda sender, exchange, response: True  # the peer's answer takes its time
        await w.gmn_returns()
        await w.nodes.start("gpn-2")
        await w.settle(3.0)
        if dies_again:
            w.kill_gmn()
            await w.gmn_returns()
        w.lost = lambda sender, exchange, response: False
        placed: list[Sa] = []
        w.nodes.tap = lambda entry: (
            placed.append(entry[2]) if entry[0] == "put" and isinstance(entry[2], Sa) else None
        )
        await settled(w)
        first = next(sa for sa in placed if sa.spi_in == spi)
        assert (first.seal_lo, first.opens) == (EXTENDED_SIZE, False)
        await still_works(w)


async def test_a_rekey_that_is_due_ends_with_its_sa(autojump_clock: MockClock) -> None:
    """The peer closes its IKE_SA and dials anew while the new life waits for its nodes."""
    async with world() as w:
        await w.up()
        sealing = w.tunnel.sealing
        assert sealing is not None
        w.kill_gmn()
        w.nodes.kill("gen-2")  # it is waited for
        w.nodes.kill(sealing.gpn)  # what opens nothing there is rekeyed
        await w.gmn_returns()
        await w.nodes.start(sealing.gpn)
        await w.until(lambda: w.nodes.all["gin-1"].synced)
        assert not w.sad.gathered.is_set()
        w.watching = False  # what it has closed is routed until then
        w.peer.close()
        w.peer.dial()
        await w.until(lambda: w.sad.gathered.is_set() and w.is_up() and w.tunnel.settled)
        await w.until(lambda: not w.tunnel.moving.locked(), 2.0)
        await w.nodes.start("gen-2")
        await settled(w)
        w.watching = True
        await still_works(w)


async def test_a_gpn_that_left_the_file_meanwhile_is_replaced(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        sealing = w.tunnel.sealing
        assert sealing is not None
        gone, spi = sealing.gpn, sealing.spi
        w.watching = False
        w.kill_gmn()
        await w.gmn_ended()
        w.file = msgspec.structs.replace(
            w.file, nodes=tuple(node for node in w.file.nodes if node.name != gone)
        )
        w.nodes.kill(gone)
        del w.nodes.all[gone]
        await w.gmn_returns()
        await w.until(lambda: w.tunnel.sealing is not None and w.tunnel.sealing.spi != spi)
        await w.settle(10)
        w.watching = True
        await still_works(w)


async def test_a_gpn_that_left_the_file_while_a_tunnel_was_on_its_way_there_is_replaced(
    autojump_clock: MockClock,
) -> None:
    """The peer may have been asked: whatever SA it has has a place."""
    async with world() as w:
        await w.up()
        await w.settle(1.0)
        killing(w, lambda name: name == "migration.steered")
        await migrate(w)
        await w.gmn_ended()
        w.file = msgspec.structs.replace(
            w.file, nodes=tuple(node for node in w.file.nodes if node.name != "gpn-2")
        )
        w.nodes.kill("gpn-2")
        del w.nodes.all["gpn-2"]
        await w.gmn_returns()
        await settled(w)
        w.peer.rekey()
        await settled(w)
        assert complaints(w) == []


async def test_a_tunnel_that_left_the_file_meanwhile_is_ended_and_its_peer_told(
    autojump_clock: MockClock,
) -> None:
    async with world(tunnels=2) as w:
        await w.up()
        left = next(peer for peer in w.peers.values() if peer.config.id != TUNNEL)
        w.watching = False
        w.kill_gmn()
        await w.gmn_ended()
        w.file = msgspec.structs.replace(w.file, tenants=w.file.tenants[:1])
        await w.gmn_returns()
        await w.until(lambda: not left.ikes)
        await w.settle(10)
        assert {key for key in w.store.held if key.startswith((b"sa/", b"tunnel/", b"ike/"))} == {
            b"sa/" + spi.to_bytes(4) for spi in w.tunnel.sas
        } | {b"tunnel/acme/hq"} | {key for key in w.store.held if key.startswith(b"ike/")}
        assert not any(record == ("sa", spi) for spi in left.seals for record in w.nodes.all["gpn-1"].held)
