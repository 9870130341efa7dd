"""The events: each is kept, logged and told to those who wait; the ring and the waiting are bounded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from protego_cli.control.channel.operator_messages import Event, Events, GetEvents
from protego_cli.control.operating import events
from protego_cli.control.operating.events import EventLog
from protego_cli.control.packing.placement import Move, PackingView, TunnelView
from protego_cli.errors import Refused
from tests.support.gmn_world import TUNNEL, world


def numbers(found: Events) -> list[int]:
    return [event.number for event in found.events]


def filled(count: int, capacity: int = 10) -> EventLog:
    told = EventLog(7, lambda: 100.0, capacity)
    for i in range(1, count + 1):
        told.emit("SA up", tunnel=f"t{i % 2}/hq", node=f"gpn-{i % 3}", spi=i)
    return told


def test_an_event_is_kept_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = EventLog(7, lambda: 12.3456)
    told.emit("rekey failed", tunnel="acme/hq", node="gpn-1", spi=0xABC, reason=Refused("no"), tries=3)
    (event,) = told.read(GetEvents()).events
    assert event == Event(
        1, 12.346, "rekey failed", "warning", "acme/hq", "gpn-1", "00000abc", "no", {"tries": 3}
    )
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.messages == ["rekey failed tunnel=acme/hq node=gpn-1 spi=00000abc tries=3 reason=no"]


def test_a_long_reason_is_cut() -> None:
    told = EventLog()
    told.emit("negotiation failed", reason="x" * 100_000)
    assert told.read(GetEvents()).events[0].reason == "x" * events.MAX_TEXT


def test_an_unknown_kind_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        EventLog().emit("something")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (GetEvents(), list(range(3, 13))),
        (GetEvents(last=3), [10, 11, 12]),
        (GetEvents(last=0), []),
        (GetEvents(last=100), list(range(3, 13))),
        (GetEvents(epoch=7, after=11), [12]),
        (GetEvents(epoch=7, after=12), []),
        (GetEvents(epoch=6, after=11), list(range(3, 13))),  # of another life: its numbers mean nothing
        (GetEvents(tunnel="t1/hq"), [3, 5, 7, 9, 11]),
        (GetEvents(node="gpn-0", last=2), [9, 12]),
        (GetEvents(tunnel="t1/hq", node="gpn-0"), [3, 9]),
        (GetEvents(since=100.0), list(range(3, 13))),
        (GetEvents(since=100.1), []),
    ],
)
def test_what_is_asked_for_is_found(request_: GetEvents, expected: list[int]) -> None:
    found = filled(12).read(request_)
    assert numbers(found) == expected
    assert (found.epoch, found.last) == (7, 12)


def test_what_the_ring_dropped_between_is_counted() -> None:
    told = filled(25)
    assert told.read(GetEvents(epoch=7, after=10)).lost == 5
    assert told.read(GetEvents(epoch=7, after=15)).lost == 0
    assert told.read(GetEvents()).lost == 0  # who asks for the first time misses nothing


def test_a_follower_gets_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAGE", 3)
    told = filled(8)
    after, seen = 0, []
    while found := told.read(GetEvents(epoch=7, after=after)).events:
        seen += [event.number for event in found]
        after = told.read(GetEvents(epoch=7, after=after)).last
        assert len(found) <= 3
    assert seen == list(range(1, 9))


async def test_who_waits_hears_of_the_next_that_matches(autojump_clock: MockClock) -> None:
    told = filled(2)
    async with trio.open_nursery() as nursery:
        got: list[Events] = []

        async def follow() -> None:
            got.append(await told.answer(GetEvents(epoch=7, after=2, tunnel="t1/hq", wait=30.0)))

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        told.emit("SA up", tunnel="t0/hq")
        await trio.testing.wait_all_tasks_blocked()
        assert not got
        told.emit("SA up", tunnel="t1/hq")
    assert numbers(got[0]) == [4]


async def test_waiting_ends_without_an_event(autojump_clock: MockClock) -> None:
    told = filled(2)
    found = await told.answer(GetEvents(epoch=7, after=2, wait=1e9))
    assert trio.current_time() == events.PATIENCE
    assert (found.events, found.last) == ((), 2)


async def test_those_who_wait_are_bounded_and_leave_room(autojump_clock: MockClock) -> None:
    told = filled(0)
    async with trio.open_nursery() as nursery:
        for _ in range(events.WAITING):
            nursery.start_soon(told.answer, GetEvents(wait=30.0))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused, match="16 others follow"):
            await told.answer(GetEvents(wait=30.0))
        nursery.cancel_scope.cancel()
    assert (await told.answer(GetEvents(wait=1.0))).events == ()


async def test_a_tunnels_life_is_told(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.migrations.migrate(TUNNEL, "gpn-2")
        await w.nodes.stop("gen-2")
        w.peer.close()
        await w.until(lambda: not w.tunnel.ikes)
        reply = await w.operations.answer(GetEvents())
        assert isinstance(reply, Events)
        assert [event.kind for event in reply.events if event.kind != "node up"] == [
            "IKE_SA up", "SA up", "tunnel up", "migration begun", "migrated", "node down", "tunnel down",
            "IKE_SA closed",
        ]  # fmt: skip
        moved = next(event for event in reply.events if event.kind == "migrated")
        assert (moved.tunnel, moved.node, moved.details["source"]) == (TUNNEL, "gpn-2", "gpn-1")


async def test_a_policy_that_raises_is_told(autojump_clock: MockClock) -> None:
    class Broken:
        name = "broken"

        def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
            raise RuntimeError("a bug of the plugin")

        def plan(self, view: PackingView) -> Sequence[Move]:
            return []

    async with world() as w:
        w.sad.seats.packer = replace(w.sad.seats.packer, policy=Broken())
        w.peer.dial()
        await w.until(lambda: w.tunnel.error)
        failed = [event for event in w.sad.events.read(GetEvents()).events if event.kind == "policy failed"]
        assert failed[0].tunnel == TUNNEL
        assert "'broken' of plugin 'test' raised RuntimeError: a bug of the plugin" in str(failed[0].reason)
