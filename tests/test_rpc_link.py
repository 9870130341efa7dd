"""One link over real mTLS: order, concurrency, bounds, and what garbage and silence do to it."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from protego_cli.config.model import Cluster
from protego_cli.control.channel import pki
from protego_cli.control.channel.desired_records import Park
from protego_cli.control.channel.frames import NODE_LIMIT, encode
from protego_cli.control.channel.message import Failed, Reply
from protego_cli.control.channel.messages import AnyReply, AnyRequest
from protego_cli.control.channel.node_messages import (
    Applied,
    FirstPacket,
    GetMarks,
    Marks,
    Noted,
    Report,
    Sync,
)
from protego_cli.control.channel.pki import Identity
from protego_cli.control.channel.rpc import (
    OUTSTANDING,
    Handler,
    Link,
    LinkClosed,
    Unanswered,
    error_of,
    failure,
)
from protego_cli.control.channel.tls import TlsStream
from protego_cli.errors import (
    EnvironmentFault,
    Exit,
    NotFound,
    ProtegoError,
    Refused,
    Unreachable,
    UsageError,
)
from tests.support.control import make_certified, no_requests, until

GMN, GPN = Identity("demo", "gmn", "gmn-1"), Identity("demo", "gpn", "gpn-1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return make_certified(Path(tmp_path_factory.mktemp("pki")))


async def tls_pair(cluster: Cluster) -> tuple[TlsStream, TlsStream]:
    """(the GMN's end, the GPN's end), after the handshake."""
    left, right = socket.socketpair()
    ends = []
    contexts = (pki.server_context(cluster, cluster.nodes[0]), pki.client_context(cluster, "gpn-1"))
    for sock, context, server in ((left, contexts[0], True), (right, contexts[1], False)):
        sock.setblocking(False)
        ends.append(TlsStream(context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False)))
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.handshake)
    return ends[0], ends[1]


@contextlib.asynccontextmanager
async def linked(
    cluster: Cluster, gmn_handler: Handler = no_requests, gpn_handler: Handler = no_requests, **options: float
) -> AsyncIterator[tuple[Link, Link]]:
    """(the GMN's link, the GPN's link); `options` are of the GMN's."""
    server, client = await tls_pair(cluster)
    async with trio.open_nursery() as nursery:
        gmn = Link(server, GPN, gmn_handler, nursery, limit=NODE_LIMIT, **options)
        gpn = Link(client, GMN, gpn_handler, nursery, limit=1 << 26)
        nursery.start_soon(gmn.run)
        nursery.start_soon(gpn.run)
        yield gmn, gpn
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def bare(
    cluster: Cluster, handler: Handler = no_requests, **options: float
) -> AsyncIterator[tuple[Link, TlsStream]]:
    """(the GMN's link, the other end as a bare TLS stream)."""
    server, client = await tls_pair(cluster)
    async with trio.open_nursery() as nursery:
        link = Link(server, GPN, handler, nursery, limit=NODE_LIMIT, **options)
        nursery.start_soon(link.run)
        yield link, client
        client.close()
        nursery.cancel_scope.cancel()


