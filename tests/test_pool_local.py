"""A pool of processes of this machine: launched, joined, killed, adopted by a new GMN, retired."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from protego_cli.config.load import load
from protego_cli.config.model import Cluster
from protego_cli.control.channel import pki
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.pool_messages import GetPools, PoolNodeStatus, Pools
from protego_cli.control.pools.processes import ProcessId
from protego_cli.lab import layout
from protego_cli.plugins.manager import load_plugins
from protego_cli.roles import gmn
from tests.support.control import until

FILE = """\
[cluster]
name = "demo"
vips = ["{block}.1"]

[nodes.gmn-1]
role = "gmn"
address = "{block}.2"

[nodes.gin-1]
role = "gin"
address = "{block}.3"

[pools.spare]
addresses = "{block}.11-{block}.14"
minimum = {minimum}
maximum = 2
provisioner = {{ kind = "local" }}
"""


def test_what_lies_where_the_user_is_is_not_run(tmp_path: Path) -> None:
    decoy = tmp_path / "protego_cli"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise SystemExit(99)\n")
    command = tmp_path / "bin" / "command"
    command.parent.mkdir()
    command.write_text(
        "import subprocess\n"
        "from protego_cli.control.pools.processes import program\n"
        'raise SystemExit(subprocess.run([*program(), "--version"]).returncode)\n'
    )
    done = subprocess.run([sys.executable, command], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("protego ")


@pytest.fixture
def block() -> str:
    found, holder = layout.claim()
    holder.close()
    return found


def write(directory: Path, block: str, minimum: int) -> Cluster:
    file = directory / "cluster.toml"
    file.write_text(FILE.format(block=block, minimum=minimum))
    cluster = load(file)
    pki.init(cluster)
    return cluster


@asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(gmn.run, cluster, cluster.nodes[0], load_plugins())
        yield
        nursery.cancel_scope.cancel()


async def nodes(cluster: Cluster) -> list[PoolNodeStatus]:
    reply = await ask(cluster, GetPools())
    assert isinstance(reply, Pools)
    return list(reply.pools[0].nodes)


async def until_states(cluster: Cluster, *states: tuple[str, str, bool]) -> None:
    with trio.fail_after(30):
        while [(n.name, n.state, n.connected) for n in await nodes(cluster)] != list(states):  # noqa: ASYNC110
            await trio.sleep(0.05)


@pytest.fixture(autouse=True)
def nobody_left(tmp_path: Path) -> Iterator[None]:
    """What outlives the control node must not outlive a test that failed."""
    yield
    for file in (tmp_path / "state" / "pools").glob("*/*.json"):
        left = msgspec.json.decode(file.read_bytes(), type=ProcessId)
        if left.lives:
            os.kill(left.pid, signal.SIGKILL)


async def test_a_local_pool_from_its_first_launch_to_its_last_process(tmp_path: Path, block: str) -> None:
    cluster = write(tmp_path, block, minimum=1)
    pidfile = cluster.state / "pools" / "spare" / "spare-1.json"
    process: list[ProcessId] = []

    def of_file() -> ProcessId:
        return msgspec.json.decode(pidfile.read_bytes(), type=ProcessId)

    async with running(cluster):
        await until_states(cluster, ("spare-1", "up", True))
        first = of_file()
        certificate = (cluster.pki / "spare-1.pem").read_bytes()
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: of_file() != first)
        await until_states(cluster, ("spare-1", "up", True))
        process.append(of_file())
        assert (cluster.pki / "spare-1.pem").read_bytes() == certificate, "it joins once in its life"
    assert process[0].lives, "the data path outlives the control node"
    async with running(cluster):
        await until_states(cluster, ("spare-1", "up", True))
        assert of_file() == process[0]
    text = (
        cluster.file.read_text().replace("minimum = 1", "minimum = 0").replace("maximum = 2", "maximum = 0")
    )
    cluster.file.write_text(text)
    smaller = load(cluster.file)
    async with running(smaller):
        await until_states(smaller)
    assert not process[0].lives
    assert not pidfile.exists()
