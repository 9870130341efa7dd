"""A node whose clock differs from the GMN's is told of, once, when that is certain."""

from __future__ import annotations

from trio.testing import MockClock

from protego_cli.control.channel.node_messages import Report
from protego_cli.control.channel.operator_messages import GetEvents
from protego_cli.control.procedures.membership import APART, LASTING
from tests.support.gmn_world import World, world


def told(w: World) -> list[tuple[str | None, str]]:
    events = w.sad.events.read(GetEvents()).events
    return [
        (event.node, event.reason or "")
        for event in events
        if event.kind == "clock differs" and event.severity == "warning"
    ]


async def report(w: World, ahead: float | None, seconds: float, node: str = "gpn-1") -> None:
    """A report every second, by a clock that is so much ahead; None: by one that does not say."""
    for _ in range(int(seconds)):
        clock = 0.0 if ahead is None else w.sad.events.clock() + ahead
        await w.nodes.observer.reported(node, Report(0.1, clock=clock))
        await w.settle(1)


async def test_a_clock_that_differs_is_told_once_until_it_is_right_again(autojump_clock: MockClock) -> None:
    async with world() as w:
        await report(w, 3 * APART, LASTING)
        assert told(w) == []
        await report(w, 3 * APART, 5 * LASTING)
        first = ("gpn-1", "15 s ahead of the GMN's, so SAs end at another time there: use NTP")
        assert told(w) == [first]
        await report(w, 0.0, 2)
        await report(w, -7200.0, 2 * LASTING)
        second = ("gpn-1", "7200 s behind the GMN's, so SAs end at another time there: use NTP")
        assert told(w) == [first, second]


async def test_what_may_be_the_way_of_the_reports_is_not(autojump_clock: MockClock) -> None:
    async with world() as w:
        await report(w, APART - 1, 3 * LASTING)
        await report(w, None, 3 * LASTING)
        for _ in range(4):
            await report(w, -20.0, LASTING - 1)  # they have waited for a node, or a GMN, that stood still
            await report(w, 0.0, 1)
        assert told(w) == []
