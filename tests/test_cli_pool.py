"""drain, undrain and rebalance as an operator meets them: what is asked, shown and returned."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import pytest

from protego_cli.cli import jobs, options
from protego_cli.control.channel.message import Reply, Request
from protego_cli.control.channel.node_messages import Noted
from protego_cli.control.channel.pool_messages import (
    Drain,
    GetJob,
    JobFault,
    JobStatus,
    Plan,
    PlannedMove,
    Rebalance,
    StopJob,
    Undrain,
    Undrained,
)
from protego_cli.errors import NotFound, Unreachable
from tests.support.cli_gmn import Gmn, cluster, gmn, run

__all__ = ["cluster", "gmn"]  # fixtures

PLAN = Plan("spread", (PlannedMove("acme/hq", "gpn-1", "gpn-2", 0.125),), "7-1")


def job(state: str = "done", done: int = 3, *faults: JobFault, revision: int = 1) -> JobStatus:
    return JobStatus("7-1", "drain", "gpn-1", state, 3, done, faults, "", 1.5, revision)


def test_drain_follows_the_job_to_its_end(
    gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gmn.answers = {Drain: [job("running", 0)], GetJob: [job("running", 1, revision=4), job(revision=9)]}
    code, out, _ = run(capsys, "drain", "gpn-1", "-c", cluster)
    assert gmn.asked == [Drain("gpn-1"), GetJob("7-1", -1, jobs.WAIT), GetJob("7-1", 4, jobs.WAIT)]
    assert code == 0
    assert out == (
        "gpn-1: 3 tunnels moved in 1.5 s; it is empty, and takes no tunnels until `protego undrain gpn-1`\n"
    )


def test_drain_json_and_what_was_left(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = job("done", 2, JobFault("acme/hq", "its peer [refuses]"))
    gmn.answers = {Drain: [job("running", 0)], GetJob: [left]}
    code, out, _ = run(capsys, "drain", "gpn-1", "--json", "-c", cluster)
    assert code == 1
    assert json.loads(out) == {
        "node": "gpn-1", "moved": 2, "seconds": 1.5,
        "failed": [{"tunnel": "acme/hq", "reason": "its peer [refuses]"}],
    }  # fmt: skip
    code, out, _ = run(capsys, "drain", "gpn-1", "-c", cluster)
    assert code == 1
    assert out.splitlines() == [
        "gpn-1: 2 tunnels moved in 1.5 s; 1 tunnel left, which go when their peers rekey",
        "  acme/hq: its peer [refuses]",
    ]


def test_drain_outlives_a_connection(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gmn.answers = {
        Drain: [job("running", 0)],
        GetJob: [job("running", 1), Unreachable("gone"), Unreachable("gone"), job()],
    }
    assert run(capsys, "drain", "gpn-1", "-c", cluster)[0] == 0


def test_drain_outlives_the_control_node(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its next life goes on with the drain, by another name."""
    anew = msgspec.structs.replace(job("running", 0), id="8-1")
    gmn.answers = {
        Drain: [job("running", 0), anew],
        GetJob: [job("running", 1), Unreachable("gone"), NotFound("no job '7-1'"), job("done", 2)],
    }
    assert run(capsys, "drain", "gpn-1", "-c", cluster)[0] == 0
    assert gmn.asked[-3:] == [GetJob("7-1", 1, jobs.WAIT), Drain("gpn-1"), GetJob("8-1", 1, jobs.WAIT)]