def raw(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


# ---- calls


async def test_requests_go_both_ways(cluster: Cluster) -> None:
    def gpn_answers(request: AnyRequest) -> Reply:
        return Marks(dict.fromkeys(request.spis, 5)) if isinstance(request, GetMarks) else Failed("what?")

    async with linked(cluster, gpn_handler=gpn_answers) as (gmn, gpn):
        assert await gmn.call(GetMarks((1, 2))) == Marks({1: 5, 2: 5})
        assert await gpn.call(FirstPacket(3)) == Noted()


async def test_replies_find_their_requests_in_any_order(cluster: Cluster) -> None:
    gates = {spi: trio.Event() for spi in range(8)}
    arrived: list[int] = []

    async def answer(spi: int) -> Reply:
        await gates[spi].wait()
        return Applied(spi)

    def handler(request: AnyRequest) -> Awaitable[Reply]:
        assert isinstance(request, FirstPacket)
        arrived.append(request.spi_in)
        return answer(request.spi_in)

    async with linked(cluster, handler) as (_, gpn), trio.open_nursery() as nursery:
        results: dict[int, object] = {}

        async def ask(spi: int) -> None:
            results[spi] = await gpn.call(FirstPacket(spi))

        for spi in gates:
            nursery.start_soon(ask, spi)
        await until(lambda: len(arrived) == 8)
        for done, spi in enumerate(reversed(range(8)), 1):
            gates[spi].set()
            await until(lambda done=done: len(results) == done)  # type: ignore[misc]
        assert results == {spi: Applied(spi) for spi in range(8)}


async def test_handlers_run_in_the_order_of_sending(cluster: Cluster) -> None:
    seen: list[int] = []

    def handler(request: AnyRequest) -> Reply:
        assert isinstance(request, FirstPacket)
        seen.append(request.spi_in)
        return Noted()

    async with linked(cluster, handler) as (_, gpn), trio.open_nursery() as nursery:
        sent: list[int] = []

        async def ask(spi: int) -> None:
            sent.append(spi)
            await gpn.call(FirstPacket(spi))

        for spi in range(200):
            nursery.start_soon(ask, spi)
        await until(lambda: len(seen) == 200)
        assert seen == sent


async def test_large_messages_pass_and_leave_others_room(cluster: Cluster) -> None:
    """16 MB of records one way while replies come the other."""
    records = tuple(Park(spi) for spi in range(1 << 20))

    def handler(request: AnyRequest) -> Reply:
        assert isinstance(request, Sync)
        return Applied(len(request.records))

    async with linked(cluster, gpn_handler=handler) as (gmn, gpn), trio.open_nursery() as nursery:
        nursery.start_soon(gpn.call, FirstPacket(1))
        assert await gmn.call(Sync(1, 1, records), 60) == Applied(1 << 20)


@pytest.mark.parametrize("kind", [Refused, UsageError, NotFound, EnvironmentFault])
async def test_errors_arrive_as_what_they_are(cluster: Cluster, kind: type[ProtegoError]) -> None:
    def at_once(request: AnyRequest) -> Reply:
        raise kind("what happened")

    async def awaited(request: AnyRequest) -> Reply:
        raise kind("what happened")

    for handler in (at_once, awaited):
        async with linked(cluster, handler) as (_, gpn):
            with pytest.raises(kind, match=r"^what happened$"):
                await gpn.call(FirstPacket(1))


def test_an_unknown_code_is_a_refusal() -> None:
    assert type(error_of(Failed("x", 99))) is Refused
    assert failure(NotFound("x")) == Failed("x", Exit.NOT_FOUND)


def test_whom_the_answering_side_could_not_reach_is_another_node() -> None:
    """Else `protego migrate` says that no control node answers, when it is a GPN."""
    error = error_of(failure(Unreachable("gpn-1: withdrawn")))
    assert (type(error), str(error)) == (Refused, "gpn-1: withdrawn")


async def test_a_late_reply_is_dropped_and_the_link_stands(cluster: Cluster) -> None:
    gate = trio.Event()

    async def slow(request: AnyRequest) -> Reply:
        await gate.wait()
        return Applied(1)

    def handler(request: AnyRequest) -> Reply | Awaitable[Reply]:
        return slow(request) if request == FirstPacket(1) else Noted()

    async with linked(cluster, handler) as (_, gpn):
        with pytest.raises(Unanswered, match=r"gmn-1: no answer to FirstPacket within 0\.01 s"):
            await gpn.call(FirstPacket(1), 0.01)
        gate.set()
        assert await gpn.call(FirstPacket(2)) == Noted()
        assert gpn.closed is None


async def test_what_came_while_this_process_did_not_run_came_in_time(cluster: Cluster) -> None:
    async with bare(cluster) as (link, other):
        for number in range(12):  # which of two tasks runs first that are due together is left to chance
            answers: list[AnyReply | ProtegoError] = []
            identifier = link.send(Park(number), answers.append, 0.1)
            other.send(encode(identifier, Noted()))
            time.sleep(0.3)  # noqa: ASYNC251 - the whole process is to stand still
            await until(partial(bool, answers))
            assert answers == [Noted()]


async def test_time_in_which_this_process_did_not_run_is_granted_again(cluster: Cluster) -> None:
    async with bare(cluster) as (link, other):
        answers: list[AnyReply | ProtegoError] = []
        identifier = link.send(Park(1), answers.append, 1.0)
        await trio.testing.wait_all_tasks_blocked()
        time.sleep(0.9)  # noqa: ASYNC251 - the same
        await trio.sleep(0.4)
        assert answers == []
        other.send(encode(identifier, Noted()))
        await until(lambda: answers)
        assert answers == [Noted()]


# ---- closing


async def test_calls_that_wait_learn_that_the_link_closed(cluster: Cluster) -> None:
    reached = trio.Event()

    async def never(request: AnyRequest) -> Reply:
        reached.set()
        await trio.sleep_forever()
        raise AssertionError

    async with linked(cluster, never) as (gmn, gpn), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(LinkClosed, match="gmn-1: the connection was closed"):
                await gpn.call(FirstPacket(1))
            with pytest.raises(LinkClosed):
                await gpn.call(FirstPacket(2))
            nursery.cancel_scope.cancel()

        nursery.start_soon(ask)
        await reached.wait()
        gmn.close("enough")
        assert gmn.closed == "enough"
        await trio.sleep_forever()


async def test_work_outlives_the_link_that_asked_for_it(cluster: Cluster) -> None:
    gate, done = trio.Event(), trio.Event()

    async def work(request: AnyRequest) -> Reply:
        await gate.wait()
        done.set()
        return Noted()

    async with linked(cluster, work) as (gmn, gpn), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(LinkClosed):
                await gpn.call(FirstPacket(1))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.01)
        gpn.close("gone")
        await until(lambda: gmn.closed)
        gate.set()
        with trio.fail_after(5):
            await done.wait()


