"""Several GPNs on one machine: how the file says so, and the supervisor that keeps their processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protego_cli.config.load import load
from protego_cli.config.model import Cluster
from protego_cli.errors import ConfigError, EnvironmentFault, NotFound, UsageError
from protego_cli.lab import layout
from protego_cli.roles import instances
from protego_cli.roles.instances import here
from tests.support.clusters import changed, write_cluster

LOCAL = ('address = "10.10.0.11"', 'address = "127.44.5.11"\ninstances = 3')


def expanded(directory: Path, *changes: tuple[str, str]) -> Cluster:
    return load(write_cluster(directory, changed(*changes)))


def test_an_entry_becomes_as_many_nodes(tmp_path: Path) -> None:
    gpns = expanded(tmp_path, LOCAL).nodes_of("gpn")
    assert [(node.name, node.address, node.group) for node in gpns] == [
        ("gpn-1-1", "127.44.5.11", "gpn-1"),
        ("gpn-1-2", "127.44.5.12", "gpn-1"),
        ("gpn-1-3", "127.44.5.13", "gpn-1"),
        ("gpn-2", "10.10.0.12", ""),
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            [('address = "10.10.0.11"', 'address = "10.10.0.11"\ninstances = 2')],
            "10.10.0.12 udp/4500 is taken",
        ),
        ([LOCAL, ("nodes.gpn-2", "nodes.gpn-1-2")], r"instances: one of them would be gpn-1-2"),
        ([('address = "10.10.0.3"', 'address = "10.10.0.3"\ninstances = 2')], "only a GPN"),
        ([('address = "10.10.0.11"', 'address = "255.255.255.254"\ninstances = 4')], "4 consecutive"),
        ([('address = "10.10.0.11"', 'address = "10.10.0.11"\ninstances = 0')], "gpn-1.instances"),
        ([LOCAL, ("nodes.gpn-1", f"nodes.{'g' * 62}")], "room for -3"),
    ],
)
def test_what_cannot_be(tmp_path: Path, changes: list[tuple[str, str]], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        expanded(tmp_path, *changes)


def test_those_of_this_machine_each_on_a_core(tmp_path: Path) -> None:
    cluster = expanded(tmp_path, LOCAL)
    cores = sorted(os.sched_getaffinity(0))
    chosen = here(cluster, None, 3)
    assert [instance.node.name for instance in chosen] == ["gpn-1-1", "gpn-1-2", "gpn-1-3"]
    assert [instance.core for instance in chosen] == [cores[place % len(cores)] for place in range(3)]
    assert len(here(cluster, "gpn-1", None)) == min(3, len(cores))
    with pytest.raises(UsageError, match="addresses of 3 GPNs"):
        here(cluster, None, 4)
    with pytest.raises(EnvironmentFault, match=r"ip addr add 10\.10\.0\.12/32"):
        here(cluster, "gpn-2", None)
    with pytest.raises(NotFound, match="no GPN 'gpn-7'"):
        here(cluster, "gpn-7", None)


async def test_one_that_cannot_be_started_or_pinned_ends_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A core was taken from this machine's share, the program was away while it was being replaced; another
    instance ends by a signal that has no name.
    """
    caplog.set_level("INFO", instances.log.name)
    programs = iter(
        (
            [str(tmp_path / "nowhere")],
            [sys.executable, "-c", "import os; os.kill(os.getpid(), 40)"],
        )
    )
    monkeypatch.setattr(
        instances, "program", lambda: next(programs, [sys.executable, "-c", "import sys; sys.stdin.read()"])
    )

    def refuse(pid: int, cores: set[int]) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    two = here(expanded(tmp_path, LOCAL), None, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(instances.supervise, two, ())
        with trio.fail_after(20):
            while caplog.text.count("instance started") < 3:
                await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert caplog.text.count("instance not pinned") == 3
    for reason in ("it could not be started: [Errno 2]", "signal 40"):
        assert f"reason={reason}" in caplog.text


# ---- the real thing


class Supervisor:
    """`protego up --role gpn --instances 2`, and what its log says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next line of the log that is wanted; the test's own timeout bounds the wait."""
        if self.process.stderr is None:
            raise RuntimeError("stderr is not piped")
        for line in self.process.stderr:
            entry: dict[str, Any] = json.loads(line)
            if wanted(entry):
                return entry
        raise AssertionError("the log ended")

    def started(self, name: str) -> int:
        """The PID of an instance, once its GPN serves."""
        return int(self.until(lambda entry: "pid" in entry and entry["node"] == name)["pid"])


@contextmanager
def supervisor(directory: Path) -> Iterator[Supervisor]:
    block, claim = layout.claim()
    with claim:
        plan = layout.plan(directory, block, tenants=1, gpns=2, pps=1)
        layout.write(plan)
        command = ["up", "--role", "gpn", "--instances", "2", "-c", plan.cluster_file]
        process = subprocess.Popen(
            [sys.executable, "-m", "protego_cli", *command], stderr=subprocess.PIPE, text=True
        )
        try:
            yield Supervisor(process)
        finally:
            process.kill()
            process.communicate()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(process: subprocess.Popen[str], *pids: int) -> None:
    """Wait until all have closed the stderr that they share, and then for the end that follows."""
    if process.stderr is not None:
        process.stderr.read()
    deadline = time.monotonic() + 5
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_that_dies_is_started_again_and_the_other_stays(tmp_path: Path) -> None:
    with supervisor(tmp_path) as it:
        pids = {}
        while len(pids) < 2:
            entry = it.until(lambda entry: "pid" in entry)
            pids[entry["node"]] = int(entry["pid"])
        for name, pid in pids.items():
            assert len(os.sched_getaffinity(pid)) == 1, name
        os.kill(pids["gpn-1"], signal.SIGKILL)
        ended = it.until(lambda entry: entry["message"].startswith("instance ended"))
        assert (ended["node"], ended["reason"]) == ("gpn-1", "signal SIGKILL")
        again = it.started("gpn-1")
        assert again != pids["gpn-1"]
        assert alive(pids["gpn-2"])
        it.until(lambda entry: entry["message"].startswith("started") and entry["node"] == "gpn-1")
        it.process.terminate()
        gone(it.process, again, pids["gpn-2"])
        assert it.process.wait() == 0


def test_none_outlives_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    with supervisor(tmp_path) as it:
        pids = [int(it.until(lambda entry: "pid" in entry)["pid"]) for _ in range(2)]
        it.process.kill()
        gone(it.process, *pids)
