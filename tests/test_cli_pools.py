"""pool, plan, pki token and up --join as an operator meets them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from protego_cli.cli.pools import read_token
from protego_cli.control.channel.pool_messages import (
    ElasticPlan,
    GetPlan,
    GetPools,
    JoinToken,
    MakeToken,
    PlannedMove,
    PoolNodeStatus,
    Pools,
    PoolStatus,
)
from protego_cli.control.pools.joining import Token
from protego_cli.errors import EnvironmentFault, UsageError
from tests.support.cli_gmn import Gmn, cluster, gmn, run
from tests.support.clusters import VALID, write_cluster

__all__ = ["cluster", "gmn"]  # fixtures

TOKEN = Token("demo", "cloud-1", bytes(32), bytes(12), bytes(range(32))).text()
POOLS = Pools(
    "on",
    (
        PoolStatus(
            "cloud",
            "command",
            1,
            8,
            (
                PoolNodeStatus("cloud-1", "up", time.time() - 60, True, 12, 0.5, ""),
                PoolNodeStatus("cloud-2", "launching", time.time() - 5, False, 0, 0.0, "the cloud is full"),
                PoolNodeStatus(
                    "cloud-3", "up", time.time() - 90, False, 3, 0.0, "its link to the GMN is down"
                ),
            ),
        ),
    ),
)
MOVE = PlannedMove("acme/hq", "gpn-1", "cloud-2", 0.25)
PLAN = ElasticPlan("dry-run", "protego", "", (MOVE,), ("cloud-2",), ("cloud-1",), ())


def test_the_pools_are_shown(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gmn.answers = {GetPools: [POOLS]}
    code, out, _ = run(capsys, "pool", "-c", cluster)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert lines[0] == ["cloud:", "3", "nodes,", "1", "to", "8,", "by", "command"]
    assert lines[2][:2] == ["cloud-1", "up"]
    assert lines[3][:2] == ["cloud-2", "launching"]
    assert lines[3][-4:] == ["the", "cloud", "is", "full"]
    assert lines[4][:4] == ["cloud-3", "up,", "not", "connected"]
    gmn.answers = {GetPools: [Pools("off", ())]}
    assert run(capsys, "pool", "-c", cluster) == (0, "the cluster file has no pools\n", "")


def test_the_pools_as_json(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gmn.answers = {GetPools: [POOLS]}
    code, out, _ = run(capsys, "pool", "--json", "-c", cluster)
    document = json.loads(out)
    assert code == 0
    assert set(document) == {"mode", "pools"}
    assert set(document["pools"][0]) == {"name", "provisioner", "minimum", "maximum", "nodes"}
    assert set(document["pools"][0]["nodes"][0]) == {
        *("name", "state", "since", "connected", "tunnels", "load", "note")
    }


def test_the_plan_is_shown(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gmn.answers = {GetPlan: [PLAN]}
    code, out, _ = run(capsys, "plan", "-c", cluster)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["policy", "protego,", "elastic.mode", "is", "dry-run"],
        ["launch:", "cloud-2"],
        ["retire:", "cloud-1"],
        ["tunnel", "from", "to", "load"],
        ["acme/hq", "gpn-1", "cloud-2", "0.250"],
    ]
    gmn.answers = {GetPlan: [ElasticPlan("on", "protego", "gin-1 is away", (), (), (), (MOVE,))]}
    _, out, _ = run(capsys, "plan", "-c", cluster)
    assert "nothing would be done: gin-1 is away" in out
    assert "waits for its GPN" in out
    gmn.answers = {GetPlan: [ElasticPlan("on", "protego", "", (), (), (), ())]}
    assert run(capsys, "plan", "-c", cluster)[1].splitlines()[-1] == "nothing would move"


def test_the_plan_as_json(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gmn.answers = {GetPlan: [PLAN]}
    code, out, _ = run(capsys, "plan", "--json", "-c", cluster)
    assert code == 0
    assert json.loads(out) == {
        "mode": "dry-run", "policy": "protego", "obstacle": "", "launch": ["cloud-2"], "retire": ["cloud-1"],
        "moves": [{"tunnel": "acme/hq", "from": "gpn-1", "to": "cloud-2", "load": 0.25}], "waiting": [],
    }  # fmt: skip


def test_a_token_goes_to_stdout_and_nothing_else_does(
    gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gmn.answers = {MakeToken: [JoinToken("cloud-1", TOKEN, 1_700_000_000.0)]}
    code, out, err = run(capsys, "pki", "token", "--pool", "cloud", "-c", cluster)
    assert (code, out) == (0, f"{TOKEN}\n")
    assert err == "for cloud-1, once, until 2023-11-14 22:13:20 UTC\n"
    code, out, _ = run(
        capsys,
        "pki",
        "token",
        "--pool",
        "cloud",
        "--node",
        "cloud-1",
        "--valid",
        "2h",
        "--json",
        "-c",
        cluster,
    )
    assert json.loads(out) == {"node": "cloud-1", "token": TOKEN, "expires": 1_700_000_000.0}
    assert gmn.asked == [MakeToken("cloud", None, 900.0), MakeToken("cloud", "cloud-1", 7200.0)]
    code, _, err = run(capsys, "pki", "token", "--pool", "cloud", "--valid", "2w", "-c", cluster)
    assert code == 2
    assert err == "protego: --valid: expected a duration such as 6s, 3m or 1h, got '2w'\n"


def test_a_token_is_read_from_where_it_is(tmp_path: Path) -> None:
    assert read_token(TOKEN).node == "cloud-1"
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(f"@{file}").secret == bytes(range(32))
    with pytest.raises(EnvironmentFault, match="cannot be read: No such file"):
        read_token(f"@{tmp_path}/none")
    with pytest.raises(
        UsageError, match=r"--join: this is no join token: .*`protego pki token` makes one"
    ) as error:
        read_token(TOKEN[:-9])
    assert TOKEN[20:40] not in str(error.value)


def test_a_token_for_another_node_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = (
        '[pools.cloud]\naddresses = "10.10.1.1-10.10.1.9"\nmaximum = 3\nprovisioner = { kind = "static" }\n'
    )
    file = write_cluster(tmp_path, VALID + pool)
    code, _, err = run(capsys, "up", "--name", "cloud-2", "--join", TOKEN, "-c", file)
    assert code == 2
    assert err.splitlines()[-1] == "protego: the join token is for cloud-1, not for cloud-2"
    code, _, err = run(capsys, "up", "--name", "gpn-1", "--join", TOKEN, "-c", file)
    assert code == 2
    assert err.splitlines()[-1] == "protego: the join token is for cloud-1, not for gpn-1"
