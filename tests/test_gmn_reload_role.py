"""Reloads as they run: a real file, real mTLS, real UDP envelopes, SIGHUP, a real engine as the peer."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path as FilePath

import trio

from protego_cli.cli.serve import run_until_told
from protego_cli.config.load import load
from protego_cli.config.model import Cluster
from protego_cli.control.channel import pki
from protego_cli.control.channel.agent import Agent
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.desired_records import Sa
from protego_cli.control.channel.operator_messages import (
    Events,
    GetEvents,
    ListNames,
    Migrate,
    Names,
    Reload,
    Reloaded,
)
from protego_cli.net.pump import drain, pump
from protego_cli.net.udp import UdpSocket
from protego_cli.plugins.manager import load_plugins
from protego_cli.roles import gmn
from tests.support.control import FakePlane, run_agent, until
from tests.support.gmn_rig import PEER, TUNNEL, VIP, Rig

PLUGINS = load_plugins()
NODES = ("gmn-1", "gin-1", "gen-1", "gpn-1", "gpn-2")


def text(nodes: tuple[str, ...] = NODES, tunnel: str = "hq", extra: str = "") -> str:
    """A cluster file, on loopback addresses that no other run uses."""
    prefix = f"127.78.{os.getpid() % 250 + 1}"
    listed = "".join(
        f'[nodes.{name}]\nrole = "{name[:3]}"\naddress = "{prefix}.{i + 1}"\n' for i, name in enumerate(nodes)
    )
    return f"""
[cluster]
name = "demo"
vips = ["{VIP}"]
{listed}
[tenants.acme]
vni = 1001
gateway_mac = "02:50:00:00:10:01"
attach = {{ kind = "vxlan", vteps = [
  {{ prefix = "10.1.0.0/24", address = "10.20.0.5", mac = "02:00:00:00:00:05" }} ] }}
[tenants.acme.tunnels.{tunnel}]
peer = "{PEER}"
local_id = "{VIP}"
remote_id = "{PEER}"
auth = {{ kind = "psk", file = "hq.psk" }}
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.2.0.0/24"]
{extra}
"""


def write(directory: FilePath, content: str) -> Cluster:
    secret = directory / "hq.psk"
    secret.touch(mode=0o600)
    secret.write_text("a secret both sides hold")
    file = directory / "cluster.toml"
    file.write_text(content)
    return load(file)


@asynccontextmanager
async def running(directory: FilePath) -> AsyncIterator[tuple[Rig, trio.Nursery]]:
    """The GMN as `protego up` runs it, signals and all, and its nodes."""
    cluster = write(directory, text())
    pki.init(cluster)
    gin = cluster.nodes_of("gin")[0]
    with closing(UdpSocket.bind(gin.address, gin.ports.fabric)) as socket:
        rig = Rig(cluster, socket)
        async with trio.open_nursery() as nodes:
            nodes.start_soon(pump, socket, partial(drain, socket, rig.receive))
            async with trio.open_nursery() as control:
                control.start_soon(run_until_told, gmn.run, cluster, cluster.nodes[0], PLUGINS, False)
                for name, plane in rig.planes.items():
                    await joined(nodes, cluster, name, plane)
                yield rig, nodes
                control.cancel_scope.cancel()
            nodes.cancel_scope.cancel()


async def joined(nodes: trio.Nursery, cluster: Cluster, name: str, plane: FakePlane) -> None:
    node = cluster.node(name)
    assert node is not None
    agent: Agent = await nodes.start(run_agent, cluster, node, plane)
    await until(lambda: agent.connected)


async def reloaded(rig: Rig, *, dry_run: bool = False) -> Reloaded:
    found = await ask(rig.cluster, Reload(dry_run))
    assert isinstance(found, Reloaded)
    return found


async def until_told(rig: Rig, kind: str, count: int = 1) -> None:
    """Wait for so many events of a kind, from the beginning on."""
    epoch, after, seen = 0, 0, 0
    with trio.fail_after(20):
        while seen < count:
            found = await ask(rig.cluster, GetEvents(epoch, after, wait=5.0))
            assert isinstance(found, Events)
            epoch, after = found.epoch, found.last
            seen += sum(event.kind == kind for event in found.events)


async def names(rig: Rig) -> Names:
    found = await ask(rig.cluster, ListNames())
    assert isinstance(found, Names)
    return found


async def test_a_node_that_is_added_live_takes_a_tunnel(tmp_path: FilePath) -> None:
    async with running(tmp_path) as (rig, nodes):
        await rig.up()
        before = {name: dict(plane.records) for name, plane in rig.planes.items()}
        larger = write(tmp_path, text((*NODES, "gpn-3")))
        assert sorted(path.name for path in pki.init(larger)) == ["gpn-3.key", "gpn-3.pem"]

        plan = await reloaded(rig, dry_run=True)
        assert [(c.what, c.name, c.outcome) for c in plan.changes] == [("node", "gpn-3", "planned")]
        assert "gpn-3" not in (await names(rig)).nodes
        done = await reloaded(rig)
        assert [(c.what, c.name, c.outcome) for c in done.changes] == [("node", "gpn-3", "done")]
        assert done.file == str(tmp_path / "cluster.toml")
        for name in ("gin-1", "gen-1"):
            held = rig.planes[name].records
            assert {key: record for key, record in held.items() if key != ("neighbour", "gpn-3")} == before[
                name
            ]
            assert ("neighbour", "gpn-3") in held
        for name in ("gpn-1", "gpn-2"):
            assert rig.planes[name].records == before[name]

        plane = FakePlane()
        await joined(nodes, larger, "gpn-3", plane)
        await ask(rig.cluster, Migrate(TUNNEL, "gpn-3"))
        (sa,) = [record for record in plane.records.values() if isinstance(record, Sa)]
        assert sa.spi_out == rig.peer.child.spi_in
        assert (await rig.tunnel()).gpn == "gpn-3"


async def test_sighup_reloads(tmp_path: FilePath) -> None:
    async with running(tmp_path) as (rig, _):
        await rig.up()
        write(tmp_path, text(tunnel="branch"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: not rig.peer.ikes)
        await until_told(rig, "reloaded")
        assert (await names(rig)).tunnels == ("acme/branch",)
        assert not [r for r in rig.planes["gpn-1"].records.values() if isinstance(r, Sa)]


async def test_a_faulty_file_changes_nothing(tmp_path: FilePath) -> None:
    async with running(tmp_path) as (rig, _):
        await rig.up()
        file = tmp_path / "cluster.toml"
        file.write_text(text(extra='colour = "red"\nesp = ["rot13"]'))
        (tmp_path / "hq.psk").unlink()
        problems = "\n".join((await reloaded(rig)).problems)
        for fault in ("colour", "rot13", "hq.psk does not exist"):
            assert fault in problems
        os.kill(os.getpid(), signal.SIGHUP)
        await until_told(rig, "reload refused", 6)  # three faults, and again
        file.write_text("[cluster")
        (problem,) = (await reloaded(rig)).problems
        assert "is not valid TOML" in problem
        file.unlink()
        (problem,) = (await reloaded(rig)).problems
        assert "does not exist" in problem
        assert (await rig.tunnel()).state == "up"
        assert rig.peer.ikes
