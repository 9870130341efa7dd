"""Desired state as a node holds it: differences, repetitions, gaps, epochs, records it cannot act on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.control.channel.desired import NAMED, REASONS, Holding, difference
from protego_cli.control.channel.desired_records import (
    AnyRecord,
    Neighbour,
    Park,
    Route,
    Rule,
    Sa,
    Steer,
    Tenant,
)
from protego_cli.control.channel.frames import NODE_LIMIT, encode
from protego_cli.control.channel.message import Failed, Key
from protego_cli.control.channel.node_messages import Applied, Stale, Sync, Update
from tests.support.control import FakePlane

NEIGHBOUR = Neighbour("gpn-1", "gpn", "10.0.0.1", 4500, 4789, b"k" * 32)
TENANT = Tenant("acme", 1, b"\2\0\0\0\0\1", ())
SA = Sa(300, 9, "acme/hq", 1, "aes256gcm16", b"i" * 36, b"o" * 36, (), (), "v", "p", 4500, 1, 1 << 30)
RULE = Rule("acme/hq", 300)
STEER = Steer(300, "gpn-1", "192.0.2.1", 4500)
ROUTE = Route("acme/hq", 1, ("10.0.0.0/8",), "gpn-1")


@pytest.fixture
def plane() -> FakePlane:
    return FakePlane()


@pytest.fixture
def holding(plane: FakePlane) -> Holding:
    return Holding(plane)


def keys(plane: FakePlane, what: str) -> list[object]:
    return [key for action, key in plane.log if action == what]


def test_a_sync_is_its_difference(plane: FakePlane, holding: Holding) -> None:
    assert holding.sync(Sync(1, 1, (TENANT, SA, RULE))) == Applied(1)
    plane.log.clear()
    moved = Rule("acme/hq", 301)
    assert holding.sync(Sync(1, 5, (TENANT, moved, Park(301)))) == Applied(5)
    assert plane.log == [("put", ("park", 301)), ("put", RULE.key), ("drop", SA.key)]
    assert plane.records == {TENANT.key: TENANT, RULE.key: moved, Park(301).key: Park(301)}


def test_a_sync_again_touches_nothing(plane: FakePlane, holding: Holding) -> None:
    for _ in range(2):
        holding.sync(Sync(1, 1, (TENANT, SA, RULE)))
    assert len(plane.log) == 3


def test_records_come_after_those_they_name(plane: FakePlane, holding: Holding) -> None:
    everything = (ROUTE, STEER, RULE, SA, Park(301), TENANT, NEIGHBOUR)
    holding.sync(Sync(1, 1, everything))
    order = [record.key for record in reversed(everything)]
    assert keys(plane, "put") == order
    holding.sync(Sync(1, 2, ()))
    assert keys(plane, "drop") == order[::-1]


def test_an_update_puts_before_it_drops(plane: FakePlane, holding: Holding) -> None:
    holding.sync(Sync(1, 1, (SA, Park(301))))
    plane.log.clear()
    assert holding.update(Update(1, 2, (RULE,), (Park(301).key, ("sa", 999)))) == Applied(2)
    assert plane.log == [("put", RULE.key), ("drop", Park(301).key)]


def test_a_repeated_update_is_harmless(plane: FakePlane, holding: Holding) -> None:
    holding.sync(Sync(1, 1, ()))
    first, second = Update(1, 2, (RULE,)), Update(1, 3, (), (RULE.key,))
    holding.update(first)
    holding.update(second)
    plane.log.clear()
    assert holding.update(first) == Applied(2)
    assert holding.update(second) == Applied(3)
    assert plane.log == []
    assert plane.records == {}
    assert holding.update(Update(1, 4)) == Applied(4)


def test_a_gap_asks_for_a_sync(plane: FakePlane, holding: Holding) -> None:
    assert holding.update(Update(1, 1, (RULE,))) == Stale(0)  # nothing came yet
    holding.sync(Sync(1, 1, ()))
    assert holding.update(Update(1, 3, (RULE,))) == Stale(1)
    assert plane.records == {}
    holding.expect_sync()  # a new connection
    assert holding.update(Update(1, 2, (RULE,))) == Stale(0)


def test_an_epoch_below_the_highest_is_refused(plane: FakePlane, holding: Holding) -> None:
    holding.sync(Sync(7, 1, (RULE,)))
    for message in (Sync(6, 9, ()), Sync(6, 1, (SA,))):
        assert isinstance(holding.sync(message), Failed)
    assert isinstance(holding.update(Update(6, 2, (SA,))), Failed)
    assert plane.records == {RULE.key: RULE}
    assert holding.epoch == 7
    assert holding.update(Update(7, 2, (SA,))) == Applied(2)


def test_a_higher_epoch_begins_with_a_sync(holding: Holding) -> None:
    holding.sync(Sync(7, 5, (RULE,)))
    assert holding.update(Update(8, 6, (SA,))) == Stale(5)
    assert holding.sync(Sync(8, 1, (SA,))) == Applied(1)
    assert holding.epoch == 8


def test_one_bad_record_does_not_stop_the_others(plane: FakePlane, holding: Holding) -> None:
    plane.bad.add(SA.key)
    reply = holding.sync(Sync(1, 1, (SA, RULE, TENANT)))
    assert isinstance(reply, Applied)
    assert [each.key for each in reply.refused] == [SA.key]
    assert "is bad" in reply.refused[0].reason
    assert set(plane.records) == {RULE.key, TENANT.key}
    plane.bad.clear()
    assert holding.sync(Sync(1, 2, (SA, RULE, TENANT))) == Applied(2)
    assert plane.records[SA.key] == SA


def test_a_refused_replacement_leaves_the_old_record(plane: FakePlane, holding: Holding) -> None:
    holding.sync(Sync(1, 1, (RULE,)))
    plane.bad.add(RULE.key)
    reply = holding.update(Update(1, 2, (Rule("acme/hq", 301),)))
    assert isinstance(reply, Applied)
    assert [each.key for each in reply.refused] == [RULE.key]
    assert holding.records == plane.records == {RULE.key: RULE}


def test_of_many_refused_the_first_have_a_reason_and_too_many_are_one_failure(
    plane: FakePlane, holding: Holding
) -> None:
    parks = tuple(Park(spi) for spi in range(300, 301 + NAMED))
    plane.bad.update(park.key for park in parks)
    reply = holding.sync(Sync(1, 1, parks[:NAMED]))
    assert isinstance(reply, Applied)
    assert [each.key for each in reply.refused] == [park.key for park in parks[:NAMED]]
    assert [bool(each.reason) for each in reply.refused].count(True) == REASONS
    assert len(encode(1, reply)) < NODE_LIMIT
    assert isinstance(holding.sync(Sync(1, 2, parks)), Failed)


RECORDS = st.lists(
    st.one_of(
        st.builds(Park, st.integers(256, 262)),
        st.builds(Rule, st.sampled_from(["a/a", "a/b"]), st.integers(256, 262)),
        st.builds(
            Steer, st.integers(256, 262), st.sampled_from(["gpn-1", "gpn-2"]), st.just("p"), st.just(1)
        ),
    ),
    max_size=12,
)


@given(RECORDS, RECORDS)
def test_a_difference_leads_from_the_one_to_the_other(
    before: list[AnyRecord], after: list[AnyRecord]
) -> None:
    held: dict[Key, AnyRecord] = {record.key: record for record in before}
    puts, drops = difference(held, after)
    for record in puts:
        held[record.key] = record
    for key in drops:
        del held[key]
    assert held == {record.key: record for record in after}
    assert not {record.key for record in puts} & set(drops)
