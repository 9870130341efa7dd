"""The role as it runs: real mTLS, real UDP envelopes, a real engine as the peer; data planes that note.

The test is the GIN's data path: it opens and seals envelopes on the GIN's fabric address.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path as FilePath

import msgspec
import pytest
import trio

from protego_cli.config.model import Cluster, Node, Ports, PskAuth, TenantConfig, TunnelConfig, VxlanAttach
from protego_cli.control.channel import pki
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.desired_records import Neighbour, Sa
from protego_cli.control.channel.operator_messages import (
    ListNames,
    Migrate,
    Migrated,
    Names,
)
from protego_cli.control.state.sqlite import SqliteStore
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import EnvironmentFault, NotFound, Refused, UsageError
from protego_cli.net.pump import drain, pump
from protego_cli.net.udp import UdpSocket
from protego_cli.plugins.manager import load_plugins
from protego_cli.roles import gmn
from protego_cli.wire.envelope import Envelope, seal_envelope
from tests.support.control import run_agent, until
from tests.support.gmn_rig import PEER, TUNNEL, VIP, Rig

PLUGINS = load_plugins()


def make_cluster(directory: FilePath) -> Cluster:
    """On loopback addresses that no other run uses."""
    prefix = f"127.77.{os.getpid() % 250 + 1}"
    names = ("gmn-1", "gin-1", "gen-1", "gpn-1", "gpn-2")
    secret = directory / "hq.psk"
    secret.touch(mode=0o600)
    secret.write_text("a secret both sides hold")
    tunnel = TunnelConfig(
        name="hq",
        tenant="acme",
        peer=PEER,
        local_id=VIP,
        remote_id=PEER,
        auth=PskAuth(secret),
        local_ts=("10.1.0.0/24",),
        remote_ts=("10.2.0.0/24",),
        vip=VIP,
    )
    cluster = Cluster(
        name="demo",
        file=directory / "cluster.toml",
        vips=(VIP,),
        pki=directory / "pki",
        state=directory / "state",
        nodes=tuple(Node(name, name[:3], f"{prefix}.{i + 1}", Ports()) for i, name in enumerate(names)),  # type: ignore[arg-type]
        tenants=(TenantConfig("acme", 1001, bytes(6), VxlanAttach(()), (tunnel,)),),
    )
    pki.init(cluster)
    return cluster


@asynccontextmanager
async def connected(directory: FilePath) -> AsyncIterator[tuple[Rig, trio.Nursery]]:
    """Nodes that look for a GMN, and a nursery for them."""
    cluster = make_cluster(directory)
    gin = cluster.nodes_of("gin")[0]
    with closing(UdpSocket.bind(gin.address, gin.ports.fabric)) as socket:
        rig = Rig(cluster, socket)
        async with trio.open_nursery() as nodes:
            nodes.start_soon(pump, socket, partial(drain, socket, rig.receive))
            for name, plane in rig.planes.items():
                node = cluster.node(name)
                assert node is not None
                rig.agents.append(await nodes.start(run_agent, cluster, node, plane))
            yield rig, nodes
            nodes.cancel_scope.cancel()


@asynccontextmanager
async def running(directory: FilePath) -> AsyncIterator[tuple[Rig, trio.Nursery]]:
    async with connected(directory) as (rig, nodes), life(rig):
        yield rig, nodes


@asynccontextmanager
async def life(rig: Rig) -> AsyncIterator[None]:
    """A GMN from its start until it is told to end."""
    async with trio.open_nursery() as control:
        await control.start(gmn.run, rig.cluster, rig.cluster.nodes[0], PLUGINS)
        await until(lambda: all(agent.connected for agent in rig.agents))
        await until(lambda: all(plane.records for plane in rig.planes.values()))
        yield
        control.cancel_scope.cancel()


async def test_a_tunnel_comes_up_and_migrates(tmp_path: FilePath) -> None:
    async with running(tmp_path) as (rig, _):
        await rig.up()
        tunnel = await rig.tunnel()
        assert (tunnel.id, tunnel.state, tunnel.gpn) == (TUNNEL, "up", "gpn-1")
        assert tunnel.spi_in == f"{rig.peer.child.spi_out:08x}"

        moved = await ask(rig.cluster, Migrate(TUNNEL, "gpn-2"))
        assert isinstance(moved, Migrated)
        assert (moved.source, moved.to, moved.method) == ("gpn-1", "gpn-2", "rekey")
        assert 0 < moved.rekey_ms < moved.total_ms
        assert 0 < moved.distribute_ms < moved.total_ms
        assert (await rig.tunnel()).gpn == "gpn-2"
        assert ("barrier", "gpn-1") in rig.planes["gen-1"].log
        (sa,) = [record for record in rig.planes["gpn-2"].records.values() if isinstance(record, Sa)]
        assert sa.spi_out == rig.peer.child.spi_in
        assert sa.key_out == rig.peer.child.key_in


async def test_a_gmn_that_returns_changes_nothing_and_goes_on(tmp_path: FilePath) -> None:
    async with connected(tmp_path) as (rig, _):
        async with life(rig):
            await rig.up()
            before = await rig.tunnel()
            held = {name: dict(plane.records) for name, plane in rig.planes.items()}
            ikes = dict(rig.peer.ikes)
            for plane in rig.planes.values():
                plane.log.clear()
        async with life(rig):
            assert (await rig.status()).epoch == 2
            assert (await rig.tunnel()).spi_in == before.spi_in
            assert {name: plane.records for name, plane in rig.planes.items()} == held
            assert [plane.log for plane in rig.planes.values()] == [[]] * 4
            moved = await ask(rig.cluster, Migrate(TUNNEL, "gpn-2"))
            assert isinstance(moved, Migrated)
            assert rig.peer.ikes == ikes
            assert (await rig.tunnel()).gpn == "gpn-2"


async def test_a_gmn_that_cannot_store_acknowledges_nothing_and_ends(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: SqliteStore, changes: object) -> None:
        raise EnvironmentFault("state.db: the disk is full")

    async def ask_too_much(rig: Rig) -> None:
        async with life(rig):
            monkeypatch.setattr(SqliteStore, "commit", full)
            rig.peer.dial(TUNNEL, VIP, port=4500)
            rig.flush()
            await trio.sleep_forever()

    async with connected(tmp_path) as (rig, _):
        sent = len(rig.network.sent)
        with pytest.raises(ExceptionGroup) as caught:
            await ask_too_much(rig)
        assert caught.group_contains(EnvironmentFault, match="the disk is full")
        assert len(rig.network.sent) == sent
        assert not rig.peer.ikes  # its IKE_SA_INIT was not even answered
        assert all(
            not any(kind in ("sa", "steer", "route") for kind, _ in plane.records)
            for plane in rig.planes.values()
        )


async def test_operators_are_answered_and_told_what_is_wrong(tmp_path: FilePath) -> None:
    async with running(tmp_path) as (rig, _):
        names = await ask(rig.cluster, ListNames())
        assert names == Names(tunnels=(TUNNEL,), nodes=("gmn-1", "gin-1", "gen-1", "gpn-1", "gpn-2"))
        for mistaken in ("acme/hk", "hq"):
            with pytest.raises(NotFound, match="did you mean acme/hq"):
                await ask(rig.cluster, Migrate(mistaken, "gpn-2"))
        with pytest.raises(Refused, match="acme/hq is not up"):
            await ask(rig.cluster, Migrate(TUNNEL, "gpn-2"))
        status = await rig.status()
        assert status.epoch == 1
        assert {node.name: node.state for node in status.nodes} == dict.fromkeys(names.nodes, "up")


async def test_what_is_forged_or_malformed_is_counted_and_stops_nothing(tmp_path: FilePath) -> None:
    async with running(tmp_path) as (rig, _):
        good = seal_envelope(rig.key, Envelope(VIP, 4500, PEER, 4500, b"\x01" * 60), hmac_sha256)
        forged = seal_envelope(bytes(32), Envelope(VIP, 4500, PEER, 4500, b"\x01" * 60), hmac_sha256)
        for datagram in (b"", b"\x00" * 7, forged, good[:-1], os.urandom(1400)):
            rig.send(datagram)
        rig.send(good)
        await rig.up()
        counters = (await rig.status()).nodes[0].counters
        assert counters["gmn_drop_envelope"] == 5
        assert counters["ike_drop_malformed"] + counters.get("ike_drop_version", 0) == 1


async def test_a_restarted_gmn_takes_a_new_epoch(tmp_path: FilePath) -> None:
    async with running(tmp_path) as (rig, _):
        assert (await rig.status()).epoch == 1
    async with running(tmp_path) as (rig, _):
        assert (await rig.status()).epoch == 2
        assert any(isinstance(record, Neighbour) for record in rig.planes["gpn-1"].records.values())


async def test_an_occupied_port_is_one_clear_sentence(tmp_path: FilePath) -> None:
    cluster = make_cluster(tmp_path)
    node = cluster.nodes[0]
    with (
        closing(UdpSocket.bind(node.address, node.ports.fabric)),
        pytest.raises(EnvironmentFault, match=f"{node.ports.fabric} is in use"),
    ):
        await gmn.run(cluster, node, PLUGINS)


async def test_a_missing_secret_is_named(tmp_path: FilePath) -> None:
    cluster = make_cluster(tmp_path)
    (tmp_path / "hq.psk").unlink()
    with pytest.raises(EnvironmentFault, match=r"hq\.psk"):
        await gmn.run(cluster, cluster.nodes[0], PLUGINS)


async def test_an_unknown_packing_policy_is_named(tmp_path: FilePath) -> None:
    cluster = msgspec.structs.replace(make_cluster(tmp_path), packing="tetris")
    with pytest.raises(UsageError, match=r"'tetris'; known: .*first-fit-decreasing, .*spread"):
        await gmn.run(cluster, cluster.nodes[0], PLUGINS)
