"""Restarted nodes: no number is used twice, nothing that was opened is opened again, tunnels come back."""

from __future__ import annotations

from contextlib import suppress

import trio
import trio.testing
from trio.testing import MockClock

from protego_cli.control.channel.desired_records import Sa
from protego_cli.control.channel.node_messages import Report, SaUsage
from protego_cli.control.sas.ranges import EXTENDED_SIZE
from protego_cli.control.sas.tunnel import Placed
from protego_cli.errors import NoAdditionalSas, ProtegoError
from tests.support.gmn_world import World, world


def sealing(w: World) -> Placed:
    placed = w.tunnel.sealing
    assert placed is not None
    return placed


def held(w: World, spi: int) -> Sa:
    sa = w.nodes.all["gpn-1"].held["sa", spi]
    assert isinstance(sa, Sa)
    return sa


def puts(w: World, spi: int) -> list[Sa]:
    """Every form in which an SA was given to a node, in order."""
    return [
        entry[2]
        for entry in w.log
        if entry[0] == "put" and isinstance(entry[2], Sa) and entry[2].spi_in == spi
    ]


async def report(w: World, highest: int) -> None:
    usage = SaUsage(sealing(w).spi, highest, highest, highest, highest, highest, highest)
    await w.nodes.observer.reported("gpn-1", Report(0.1, (usage,)))


async def test_a_restarted_gpn_seals_in_a_new_range_and_opens_above_the_mark(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        await w.up()
        spi = sealing(w).spi
        await report(w, 90)
        w.nodes.mark[spi] = 100
        await w.nodes.stop("gpn-1")
        await w.nodes.start("gpn-1")
        first, second = puts(w, spi)
        assert (first.seal_lo, first.floor) == (1, 0)
        assert (second.seal_lo, second.floor, second.opens) == (EXTENDED_SIZE, 100, True)


async def test_the_last_report_counts_where_it_is_higher_than_the_mark(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        spi = sealing(w).spi
        w.nodes.mark[spi] = 80
        await report(w, 90)
        await w.nodes.stop("gpn-1")
        await w.nodes.start("gpn-1")
        assert puts(w, spi)[1].floor == 90


async def test_a_mark_is_the_low_half_of_an_extended_number(autojump_clock: MockClock) -> None:
    """No number with a higher low half has come by, whatever its high half."""
    async with world() as w:
        await w.up()
        spi = sealing(w).spi
        assert sealing(w).child.esn
        await report(w, (1 << 32) + 90)
        w.nodes.mark[spi] = 0xFFFFFFF0
        await w.nodes.stop("gpn-1")
        await w.nodes.start("gpn-1")
        first, second = puts(w, spi)
        assert (first.esn, first.integrity, first.window) == (True, None, w.tunnel.config.window)
        assert second.floor == (1 << 32) + 0xFFFFFFF0


async def test_the_tunnels_of_a_restarted_gpn_are_rekeyed_within_two_seconds(
    autojump_clock: MockClock,
) -> None:
    async with world(tunnels=9) as w:
        await w.up()
        before = {tunnel.id: tunnel.sealing for tunnel in w.sad.tunnels.values()}
        here = [id_ for id_, placed in before.items() if placed and placed.gpn == "gpn-1"]
        assert len(here) == 3
        await w.nodes.stop("gpn-1")
        with trio.fail_after(2.0):
            await w.nodes.start("gpn-1")
            await w.until(lambda: all(w.sad.tunnels[id_].sealing is not before[id_] for id_ in here))
        assert all(tunnel.state == "up" for tunnel in (await w.status()).tunnels)
        await w.settle(10)
        w.check_clean()
        others = set(before) - set(here)
        assert all(w.sad.tunnels[id_].sealing is before[id_] for id_ in others)


async def test_a_gpn_that_only_reconnects_keeps_everything(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        old = sealing(w)
        held_before = dict(w.nodes.all["gpn-1"].held)
        node = w.nodes.all["gpn-1"]
        node.up = node.linked = False
        await w.nodes.observer.node_down("gpn-1")
        assert (await w.tunnel_status()).state == "down"
        await w.nodes.start("gpn-1", restarted=False)
        await w.settle(5)
        assert sealing(w) is old
        assert node.held == held_before
        assert (await w.tunnel_status()).state == "up"


async def test_nothing_is_opened_where_a_gin_cannot_say_its_mark(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        spi = sealing(w).spi
        await w.nodes.stop("gin-2")
        await w.nodes.stop("gpn-1")
        await w.nodes.start("gpn-1")
        assert puts(w, spi)[1].opens is False
        await w.until(lambda: sealing(w).spi != spi)
        assert held(w, sealing(w).spi).opens is True


async def test_nothing_is_opened_when_a_gin_has_forgotten_its_marks(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        spi = sealing(w).spi
        await w.nodes.stop("gin-2")
        await w.nodes.start("gin-2")
        await w.nodes.stop("gpn-1")
        await w.nodes.start("gpn-1")
        assert puts(w, spi)[1].opens is False


async def test_a_report_since_makes_up_for_forgotten_marks(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        spi = sealing(w).spi
        await w.nodes.stop("gin-2")
        await w.nodes.start("gin-2")
        await report(w, 70)
        await w.nodes.stop("gpn-1")
        await w.nodes.start("gpn-1")
        assert (puts(w, spi)[1].opens, puts(w, spi)[1].floor) == (True, 70)


async def test_an_sa_out_of_numbers_opens_and_does_not_seal(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        w.peer.refuse = lambda: NoAdditionalSas("not now")
        w.watching = False
        for _ in range(4):
            await w.nodes.stop("gpn-1")
            await w.nodes.start("gpn-1")
        sa = held(w, old.spi)
        assert sa.seal_lo == sa.seal_hi
        assert w.on("gpn-1", "rule") == set()
        w.peer.refuse = lambda: None
        await w.until(lambda: sealing(w) is not old)  # it is asked again and again
        assert w.on("gpn-1", "rule") == {"acme/hq"}
        await w.settle(10)
        w.check_clean()


async def test_a_restart_in_the_middle_of_a_migration_grants_no_number_twice(
    autojump_clock: MockClock,
) -> None:
    """`DataNodes` fails the test when two processes get one range."""
    for step in range(0, 30, 3):
        async with world(step) as w:
            await w.up()
            await w.settle()
            w.log.clear()
            done = False

            async def bounce(w: World = w) -> None:
                await w.nodes.stop("gpn-2")
                await w.nodes.start("gpn-2")

            def strike(entry: tuple[object, ...], w: World = w, step: int = step) -> None:
                nonlocal done
                if len(w.log) > step and not done:
                    done = True
                    w.tasks.start_soon(bounce)

            w.nodes.tap = strike
            w.watching = False  # what is on its way to a node that dies is lost
            with suppress(ProtegoError), trio.fail_after(60):
                await w.migrations.migrate("acme/hq", "gpn-2")
            w.nodes.tap = lambda entry: None
            await w.settle(20)
            w.watching = True
            w.watch()
            assert (await w.tunnel_status()).state == "up"
            w.check_clean()
