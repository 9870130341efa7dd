"""Bundles on their way: the same packets in the same order as without, in fewer datagrams."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.counters import Counters
from protego_cli.net.bundles import Bundler, unbundled
from protego_cli.net.gso import segments
from protego_cli.net.udp import LONG, Address, Batch, Buffer
from protego_cli.wire.bundle import WORD, could_be
from tests.support.datagrams import bundle
from tests.support.senders import RecordingSender

GPN1, GPN2, OLD = ("10.10.0.21", 4500), ("10.10.0.22", 4500), ("10.10.0.23", 4500)
SOURCE = ("10.10.0.2", 4501)
ROOM = 1472


class Fabric(RecordingSender):
    """A socket whose paths have an MTU of 1,500 bytes."""

    def send_parts(self, parts: Sequence[Buffer], dest: Address, *, tos: int = 0) -> bool:
        data = b"".join(parts)
        assert len(data) <= ROOM
        return self.send(data, len(data), dest, tos=tos)

    def room(self, dest: Address) -> int:
        return ROOM


class World:
    def __init__(self) -> None:
        self.fabric, self.counters = Fabric(), Counters()
        self.bundler = Bundler(self.fabric, self.counters, "gin_esp_forwarded", "gin_drop_send")
        for gpn in (GPN1, GPN2):
            self.bundler.take(gpn, True)

    def carry(self, *train: tuple[bytes, int, Address, int]) -> None:
        """Each of a train's batches is sent on."""

        def handle(batch: Batch) -> None:
            view, size, dest, tos = batch
            packets = -(-len(view) // size) if size else 1
            sent = self.bundler.send(view, size, dest, tos=tos)
            self.counters["gin_esp_forwarded" if sent else "gin_drop_send"] += packets

        self.bundler.over(handle, lambda row: False)(
            [Batch(memoryview(data), *rest) for data, *rest in train]
        )

    def arrived(self, dest: Address) -> list[tuple[bytes, int]]:
        """What a GPN finds: its packets, and the TOS of each."""
        batches = [
            Batch(memoryview(data), size, SOURCE, tos)
            for data, size, to, tos in self.fabric.sent
            if to == dest
        ]
        found = unbundled(batches, {SOURCE[0]}, self.counters, "gpn_drop_tag")
        return [(bytes(part), tos) for view, size, _, tos in found for part in segments(view, size)]

    def datagrams(self, dest: Address) -> list[bytes]:
        return [data for data, _, to, _ in self.fabric.sent if to == dest]


@pytest.fixture
def world() -> World:
    return World()


def batch(size: int, count: int, mark: int = 1, less: int = 0) -> bytes:
    data = b"".join(bytes([mark, number + 1]).ljust(size, b"\x5a") for number in range(count))
    return data[: len(data) - less]


BATCHES = st.tuples(
    st.one_of(st.integers(2, 600), st.just(0)),
    st.integers(1, LONG + 3),
    st.sampled_from([GPN1, GPN1, GPN1, GPN2, OLD]),
    st.sampled_from([0, 0, 0, 0xB8]),
)


@given(st.lists(BATCHES, min_size=1, max_size=20))
def test_the_same_packets_arrive_in_the_same_order(shapes: list[tuple[int, int, Address, int]]) -> None:
    world = World()
    train = [
        (batch(size, count, place + 1, less=place % 2) if size else b"", size, dest, tos)
        for place, (size, count, dest, tos) in enumerate(shapes)
    ]
    world.carry(*train)
    for gpn in (GPN1, GPN2, OLD):
        sent = [
            (bytes(part), tos)
            for data, size, dest, tos in train
            if dest == gpn
            for part in segments(memoryview(data), size)
        ]
        assert world.arrived(gpn) == sent
    assert not any(data.startswith(WORD) for data in world.datagrams(OLD))
    packets = sum(-(-len(data) // size) if size else 1 for data, size, _, _ in train)
    assert world.counters.nonzero() == {"gin_esp_forwarded": packets}


def test_short_batches_leave_together_as_far_as_they_have_room(world: World) -> None:
    sizes = [64, 64, 570, 64, 570, 64, 64, 64, 1400, 570, 64, 570]
    runs = [(size, len(list(row))) for size, row in groupby(sizes)]
    world.carry(*[(batch(size, count), size, GPN1, 0) for size, count in runs])
    expected = [runs[:4], runs[4:5], runs[5:6], runs[6:]]
    made = [bundle(*[(size, batch(size, count)) for size, count in row]) for row in expected]
    assert world.datagrams(GPN1) == [made[0], batch(64, 3), batch(1400, 1), made[3]]


def test_a_batch_by_itself_goes_as_it_is(world: World) -> None:
    world.carry((batch(100, 3), 100, GPN1, 0))
    world.carry((batch(100, 3), 100, GPN1, 0), (batch(90, 2), 90, GPN2, 0))
    assert [size for _, size, _, _ in world.fabric.sent] == [100, 100, 90]


def test_nothing_waits_for_the_next_train(world: World) -> None:
    for count in range(1, 6):
        world.fabric.sent.clear()
        world.carry(*[(batch(50, 1), 50, GPN1, 0)] * count)
        assert len(world.arrived(GPN1)) == count


def test_nothing_is_left_behind_when_a_handler_fails(world: World) -> None:
    def handle(batch: Batch) -> None:
        if batch.size == 60:
            raise RuntimeError
        world.bundler.send(batch.view, batch.size, GPN1)

    train = [Batch(memoryview(batch(size, 1)), size, SOURCE) for size in (50, 55, 60)]
    with pytest.raises(RuntimeError):
        world.bundler.over(handle, lambda row: False)(train)
    assert len(world.arrived(GPN1)) == 2
    world.bundler.send(batch(70, 1), 70, GPN1)
    assert len(world.arrived(GPN1)) == 3


def test_what_is_handled_as_a_row_is_gathered_too_and_not_handled_again(world: World) -> None:
    def handle_row(row: Sequence[Batch]) -> bool:
        sent = [world.bundler.send(batch.view, batch.size, GPN1) for batch in row]
        return all(sent)

    train = [Batch(memoryview(batch(size, 1)), size, SOURCE) for size in (50, 55, 60)]
    world.bundler.over(lambda batch: pytest.fail("it has been sent"), handle_row)(train)
    assert len(world.arrived(GPN1)) == 3
    assert len(world.datagrams(GPN1)) == 1


def test_what_the_kernel_refuses_is_counted_as_refused(world: World) -> None:
    world.fabric.accepting = False
    world.carry((batch(100, 3), 100, GPN1, 0), (batch(90, 2), 90, GPN1, 0), (batch(80, 20), 80, GPN1, 0))
    assert world.counters.nonzero() == {"gin_drop_send": 25}


def test_a_gpn_that_takes_bundles_no_more_gets_none(world: World) -> None:
    world.bundler.take(GPN1, False)
    world.carry((batch(100, 3), 100, GPN1, 0), (batch(90, 2), 90, GPN1, 0))
    assert [size for _, size, _, _ in world.fabric.sent] == [100, 90]


def test_bundles_that_a_card_has_merged_are_taken_apart() -> None:
    """With others of their length, and with packets."""
    made = bundle((30, b"\1" * 60), (41, b"\2" * 41))
    plain = b"\3" * len(made)
    train = [
        Batch(memoryview(plain + made + made[:-4] + b"\0\0\0\0"), len(made), SOURCE, 3),
        Batch(memoryview(b"\4" * (len(made) + 3) * 2 + made), len(made) + 3, SOURCE, 3),
    ]
    found = [
        (bytes(view), size, tos)
        for view, size, _, tos in unbundled(train, {SOURCE[0]}, Counters(), "gpn_drop_tag")
    ]
    parts = [(b"\1" * 60, 30, 3), (b"\2" * 41, 41, 3)]
    single = (b"\4" * (len(made) + 3), len(made) + 3, 3)
    assert found == [(plain, len(made), 3), *parts, *found[3:5], single, single, *parts]
    assert could_be(len(made))


def test_what_is_no_bundle_is_left_as_it_came() -> None:
    train = [
        Batch(memoryview(bytes([8]) * 202), 101, SOURCE),
        Batch(memoryview(bytes([0, 9]) * 505), 101, SOURCE),
        Batch(memoryview(b""), 0, SOURCE),
    ]
    counters = Counters()
    found = unbundled(train[:1], {SOURCE[0]}, counters, "gpn_drop_tag")
    assert found is not train
    assert list(found) == train[:1]
    again = unbundled(train, {SOURCE[0]}, counters, "gpn_drop_tag")
    whole = b"".join(bytes(batch.view) for batch in train)
    assert b"".join(bytes(batch.view) for batch in again) == whole
    assert counters.nonzero() == {}


def test_a_malformed_bundle_is_counted_and_stops_nothing() -> None:
    made = bundle((30, b"\1" * 60), (41, b"\2" * 41))
    broken = made[:5] + b"\xff" + made[6:]
    counters = Counters()
    train = [Batch(memoryview(data), len(data), SOURCE) for data in (broken, made)]
    assert len(unbundled(train, {SOURCE[0]}, counters, "gpn_drop_tag")) == 2
    assert counters.nonzero() == {"gpn_drop_tag": 1}


def test_a_bundle_from_a_stranger_is_dropped() -> None:
    made = bundle((30, b"\1" * 60), (41, b"\2" * 41))
    counters = Counters()
    train = [Batch(memoryview(made), len(made), source) for source in (("10.20.0.5", 4789), SOURCE)]
    found = unbundled(train, {SOURCE[0]}, counters, "gpn_drop_tag")
    assert [batch.source for batch in found] == [SOURCE, SOURCE]
    assert counters.nonzero() == {"gpn_drop_tag": 1}


def test_a_bundle_within_a_bundle_stays_one() -> None:
    inner = bundle((30, b"\1" * 60))
    outer = bundle((len(inner), inner), (30, b"\2" * 30))
    found = unbundled([Batch(memoryview(outer), len(outer), SOURCE)], {SOURCE[0]}, Counters(), "gpn_drop_tag")
    assert [bytes(view) for view, *_ in found] == [inner, b"\2" * 30]
