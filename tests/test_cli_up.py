"""`protego up`: which node it is, how it ends, and what it logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from protego_cli.cli.node import choose
from protego_cli.cli.serve import run_until_told, serve
from protego_cli.config.load import load
from protego_cli.config.model import Cluster, Node
from protego_cli.errors import EnvironmentFault, NotFound, UsageError
from protego_cli.plugins.manager import Plugins, load_plugins
from tests.support.clusters import write_cluster

# A `protego up` whose role does nothing but wait: the process is real, the role is not.
STUB = """
import sys, types, trio
async def run(cluster, node, plugins, *, task_status):
    task_status.started()
    await trio.sleep_forever()
sys.modules["protego_cli.roles.gpn"] = types.SimpleNamespace(run=run)
from protego_cli.cli.app import main
main(sys.argv[1:])
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return load(write_cluster(tmp_path))


@pytest.mark.parametrize(
    ("role", "name", "expected"),
    [("gmn", None, "gmn-1"), (None, "gpn-2", "gpn-2"), ("gpn", "gpn-1", "gpn-1")],
)
def test_the_node_that_is_meant(cluster: Cluster, role: str | None, name: str | None, expected: str) -> None:
    assert choose(cluster, role, name).name == expected


@pytest.mark.parametrize(
    ("role", "name", "error", "message"),
    [
        (None, None, UsageError, "--role"),
        ("gpn", None, UsageError, "2 nodes.*gpn-1, gpn-2"),
        ("gmn", "gpn-1", UsageError, "gpn-1 is a GPN .* not a GMN"),
        (None, "gpn-9", NotFound, "has no node 'gpn-9'; it has gmn-1"),
    ],
)
def test_no_node_is_guessed(
    cluster: Cluster, role: str | None, name: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose(cluster, role, name)


def test_a_role_without_nodes(tmp_path: Path) -> None:
    text = (tmp_path / "x").with_name("cluster.toml")
    file = write_cluster(tmp_path)
    text.write_text(file.read_text().replace('[nodes.gin-1]\nrole = "gin"\naddress = "10.10.0.2"\n', ""))
    with pytest.raises(NotFound, match="no node whose role is gin"):
        choose(load(text), "gin", None)


@contextmanager
def process(file: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A node that has started."""
    child = subprocess.Popen(
        [sys.executable, "-c", STUB, "up", "--name", "gpn-1", "-c", str(file), *arguments],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        first = json.loads(child.stderr.readline())
        assert (first["level"], first["message"]) == ("info", "started")
        assert (first["role"], first["name"], first["address"]) == ("gpn", "gpn-1", "10.10.0.11")
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(cluster: Cluster, number: signal.Signals) -> None:
    with process(cluster.file) as child:
        child.send_signal(number)
        _, err = child.communicate(timeout=30)
        assert child.returncode == 0
        assert json.loads(err)["signal"] == number.name


def test_a_hangup_stops_no_data_node(cluster: Cluster) -> None:
    with process(cluster.file) as child:
        child.send_signal(signal.SIGHUP)
        assert child.stderr is not None
        assert json.loads(child.stderr.readline())["message"] == "nothing to reload"
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=30)
        assert child.returncode == 0


async def test_hangups_reach_the_role_once_it_is_started(cluster: Cluster) -> None:
    """One that comes before, too."""
    heard = trio.Event()

    async def run(
        *_: object, task_status: trio.TaskStatus[Callable[[], None]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.testing.wait_all_tasks_blocked(0.01)
        task_status.started(heard.set)
        await heard.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    with trio.fail_after(10):
        await run_until_told(run, cluster, cluster.nodes[0], load_plugins(), lifeline=False)


def test_the_lifeline_ends_it_cleanly(cluster: Cluster) -> None:
    with process(cluster.file, "--lifeline") as child:
        _, err = child.communicate(timeout=30)
        assert child.returncode == 0
        assert json.loads(err)["reason"] == "stdin closed"


async def test_what_stops_a_role_is_raised(cluster: Cluster) -> None:
    async def run(*_: object, task_status: trio.TaskStatus[None]) -> None:
        raise EnvironmentFault("port 4500 is taken")

    with pytest.raises(ExceptionGroup) as caught:
        await run_until_told(run, cluster, cluster.nodes[0], load_plugins(), lifeline=False)
    assert caught.group_contains(EnvironmentFault, match="port 4500")


async def test_a_role_gets_its_cluster_node_and_plugins(cluster: Cluster) -> None:
    plugins = load_plugins()
    got: list[object] = []

    async def run(*given: Cluster | Node | Plugins, task_status: trio.TaskStatus[None]) -> None:
        got.extend(given)
        task_status.started()
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    await run_until_told(run, cluster, cluster.nodes[3], plugins, lifeline=False)
    assert got == [cluster, cluster.nodes[3], plugins]


def test_the_gmn_needs_every_secret_at_once(tmp_path: Path) -> None:
    cluster = load(write_cluster(tmp_path, secrets=False))
    with pytest.raises(EnvironmentFault) as caught:
        serve(cluster, cluster.nodes[0], load_plugins())
    assert "acme-hq.psk does not exist" in str(caught.value)
    assert "acme-branch.psk does not exist" in str(caught.value)
