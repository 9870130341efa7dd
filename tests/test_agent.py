"""A data node's agent: it connects again for ever, keeps what it holds, and says little about it."""

from __future__ import annotations

import contextlib
import logging
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from protego_cli.config.model import Cluster
from protego_cli.control.channel import pki
from protego_cli.control.channel.agent import NOTICES, Agent
from protego_cli.control.channel.desired_records import Park
from protego_cli.control.channel.fabric import NodeDown
from protego_cli.control.channel.node_messages import (
    FirstPacket,
    GetMarks,
    Marks,
    PeerAddress,
    RangeLow,
    Report,
)
from protego_cli.control.channel.operator_messages import GetStatus
from protego_cli.control.channel.pki import Identity
from protego_cli.errors import EnvironmentFault
from tests.support.control import FakePlane, Gmn, at_port, make_certified, running_gmn, until


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return make_certified(tmp_path)


def an_agent(cluster: Cluster, plane: FakePlane, name: str = "gpn-1", **options: float) -> Agent:
    node = cluster.node(name)
    assert node is not None
    return Agent(cluster, node, plane, **options)


def states(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [
        record.getMessage() for record in caplog.records if record.name == "protego_cli.control.channel.agent"
    ]
    return [line.split()[2] for line in lines if line.startswith("control channel")]


async def test_it_holds_what_is_desired(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane = FakePlane()
        agent, _ = await gmn.start("gpn-1", plane)
        assert not agent.connected
        await agent.informed.wait()
        assert agent.connected
        assert agent.records == plane.records
        assert agent.epoch == 1


async def test_the_data_plane_outlives_the_gmn_and_is_reconciled(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plane = FakePlane()
    async with trio.open_nursery() as nursery:
        async with running_gmn(cluster, epoch=1) as first:
            agent = an_agent(first.cluster, plane)
            nursery.start_soon(agent.run)
            await until(lambda: agent.connected)
            await first.apply("gpn-1", put=[Park(300), Park(301)])
            port = first.cluster.nodes[0].ports.control
        await until(lambda: not agent.connected)
        assert ("park", 300) in plane.records
        assert not [entry for entry in plane.log if entry[0] == "drop"]
        plane.log.clear()

        async with running_gmn(at_port(cluster, port), epoch=2) as second:
            second.fabric.desire("gpn-1", put=[Park(301), Park(302)])
            await until(lambda: agent.connected)
            assert agent.epoch == 2
            assert ("drop", ("park", 300)) in plane.log
            assert ("put", ("park", 302)) in plane.log
            assert ("put", ("park", 301)) not in plane.log
        nursery.cancel_scope.cancel()
    assert states(caplog)[0] == "connected"
    assert states(caplog).count("connected") == 2


async def test_a_gmn_below_the_highest_epoch_is_refused(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plane = FakePlane()
    async with trio.open_nursery() as nursery:
        async with running_gmn(cluster, epoch=5) as new:
            agent = an_agent(new.cluster, plane)
            nursery.start_soon(agent.run)
            await until(lambda: agent.connected)
            await new.apply("gpn-1", put=[Park(300)])
            port = new.cluster.nodes[0].ports.control
        async with running_gmn(at_port(cluster, port), epoch=4) as old:
            await until(lambda: "refused" in states(caplog))
            assert old.observer.log == []
        assert ("park", 300) in plane.records
        assert agent.epoch == 5
        nursery.cancel_scope.cancel()


async def test_a_lying_gmn_of_a_lower_epoch_changes_nothing(cluster: Cluster) -> None:
    """The node's own check, should a GMN not heed what Hello says."""
    plane = FakePlane()
    async with trio.open_nursery() as nursery:
        async with running_gmn(cluster, epoch=5) as new:
            agent = an_agent(new.cluster, plane)
            nursery.start_soon(agent.run)
            await until(lambda: agent.connected)
            port = new.cluster.nodes[0].ports.control
        before = dict(plane.records)
        async with running_gmn(at_port(cluster, port), epoch=4) as old:
            old.fabric._greet = lambda hello, node: msgspec.structs.replace(  # type: ignore[method-assign]
                plane.welcomes[0], epoch=4
            )
            await until(lambda: ("connecting", "gpn-1") in old.observer.log)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not agent.connected
            assert ("up", "gpn-1") not in old.observer.log
        assert plane.records == before
        assert len(plane.welcomes) == 1
        nursery.cancel_scope.cancel()


async def test_a_change_is_confirmed_when_the_data_path_acts_on_it(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane = FakePlane()
        agent, _ = await gmn.start("gpn-1", plane)
        await until(lambda: ("up", "gpn-1") in gmn.observer.log)
        plane.slow = trio.Event()
        confirmed: list[int] = []

        async def change(number: int) -> None:
            await gmn.apply("gpn-1", put=[Park(number)])
            confirmed.append(number)

        async with trio.open_nursery() as nursery:
            for number in (301, 302):
                nursery.start_soon(change, number)
            await until(lambda: {("park", 301), ("park", 302)} & plane.records.keys())  # the other gathers
            assert confirmed == []
            plane.slow.set()
        assert sorted(confirmed) == [301, 302]
        assert agent.connected


async def test_the_log_has_a_line_for_each_change(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    tries = 0

    async def slam(tcp: trio.SocketStream) -> None:
        nonlocal tries
        tries += 1
        await tcp.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, slam, listeners)
        nursery.start_soon(an_agent(at_port(cluster, port), FakePlane()).run)
        await until(lambda: tries >= 4)
        nursery.cancel_scope.cancel()
    assert states(caplog) == ["refused"]


async def test_notices_wait_for_a_gmn_the_latest_of_each_spi(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        plane = FakePlane()
        agent, _ = await gmn.start("gpn-1", plane)
        agent.notify(PeerAddress(300, "192.0.2.1", 1000))
        agent.notify(PeerAddress(300, "192.0.2.1", 2000))
        agent.notify(RangeLow(300))
        await until(lambda: len(gmn.observer.notices()) >= 2)
        assert sorted(map(repr, gmn.observer.notices())) == sorted(
            map(repr, [("gpn-1", PeerAddress(300, "192.0.2.1", 2000)), ("gpn-1", RangeLow(300))])
        )
        agent.notify(FirstPacket(301))
        await until(lambda: ("gpn-1", FirstPacket(301)) in gmn.observer.notices())
        assert len(gmn.observer.notices()) == 3  # none twice


async def test_notices_are_bounded(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn:
        agent, _ = await gmn.start("gpn-1", FakePlane())
        for spi in range(NOTICES + 10):
            agent.notify(FirstPacket(spi))
        await until(lambda: len(gmn.observer.notices()) == NOTICES)
        heard = {request.spi_in for _, request in gmn.observer.notices() if isinstance(request, FirstPacket)}
        assert heard == set(range(10, NOTICES + 10))


async def test_reports_come_by_the_clock_and_at_once_when_urgent(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn, trio.open_nursery() as nursery:
        plane = FakePlane()
        agent = an_agent(gmn.cluster, plane, report_interval=3600)
        nursery.start_soon(agent.run)
        await until(lambda: gmn.observer.requests)
        plane.silent = ("gpn-2",)
        agent.report_now()
        await until(
            lambda: any(
                isinstance(report, Report) and report.silent == ("gpn-2",)
                for _, report in gmn.observer.requests
            )
        )
        nursery.cancel_scope.cancel()


async def test_reports_repeat(cluster: Cluster) -> None:
    async with running_gmn(cluster) as gmn, trio.open_nursery() as nursery:
        agent = an_agent(gmn.cluster, FakePlane(), report_interval=0.01)
        nursery.start_soon(agent.run)
        await until(lambda: len(gmn.observer.requests) >= 5)
        nursery.cancel_scope.cancel()


async def test_a_frozen_gmn_is_left(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """A GMN that holds the connection and says nothing is as good as none."""
    caplog.set_level(logging.INFO)
    context = pki.server_context(cluster, cluster.nodes[0])
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    connections = 0

    async def freeze(tcp: trio.SocketStream) -> None:
        nonlocal connections
        stream = trio.SSLStream(tcp, context, server_side=True, https_compatible=False)
        try:
            await stream.do_handshake()
            connections += 1
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, freeze, listeners)
        agent = an_agent(at_port(cluster, port), FakePlane(), silence=0.05)
        nursery.start_soon(agent.run)
        await until(lambda: connections >= 2)
        nursery.cancel_scope.cancel()
    assert states(caplog) == ["unreachable"]


async def test_a_data_node_takes_orders_of_a_gmn_only(cluster: Cluster) -> None:
    plane = FakePlane()
    agent = an_agent(cluster, plane)
    reply = agent._handle(GetStatus())
    assert getattr(reply, "message", "") == "gpn-1 is a data node: no GetStatus here"
    assert agent._handle(GetMarks((1,))) == Marks({1: 0})


async def test_a_certificate_is_renewed_without_a_restart(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has expired while the node ran: the GMN refuses it, which the node's log says once."""
    caplog.set_level(logging.INFO)
    renew(cluster, monkeypatch, timedelta(seconds=-1))
    with monkeypatch.context() as then:
        then.setattr(pki, "_check_leaf", lambda *args: None)  # when the node started it was good
        async with running_gmn(cluster) as gmn, trio.open_nursery() as nursery:
            agent = an_agent(gmn.cluster, FakePlane())
            nursery.start_soon(agent.run)
            await until(lambda: states(caplog) == ["refused"])
            assert "refuses our certificate: certificate expired; `protego doctor`" in caplog.text
            (cluster.pki / "gpn-1.pem").write_text("no certificate")
            await until(lambda: "certificates not taken up" in caplog.text)
            renew(cluster, monkeypatch, timedelta(days=1))
            await until(lambda: agent.connected)
            nursery.cancel_scope.cancel()
    assert states(caplog) == ["refused", "connected"]


def renew(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, lifetime: timedelta) -> None:
    for suffix in (".pem", ".key"):
        (cluster.pki / f"gpn-1{suffix}").unlink()
    with monkeypatch.context() as then:
        then.setattr(pki, "_LEAF_LIFETIME", lifetime)
        pki.init(cluster)


async def test_unusable_certificates_end_it_with_a_sentence(cluster: Cluster) -> None:
    (cluster.pki / "gpn-1.key").chmod(0o644)
    node = cluster.node("gpn-1")
    assert node is not None
    with pytest.raises(EnvironmentFault, match="chmod 600"):
        await Agent(cluster, node, FakePlane()).run()


async def test_another_gmn_than_the_one_dialled_is_refused(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_gmn(cluster) as gmn, trio.open_nursery() as nursery:
        renamed, *others = gmn.cluster.nodes
        wrong = msgspec.structs.replace(renamed, name="gmn-2")
        agent = an_agent(msgspec.structs.replace(gmn.cluster, nodes=(wrong, *others)), FakePlane())
        nursery.start_soon(agent.run)
        await until(lambda: states(caplog) == ["refused"])
        assert str(Identity("demo", "gmn", "gmn-2")) in caplog.text
        nursery.cancel_scope.cancel()


async def test_disconnects_in_the_middle_of_applies_converge(cluster: Cluster) -> None:
    """Whatever is cut, in the end the node holds what is desired and no more."""
    async with running_gmn(cluster) as gmn:
        plane, _ = await gmn.join("gpn-1")
        await churn(gmn)
        await until(lambda: gmn.fabric.connected("gpn"))
        await gmn.fabric.applied("gpn-1")
        parked = {key[1] for key in plane.records if key[0] == "park"}
        assert parked == {spi for spi in range(300, 360) if spi % 3}


async def churn(gmn: Gmn) -> None:
    """Put 60 records, drop every third, and cut the link six times while that goes on."""

    async def change(spi: int) -> None:
        with contextlib.suppress(NodeDown):
            await gmn.apply("gpn-1", put=[Park(spi)])
        if spi % 3 == 0:
            gmn.fabric.desire("gpn-1", drop=[("park", spi)])

    for start in range(300, 360, 10):
        async with trio.open_nursery() as nursery:
            for spi in range(start, start + 10):
                nursery.start_soon(change, spi)
            await trio.lowlevel.checkpoint()
            gmn.fabric._members["gpn-1"].live().close("cut")
        await until(lambda: gmn.fabric.connected("gpn"))
