"""Probes and barriers, against a GPN that echoes as the test tells it, on a clock that jumps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing

from protego_cli.counters import Counters
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import Unreachable
from protego_cli.net.bundles import Bundler
from protego_cli.net.steering import Gpn
from protego_cli.net.tagging import TagLink
from protego_cli.net.udp import Address, Batch, Buffer
from protego_cli.wire.bundle import parse
from protego_cli.wire.tags import Tag, TagKind, open_tag, seal_tag

Clock = trio.testing.MockClock

KEY = bytes(range(32))
GPN = Gpn("gpn-1", ("10.10.0.21", 4789), KEY)


class Fabric:
    """The network to one GPN: keeps the tags sent, and passes each to `answer`."""

    def __init__(self) -> None:
        self.tags: list[Tag] = []
        self.answer: Callable[[Tag], None] = lambda tag: None

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        assert dest == GPN.address
        tag = open_tag(KEY, data, hmac_sha256)
        self.tags.append(tag)
        self.answer(tag)
        return True


class Bench:
    def __init__(self) -> None:
        numbers = itertools.count(1)
        self.fabric, self.counters = Fabric(), Counters()
        self.link = TagLink(
            self.fabric, self.counters, "gen_drop_tag", random=lambda length: next(numbers).to_bytes(length)
        )
        self.link.put_gpn(GPN)
        self.noticed = 0

    def notices(self) -> None:
        self.noticed += 1

    def receive(self, data: bytes, source: Address = GPN.address, tos: int = 0) -> list[bytes]:
        """Hand a datagram to the link; what it leaves to others."""
        return [bytes(rest.view) for rest in self.link.take(Batch(memoryview(data), len(data), source, tos))]

    def echo(self, tag: Tag) -> None:
        assert self.receive(seal_tag(KEY, tag.echo(), hmac_sha256)) == []


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_probes_go_out_five_times_a_second(bench: Bench, autojump_clock: Clock) -> None:
    async def echo_later(tag: Tag) -> None:
        await trio.sleep(0.03)
        bench.echo(tag)

    async with trio.open_nursery() as nursery:
        bench.fabric.answer = lambda tag: nursery.start_soon(echo_later, tag)
        nursery.start_soon(bench.link.probe, bench.notices)
        await trio.sleep(4.1)
        assert len(bench.fabric.tags) == 21
        assert len({tag.nonce for tag in bench.fabric.tags}) == 21
        assert bench.link.silent() == ()
        nursery.cancel_scope.cancel()


async def test_a_gpn_without_echo_is_silent_after_a_second_until_it_echoes(
    bench: Bench, autojump_clock: Clock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.link.probe, bench.notices)
        await trio.sleep(0.95)
        assert bench.link.silent() == ()
        await trio.sleep(0.1)
        assert bench.link.silent() == ("gpn-1",)
        await trio.sleep(10)
        assert bench.link.silent() == ("gpn-1",)
        assert bench.noticed == 1
        bench.echo(bench.fabric.tags[-1])
        assert bench.link.silent() == ()
        await trio.sleep(0.3)
        assert bench.noticed == 2
        nursery.cancel_scope.cancel()


async def test_who_was_stopped_blames_nobody(bench: Bench, autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.link.probe, bench.notices)
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(30)  # stopped: the echo of the only probe waits in the socket meanwhile
        assert bench.link.silent() == ()
        nursery.cancel_scope.cancel()


async def test_a_dropped_gpn_is_neither_probed_nor_silent(bench: Bench, autojump_clock: Clock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.link.probe, bench.notices)
        await trio.sleep(2)
        bench.link.drop_gpn("gpn-1")
        before = len(bench.fabric.tags)
        await trio.sleep(2)
        assert len(bench.fabric.tags) == before
        assert bench.link.silent() == ()
        nursery.cancel_scope.cancel()


async def test_a_barrier_returns_with_its_echo(bench: Bench, autojump_clock: Clock) -> None:
    bench.fabric.answer = bench.echo
    await bench.link.barrier("gpn-1")
    assert [tag.kind for tag in bench.fabric.tags] == [TagKind.BARRIER]


async def test_a_barrier_leaves_in_the_step_that_asks_for_it(bench: Bench, autojump_clock: Clock) -> None:
    """Behind what was forwarded before that step, and nothing else."""
    passed = bench.link.barrier("gpn-1")
    assert [tag.kind for tag in bench.fabric.tags] == [TagKind.BARRIER]
    bench.echo(bench.fabric.tags[0])
    started = trio.current_time()
    await passed
    assert trio.current_time() == started


async def test_a_lost_barrier_is_sent_again_unchanged(bench: Bench, autojump_clock: Clock) -> None:
    bench.fabric.answer = lambda tag: bench.echo(tag) if len(bench.fabric.tags) == 4 else None
    started = trio.current_time()
    await bench.link.barrier("gpn-1")
    assert trio.current_time() - started == pytest.approx(0.06, abs=0.01)
    assert len(set(bench.fabric.tags)) == 1
    bench.echo(bench.fabric.tags[0])  # a late second echo harms nothing
    assert bench.counters.nonzero() == {}


async def test_a_barrier_without_echo_is_given_up(bench: Bench, autojump_clock: Clock) -> None:
    started = trio.current_time()
    with pytest.raises(Unreachable, match="gpn-1 did not echo a barrier within 2 s"):
        await bench.link.barrier("gpn-1")
    assert trio.current_time() - started == pytest.approx(2, abs=0.05)


async def test_a_barrier_to_an_unknown_gpn_is_refused(bench: Bench, autojump_clock: Clock) -> None:
    with pytest.raises(Unreachable, match="gpn-9"):
        await bench.link.barrier("gpn-9")


async def test_another_barriers_echo_does_not_count(bench: Bench, autojump_clock: Clock) -> None:
    bench.fabric.answer = lambda tag: bench.echo(tag._replace(nonce=tag.nonce + 1))
    with pytest.raises(Unreachable):
        await bench.link.barrier("gpn-1")


async def test_concurrent_barriers(bench: Bench, autojump_clock: Clock) -> None:
    waiting: list[Tag] = []
    bench.fabric.answer = waiting.append
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(bench.link.barrier, "gpn-1")
        await trio.testing.wait_all_tasks_blocked()
        assert len({tag.nonce for tag in waiting}) == 3, "each waits for an echo of its own"
        for tag in waiting:
            bench.echo(tag)


@pytest.mark.parametrize(
    "datagram",
    [
        seal_tag(bytes(32), Tag(TagKind.PROBE_ECHO, 1), hmac_sha256),  # another key
        seal_tag(KEY, Tag(TagKind.PROBE, 1), hmac_sha256),  # no GPN probes us
        seal_tag(KEY, Tag(TagKind.BARRIER, 1), hmac_sha256),
        seal_tag(KEY, Tag(TagKind.ORIGIN, 1, bytes(4), 1, bytes(16)), hmac_sha256),
        seal_tag(KEY, Tag(TagKind.RETURN, 1, bytes(4), 1, bytes(16)), hmac_sha256),  # a GEN expects none
        bytes([0, 0, 0, 4]),
        bytes([0, 0, 0, 200]) + bytes(60),
    ],
)
async def test_forged_and_misplaced_tags_are_counted(bench: Bench, datagram: bytes) -> None:
    assert bench.receive(datagram) == []
    assert bench.counters.nonzero() == {"gen_drop_tag": 1}


async def test_what_a_gpn_returns_is_handed_on(bench: Bench) -> None:
    returned: list[tuple[bytes, Address, int]] = []
    bench.link = TagLink(bench.fabric, bench.counters, "gin_drop_tag", lambda *told: returned.append(told))
    bench.link.put_gpn(GPN)
    packet = bytes(range(1, 60))
    tag = Tag(TagKind.RETURN, 0, bytes([192, 0, 2, 1]), 4500, packet)
    assert bench.receive(seal_tag(KEY, tag, hmac_sha256), tos=3) == []
    assert returned == [(packet, ("192.0.2.1", 4500), 3)]
    assert bench.receive(seal_tag(bytes(32), tag, hmac_sha256)) == []
    assert bench.receive(seal_tag(KEY, tag._replace(address=bytes(16)), hmac_sha256)) == []
    assert len(returned) == 1
    assert bench.counters.nonzero() == {"gin_drop_tag": 2}


async def test_packets_beside_tags_and_other_sources_are_left_to_others(
    bench: Bench, autojump_clock: Clock
) -> None:
    packet = bytes([8]) + bytes(49)
    tag = seal_tag(KEY, Tag(TagKind.PROBE_ECHO, 1), hmac_sha256)
    mixed = Batch(memoryview(packet + packet + tag), 50, GPN.address)
    assert [bytes(rest.view) for rest in bench.link.take(mixed)] == [packet, packet]
    assert bench.receive(tag, source=("10.10.0.99", 4789)) == [tag]
    assert bench.counters.nonzero() == {}


class BundlingFabric:
    """The network to one GPN that takes bundles, or does not."""

    def __init__(self) -> None:
        self.takes = True
        self.echo: Callable[[bytes], None] = lambda tag: None

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        self.echo(bytes(data))
        return True

    def send_parts(self, parts: Sequence[Buffer], dest: Address, *, tos: int = 0) -> bool:
        if self.takes:
            ((part, _),) = parse(memoryview(b"".join(parts)))
            self.echo(bytes(part))
        return True

    def room(self, dest: Address) -> int:
        return 1472


class RecordingBundler(Bundler):
    """Knows whether the GPN takes bundles."""

    takes = False

    def take(self, gpn: Address, takes: bool) -> None:
        assert gpn == GPN.address
        self.takes = takes


async def test_a_gpn_takes_bundles_while_it_echoes_what_comes_in_them(autojump_clock: Clock) -> None:
    fabric, counters = BundlingFabric(), Counters()
    bundler = RecordingBundler(fabric, counters, "gen_forwarded", "gen_drop_send")
    link = TagLink(fabric, counters, "gen_drop_tag", bundler=bundler)

    def echo(datagram: bytes) -> None:
        answer = seal_tag(KEY, open_tag(KEY, datagram, hmac_sha256).echo(), hmac_sha256)
        assert not list(link.take(Batch(memoryview(answer), len(answer), GPN.address)))

    fabric.echo = echo
    link.put_gpn(GPN)
    assert not bundler.takes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.probe, lambda: None)
        await trio.sleep(0.3)
        assert bundler.takes
        fabric.takes = False  # started anew, in an older version
        await trio.sleep(0.3)
        assert bundler.takes, "one may be lost"
        await trio.sleep(0.6)
        assert not bundler.takes
        assert link.silent() == ()
        await trio.sleep(5)
        assert link.silent() == (), "it echoes all others"
        fabric.takes = True
        await trio.sleep(0.3)
        assert bundler.takes
        link.drop_gpn("gpn-1")
        assert not bundler.takes
        nursery.cancel_scope.cancel()
    assert counters.nonzero() == {}
