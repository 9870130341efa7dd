"""SIGTERM ends every role cleanly: exit code 0, soon, without a traceback, and its sockets are free again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protego_cli.config.load import load
from protego_cli.config.model import Cluster, Node
from protego_cli.lab import layout
from tests.support.clusters import changed, write_cluster

SOON = 1.5  # seconds; a loaded machine takes longer to schedule than to end
LIMIT = 30.0

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """On loopback addresses of its own."""
    block, claim = layout.claim()
    with claim:
        plan = layout.plan(tmp_path, block, tenants=1, gpns=1, pps=1)
        layout.write(plan)
        yield load(Path(plan.cluster_file))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Runs `protego up`; what it logs is in a file of the node's name."""
    children: list[subprocess.Popen[str]] = []

    def run(file: Path, name: str) -> subprocess.Popen[str]:
        with (tmp_path / f"{name}.log").open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "protego_cli", "up", "--name", name, "-c", str(file)],
                stderr=log,
                text=True,
            )
        children.append(child)
        return child

    yield run
    for child in children:
        child.kill()
        child.wait()


def wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.01)


def end(child: subprocess.Popen[str], log: Path, number: signal.Signals = signal.SIGTERM) -> None:
    begun = time.monotonic()
    child.send_signal(number)
    assert child.wait(timeout=LIMIT) == 0, log.read_text()
    assert time.monotonic() - begun < SOON
    assert "Traceback" not in log.read_text()


def sockets(node: Node, vip: str) -> list[tuple[str, int, int]]:
    ports = node.ports
    udp = {
        "gmn": [(node.address, ports.fabric)],
        "gin": [(node.address, ports.fabric), (vip, ports.natt)],
        "gen": [(node.address, ports.fabric), (node.address, ports.vxlan)],
        "gpn": [(node.address, ports.esp), (node.address, ports.vxlan)],
    }[node.role]
    found = [(address, port, socket.SOCK_DGRAM) for address, port in udp]
    return [*found, (node.address, ports.control, socket.SOCK_STREAM)] if node.role == "gmn" else found


@pytest.mark.parametrize("name", ["gmn-1", "gin-1", "gen-1", "gpn-1"])
def test_a_node_that_is_alone(cluster: Cluster, start: Start, tmp_path: Path, name: str) -> None:
    log = tmp_path / f"{name}.log"
    child = start(cluster.file, name)
    wait_for(log, '"started"')
    end(child, log)
    node = cluster.node(name)
    assert node is not None
    for address, port, kind in sockets(node, cluster.vips[0]):
        with socket.socket(socket.AF_INET, kind) as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
            again.bind((address, port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_nodes_of_a_running_cluster(
    cluster: Cluster, start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    names = ["gmn-1", "gin-1", "gen-1", "gpn-1"]
    children = {name: start(cluster.file, name) for name in names}
    for name in names[1:]:
        wait_for(tmp_path / f"{name}.log", "control channel connected")
    for name in names:  # the others lose their control node first
        end(children[name], tmp_path / f"{name}.log", number)
    said = [json.loads(line) for line in (tmp_path / "gpn-1.log").read_text().splitlines()]
    assert said[-1]["message"] == "stopping"
    assert (said[-1]["signal"], said[-1]["role"], said[-1]["name"]) == (number.name, "gpn", "gpn-1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_is_still_starting(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """Its plugin takes its time."""
    file = write_cluster(tmp_path, changed(("[cluster]", '[plugins]\npaths = ["slow.py"]\n\n[cluster]')))
    marker = tmp_path / "loading"
    (tmp_path / "slow.py").write_text(
        f"import pathlib, time\npathlib.Path({str(marker)!r}).write_text('now')\ntime.sleep({LIMIT})\n"
    )
    child = start(file, "gpn-1")
    wait_for(marker, "now")
    end(child, tmp_path / "gpn-1.log", number)