async def test_silence_closes(cluster: Cluster) -> None:
    async with bare(cluster, silence=0.05) as (link, _):
        await until(lambda: link.closed)
        assert link.closed == "silent for 0.05 s"


async def test_silence_while_this_process_did_not_run_is_none(cluster: Cluster) -> None:
    async with bare(cluster, silence=0.2) as (link, other):
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(8):  # which of two tasks runs first that are due together is left to chance
            other.send(encode(0, Report(0.0)))
            time.sleep(0.35)  # noqa: ASYNC251 - the whole process is to stand still
            await trio.testing.wait_all_tasks_blocked()
            assert link.closed is None
        await until(lambda: link.closed)


async def test_a_frame_that_dribbles_in_counts_as_silence(cluster: Cluster) -> None:
    frame = encode(0, Report(0.0))
    async with bare(cluster, silence=0.2) as (link, stream):
        with trio.fail_after(10):
            for byte in frame[:-1]:
                stream.send(bytes([byte]))
                await trio.sleep(0.02)
                if link.closed:
                    break
            else:
                pytest.fail("bytes that complete no frame kept the link open")
        assert link.closed == "silent for 0.2 s"


# ---- hostile frames


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "above the limit"),
        (struct.pack("!I", NODE_LIMIT + 1), "above the limit"),
        (raw(b""), "does not decode"),
        (raw(b"\xff" * 100), "does not decode"),
        (raw(msgspec.msgpack.encode((0, 1, {"type": "Nonsense"}))), "does not decode"),
        (raw(msgspec.msgpack.encode((9, 1, {}))), "neither request nor reply"),
        (encode(0, Applied(1)), "a reply to a request never made"),
        (encode(-1, Applied(1)), "a reply to a request never made"),
    ],
)
async def test_hostile_frames_close_the_link(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, data: bytes, reason: str
) -> None:
    asked: list[AnyRequest] = []

    def handler(request: AnyRequest) -> Reply:
        asked.append(request)
        return Noted()

    with caplog.at_level(logging.WARNING):
        async with bare(cluster, handler) as (link, stream):
            stream.send(data)
            await until(lambda: link.closed)
            assert link.closed is not None
            assert reason in link.closed
    assert asked == []
    assert sum("control link closed node=gpn-1" in line for line in caplog.messages) == 1


async def test_more_requests_than_agreed_close_the_link(cluster: Cluster) -> None:
    running = 0

    async def never(request: AnyRequest) -> Reply:
        nonlocal running
        running += 1
        await trio.sleep_forever()
        raise AssertionError

    async with bare(cluster, never) as (link, stream):
        for i in range(OUTSTANDING):
            stream.send(encode(i, FirstPacket(i)))
        await until(lambda: running == OUTSTANDING)
        assert link.closed is None
        stream.send(encode(OUTSTANDING, FirstPacket(1)))
        await until(lambda: link.closed)
        assert link.closed == f"more than {OUTSTANDING} requests at once"
        assert running == OUTSTANDING


async def test_one_who_never_reads_is_cut_off(cluster: Cluster) -> None:
    def handler(request: AnyRequest) -> Reply:
        return Failed("x" * 500_000)

    async with bare(cluster, handler) as (link, stream):
        for i in range(100):
            stream.send(encode(i, FirstPacket(i)))
        await until(lambda: link.closed)
        assert link.closed == "it does not read its replies"


async def test_our_own_requests_are_bounded(cluster: Cluster) -> None:
    async def never(request: AnyRequest) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    async with linked(cluster, never) as (_, gpn), trio.open_nursery() as nursery:
        for i in range(OUTSTANDING):
            nursery.start_soon(gpn.call, FirstPacket(i))
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(Refused, match=f"{OUTSTANDING} requests wait"):
            await gpn.call(FirstPacket(9))
        nursery.cancel_scope.cancel()
