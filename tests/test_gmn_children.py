"""A second CHILD_SA of one IKE_SA that could carry all traffic takes over; none is left behind."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from protego_cli.control.procedures.tunnels import OVERDUE
from protego_cli.errors import ChildSaNotFound
from protego_cli.ike.events import ChildEstablished
from protego_cli.wire.notifies import NotifyType
from tests.support.gmn_world import World, world


async def one_is_left(w: World) -> None:
    """And it is the one that seals, at both ends."""
    await w.until(lambda: len(w.peer.opens) == 1 and w.tunnel.settled)
    await w.settle(10)
    assert w.tunnel.sealing is not None
    assert w.tunnel.sealing.spi == w.peer.newest.spi_out
    assert [sa for sa in w.tunnel.sas.values() if not sa.retiring] == [w.tunnel.sealing]
    w.check_clean()


@pytest.mark.parametrize("silent", [False, True])
async def test_a_second_child_sa_takes_over_and_the_first_is_deleted(
    autojump_clock: MockClock, silent: bool
) -> None:
    async with world(delay=(0.0001, 0.02)) as w:
        await w.up()
        await w.settle()
        first = w.tunnel.sealing
        w.peer.silent = silent  # its packets do not tell that it uses the new one
        token = w.peer.create()
        await w.until(lambda: w.peer.outcome(token) is not None)
        assert isinstance(w.peer.outcome(token), ChildEstablished)
        await w.until(lambda: w.tunnel.sealing is not first, limit=OVERDUE + 1)
        await one_is_left(w)
        assert len(w.tunnel.ikes) == 1


async def test_many_at_once_leave_one(autojump_clock: MockClock) -> None:
    async with world(delay=(0.0001, 0.02)) as w:
        await w.up()
        await w.settle()
        for _ in range(5):
            w.peer.create()
        await w.settle(1)
        await one_is_left(w)


async def test_an_ike_sa_without_child_sa_gets_the_one_its_peer_asks_for(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        (ike,) = w.tunnel.ikes
        w.peer.delete(w.peer.newest.spi_in)
        await w.until(lambda: not w.peer.opens and w.tunnel.sealing is None)
        w.peer.create()
        await w.until(w.is_up)
        await one_is_left(w)
        assert w.tunnel.ikes == {ike}


async def test_a_second_child_sa_during_a_migration(autojump_clock: MockClock) -> None:
    async with world(delay=(0.0001, 0.02)) as w:
        await w.up()
        await w.settle()
        async with trio.open_nursery() as nursery:

            async def move() -> None:
                await w.migrations.migrate(w.tunnel.id, "gpn-3")

            nursery.start_soon(move)
            await w.settle(0.01)
            w.peer.create()
        await one_is_left(w)
        assert w.tunnel.sealing is not None
        assert w.tunnel.sealing.gpn == "gpn-3"


async def test_a_peer_that_has_lost_its_child_sa_gets_a_new_one(autojump_clock: MockClock) -> None:
    """CHILD_SA_NOT_FOUND twice: a new one is made from scratch (RFC 7296 2.25)."""
    async with world() as w:
        await w.up()
        await w.settle()
        (ike,) = w.tunnel.ikes
        lost = w.peer.newest.spi_in
        w.watching = False
        (sa,) = w.peer.engine._context.by_handle.values()
        sa.drop_child(lost)
        w.peer._lose(lost)
        moved = await w.migrations.migrate(w.tunnel.id, "gpn-3")
        assert moved.to == "gpn-3"
        await one_is_left(w)
        assert w.tunnel.ikes == {ike}
        assert ChildSaNotFound.notify == NotifyType.CHILD_SA_NOT_FOUND
