"""The operator's question and what comes back, or what the error says."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from protego_cli.config.model import Cluster
from protego_cli.control.channel import pki
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.fabric import OPERATIONS, OPERATORS
from protego_cli.control.channel.message import Reply
from protego_cli.control.channel.operator_messages import (
    GetStatus,
    ListNames,
    Migrate,
    Migrated,
    Names,
    OperatorRequest,
    Status,
)
from protego_cli.errors import EnvironmentFault, NotFound, Refused, Unreachable
from tests.support.control import at_port, dialled, make_certified, make_cluster, running_gmn, until

MIGRATED = Migrated("acme/hq", "gpn-1", "gpn-2", "rekey", 1.0, 2.0, 3.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return make_certified(Path(tmp_path_factory.mktemp("pki")))


async def answer(request: OperatorRequest) -> Reply:
    match request:
        case GetStatus():
            return Status(4, (), ())
        case ListNames():
            return Names(("acme/hq",), ("gpn-1",))
        case Migrate(tunnel="acme/hq"):
            return MIGRATED
    raise NotFound(f"no tunnel {request.tunnel!r}")


async def test_questions_and_answers(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        gmn.fabric.operator_handler = answer
        assert await ask(gmn.cluster, GetStatus()) == Status(4, (), ())
        assert await ask(gmn.cluster, ListNames()) == Names(("acme/hq",), ("gpn-1",))
        assert await ask(gmn.cluster, Migrate("acme/hq", "gpn-2")) == MIGRATED
        with pytest.raises(NotFound, match=r"^no tunnel 'acme/x'$"):
            await ask(gmn.cluster, Migrate("acme/x", "gpn-2"))


async def test_before_the_gmn_is_ready(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        with pytest.raises(Refused, match="still starting"):
            await ask(gmn.cluster, GetStatus())


async def test_no_gmn(cluster: Cluster) -> None:
    with pytest.raises(Unreachable) as caught:
        await ask(at_port(cluster, 1), GetStatus())
    assert "127.0.0.1:1" in str(caught.value)
    assert "is the GMN running?" in str(caught.value)


async def test_no_answer_in_time(cluster: Cluster) -> None:
    async def never(request: OperatorRequest) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    async with running_gmn(cluster) as gmn:
        gmn.fabric.operator_handler = never
        port = gmn.cluster.nodes[0].ports.control
        with pytest.raises(Unreachable, match=rf"127\.0\.0\.1:{port}"):
            await ask(gmn.cluster, GetStatus(), timeout=0.05)


async def test_no_certificates(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="run `protego pki init -c"):
        await ask(make_cluster(tmp_path), GetStatus())


async def test_a_gmn_of_another_ca(cluster: Cluster, tmp_path: Path) -> None:
    twin = make_cluster(tmp_path)
    pki.init(twin)
    async with running_gmn(cluster) as gmn:
        with pytest.raises(Refused, match="no TLS connection: certificate refused: it is of another CA"):
            await ask(at_port(twin, gmn.cluster.nodes[0].ports.control), GetStatus())


async def test_what_an_operator_began_is_finished_without_him(cluster: Cluster) -> None:
    started, gate, finished = trio.Event(), trio.Event(), trio.Event()

    async def migrate(request: OperatorRequest) -> Reply:
        started.set()
        await gate.wait()
        finished.set()
        return MIGRATED

    async with running_gmn(cluster) as gmn:
        gmn.fabric.operator_handler = migrate
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, gmn.cluster, Migrate("acme/hq", "gpn-2"))
            await started.wait()
            nursery.cancel_scope.cancel()
        gate.set()
        with trio.fail_after(5):
            await finished.wait()


async def test_operations_are_bounded(cluster: Cluster) -> None:
    running = 0

    async def never(request: OperatorRequest) -> Reply:
        nonlocal running
        running += 1
        await trio.sleep_forever()
        raise AssertionError

    async with running_gmn(cluster) as gmn, trio.open_nursery() as nursery:
        gmn.fabric.operator_handler = never
        async with dialled(gmn.cluster, "operator") as link:
            for _ in range(OPERATIONS):
                nursery.start_soon(link.call, GetStatus())
            await until(lambda: running == OPERATIONS)
            with pytest.raises(Refused, match=f"{OPERATIONS} operator requests are being worked on"):
                await link.call(GetStatus())
            nursery.cancel_scope.cancel()


async def test_operators_are_bounded(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn, trio.open_nursery() as nursery:
        gmn.fabric.operator_handler = answer
        ready: list[int] = []

        async def stay() -> None:
            async with dialled(gmn.cluster, "operator") as link:
                await link.call(GetStatus())
                ready.append(1)
                await trio.sleep_forever()

        for _ in range(OPERATORS):
            nursery.start_soon(stay)
        await until(lambda: len(ready) == OPERATORS)
        with pytest.raises(Unreachable):
            await ask(gmn.cluster, GetStatus())
        nursery.cancel_scope.cancel()
