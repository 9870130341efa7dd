"""The provisioner `command` with real programs: what they are told, may answer, and how long they have."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import trio

from protego_cli.config.model import PoolConfig, ProvisionerConfig, Setting
from protego_cli.control.pools.processes import ProcessId
from protego_cli.control.pools.provision import Place, Provisioner, ProvisionFault
from protego_cli.plugins.manager import load_plugins
from tests.support.control import until


def pool(tmp_path: Path, script: str, **settings: Setting) -> tuple[Provisioner, PoolConfig]:
    program = tmp_path / "cloud"
    program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
    program.chmod(0o755)
    config = PoolConfig("cloud", "gpn", ("10.0.2.1", "10.0.2.9"), 0, 4, ProvisionerConfig("command"))
    place = Place(config, {"command": (str(program),), **settings}, tmp_path / "cluster.toml", tmp_path)
    return load_plugins().provisioners()["command"].kind.open(place), config


async def test_it_is_told_what_it_needs(tmp_path: Path) -> None:
    provisioner, config = pool(tmp_path, 'echo "$@" >> calls; cat >> told')
    await provisioner.launch(config.node(2), "protego-join.secret")
    await provisioner.retire(config.node(2))
    assert (tmp_path / "calls").read_text() == "launch cloud-2\nretire cloud-2\n"
    launched, retired = map(json.loads, (tmp_path / "told").read_text().splitlines())
    told = {
        "pool": "cloud",
        "node": "cloud-2",
        "address": "10.0.2.2",
        "cluster_file": str(tmp_path / "cluster.toml"),
    }
    assert launched == told | {"token": "protego-join.secret"}
    assert retired == told


async def test_it_lists_its_nodes(tmp_path: Path) -> None:
    provisioner, _ = pool(tmp_path, 'echo "cloud-1  running  since noon"; echo; echo cloud-3')
    assert await provisioner.nodes() == {"cloud-1": "running  since noon", "cloud-3": ""}


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo one >&2; echo no quota left >&2; exit 3", "launch cloud-1: exit code 3: no quota left"),
        ("exit 1", "exit code 1: it said nothing"),
        ("kill -9 $$", "exit code -9"),
    ],
)
async def test_what_fails_says_why(tmp_path: Path, script: str, says: str) -> None:
    provisioner, config = pool(tmp_path, script)
    with pytest.raises(ProvisionFault, match=says):
        await provisioner.launch(config.node(1), "token")


async def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    provisioner, _ = pool(tmp_path, "", command=("/nowhere/cloud",))
    with pytest.raises(ProvisionFault, match="/nowhere/cloud list: cannot be run: No such file"):
        await provisioner.nodes()


async def test_what_takes_too_long_is_killed_with_all_it_started(tmp_path: Path) -> None:
    provisioner, config = pool(tmp_path, "sleep 1000 & echo $! > child; wait", timeout=0.3)
    with trio.fail_after(10), pytest.raises(ProvisionFault, match=r"was killed after 0\.3 s"):
        await provisioner.launch(config.node(1), "token")
    child = int((tmp_path / "child").read_text())
    await until(lambda: ProcessId.of(child) is None)


async def test_what_it_leaves_running_is_not_waited_for_and_lives(tmp_path: Path) -> None:
    provisioner, config = pool(tmp_path, "sleep 20 & echo $! > child", timeout=10)
    with trio.fail_after(5):
        await provisioner.launch(config.node(1), "token")
    child = ProcessId.of(int((tmp_path / "child").read_text()))
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)


async def test_floods_are_cut(tmp_path: Path) -> None:
    provisioner, _ = pool(tmp_path, "yes cloud-1 | head -c 3000000")
    with trio.fail_after(20):
        assert set(await provisioner.nodes()) <= {"cloud-1", "cloud-", "cloud", "clou", "clo", "cl", "c"}