def test_a_rebalance_that_the_next_life_does_not_know_is_over(
    gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gmn.answers = {Rebalance: [PLAN], GetJob: [NotFound("no job '7-1'")]}
    code, _, err = run(capsys, "rebalance", "-c", cluster)
    assert (code, err) == (4, "protego: no job '7-1'\n")


def test_drain_gives_up_when_the_control_node_stays_away(
    gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "AWAY", 0.01)
    gmn.answers = {Drain: [job("running", 0)], GetJob: [Unreachable("nobody answers")]}
    code, _, err = run(capsys, "drain", "gpn-1", "-c", cluster)
    assert (code, err) == (3, "protego: nobody answers\n")


def test_ctrl_c_stops_the_job_and_awaits_its_end(
    gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gmn.answers = {
        Drain: [job("running", 0)],
        GetJob: [job("running", 1)],
        StopJob: [job("running", 1)],
    }
    ask = gmn.ask

    async def interrupted(request: Request) -> Reply:
        if isinstance(request, GetJob) and not any(isinstance(each, GetJob) for each in gmn.asked):
            os.kill(os.getpid(), signal.SIGINT)
        if isinstance(request, StopJob):
            gmn.answers[GetJob] = [job("stopped", 2)]
        return await ask(request)

    monkeypatch.setattr(gmn, "ask", interrupted)
    code, out, _ = run(capsys, "drain", "gpn-1", "-c", cluster)
    assert StopJob("7-1") in gmn.asked
    assert code == 130
    assert "2 tunnels moved in 1.5 s; stopped, `protego drain gpn-1` goes on" in out


def test_a_drain_that_somebody_else_stopped_has_failed(
    gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gmn.answers = {Drain: [job("running", 0)], GetJob: [job("stopped", 2)]}
    assert run(capsys, "drain", "gpn-1", "-c", cluster)[0] == 1


def test_an_answer_of_another_kind_is_an_error(
    gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gmn.answers = {Drain: [job("running", 0)], GetJob: [Noted()]}
    code, _, err = run(capsys, "drain", "gpn-1", "-c", cluster)
    assert (code, err) == (
        1,
        "protego: the control node answered Noted to GetJob; it may run another version\n",
    )


@pytest.mark.parametrize(
    ("was", "says"), [(True, "gpn-1 takes tunnels again\n"), (False, "gpn-1 is not draining\n")]
)
def test_undrain(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str], was: bool, says: str) -> None:
    gmn.answers = {Undrain: [Undrained("gpn-1", was)]}
    assert run(capsys, "undrain", "gpn-1", "-c", cluster) == (0, says, "")
    assert gmn.asked == [Undrain("gpn-1")]


def test_rebalance_shows_the_moves_and_makes_them(
    gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gmn.answers = {Rebalance: [PLAN], GetJob: [job("done", 1)]}
    code, out, _ = run(capsys, "rebalance", "--policy", "spread", "-c", cluster)
    assert code == 0
    assert gmn.asked[0] == Rebalance("spread", False)
    assert [line.split() for line in out.splitlines()] == [
        ["tunnel", "from", "to", "load"],
        ["acme/hq", "gpn-1", "gpn-2", "0.125"],
        ["1", "tunnel", "of", "1", "moved", "in", "1.5", "s"],
    ]


def test_rebalance_json(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gmn.answers = {Rebalance: [PLAN], GetJob: [job("done", 0, JobFault("acme/hq", "no"))]}
    code, out, _ = run(capsys, "rebalance", "--json", "-c", cluster)
    assert code == 1
    assert json.loads(out) == {
        "policy": "spread", "dry_run": False,
        "moves": [{"tunnel": "acme/hq", "from": "gpn-1", "to": "gpn-2", "load": 0.125}],
        "moved": 0, "failed": [{"tunnel": "acme/hq", "reason": "no"}], "seconds": 1.5,
    }  # fmt: skip


def test_a_dry_run_only_shows(gmn: Gmn, cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gmn.answers = {Rebalance: [Plan("spread", PLAN.moves, None)]}
    code, out, _ = run(capsys, "rebalance", "--dry-run", "-c", cluster)
    assert code == 0
    assert gmn.asked == [Rebalance(None, True)]
    assert out.splitlines()[-1] == "spread would move 1 tunnel"
    gmn.answers = {Rebalance: [Plan("spread", (), None)]}
    assert run(capsys, "rebalance", "--dry-run", "-c", cluster) == (0, "spread moves nothing\n", "")


def test_policies_complete(cluster: Path, tmp_path: Path) -> None:
    class Context:
        params = {"cluster": cluster}

    class Nowhere:
        params = {"cluster": tmp_path / "none.toml"}

    every = ["best-fit", "first-fit-decreasing", "predictive", "protego", "spread", "sticky"]
    assert options.complete_policy(Context(), "") == every  # type: ignore[arg-type]
    assert options.complete_policy(Context(), "sp") == ["spread"]  # type: ignore[arg-type]
    assert options.complete_policy(Nowhere(), "") == []  # type: ignore[arg-type]
