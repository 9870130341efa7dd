"""`simulate` and `trace` as a user meets them: what is printed, drawn, written, and returned."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from protego_cli.cli import asking
from protego_cli.cli.app import main
from protego_cli.cli.options import complete_policies
from protego_cli.cli.recording import _Recording
from protego_cli.config.load import load
from protego_cli.config.model import Cluster
from protego_cli.control.channel.message import Reply, Request
from protego_cli.control.channel.operator_messages import Status, TunnelStatus
from protego_cli.errors import Unreachable
from protego_cli.sim.measures import DEFINITIONS
from protego_cli.sim.reading import read
from protego_cli.sim.recorder import Recorder
from protego_cli.sim.trace import TraceError
from tests.support.clusters import write_cluster

Run = Callable[..., tuple[int, str, str]]

FIELDS = [
    "trace", "policy", "interval_min", "saving", "guarantee", "served", "mean_gpns", "lower_bound", "over",
    "moves_per_hour", "seconds",
]  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    rows = [f"{minute},{100 + minute % 7 * 90},{500 - minute % 5 * 80},{300}" for minute in range(120)]
    path.write_text("\n".join(["minute,acme/hq,acme/lab,umbrella/hq", *rows]))
    return path


# ---- simulate


def test_json_holds_a_run_for_each_policy_and_interval(run: Run, trace: Path) -> None:
    code, out, err = run(
        "simulate",
        "--trace",
        trace,
        "--policy",
        "spread,first-fit-decreasing",
        "--interval",
        "3m,1h",
        "--json",
    )
    assert (code, err) == (0, "")
    runs = json.loads(out)["runs"]
    assert [(each["policy"], each["interval_min"]) for each in runs] == [
        (policy, minutes) for policy in ("spread", "first-fit-decreasing") for minutes in (3, 60)
    ]
    for each in runs:
        assert list(each) == FIELDS
        assert each["trace"] == str(trace)
        assert each["lower_bound"] <= each["mean_gpns"] <= 3
        assert each["saving"] == pytest.approx(1 - each["mean_gpns"] / 3)
        assert 0 < each["guarantee"] <= each["served"] <= 1


def test_the_table_says_what_its_figures_mean(run: Run, trace: Path) -> None:
    code, out, _ = run(
        "simulate", "--trace", trace, "--interval", "3m", "--reaction", "6s", "--capacity", 2000
    )
    assert code == 0
    assert f"{trace}: 3 tunnels, 120 steps of 60 s, GPNs of 2000 Mbit/s, ρ = 0.1" in out
    assert "protego" in out
    for name, meaning in DEFINITIONS:
        assert name in out
        assert meaning in out


def test_several_traces_are_told_apart(run: Run, trace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("5,6\n7,8\n5,4\n")
    code, out, _ = run("simulate", "--trace", trace, "--trace", other, "--trace", trace, "--interval", "1m")
    assert code == 0
    told = [line.split()[:2] for line in out.splitlines() if " protego " in line]
    assert told == [[str(trace), "protego"], [str(other), "protego"]]


def test_the_capacity_scales_and_the_step_can_be_told(run: Run, trace: Path) -> None:
    def gpns(*more: object) -> float:
        _, out, _ = run("simulate", "--trace", trace, "--interval", "1h", "--json", *more)
        return float(json.loads(out)["runs"][0]["mean_gpns"])

    assert gpns("--capacity", 5000) == 1
    assert gpns("--capacity", 300) > gpns() > 1
    code, out, _ = run("simulate", "--trace", trace, "--interval", "7s", "--step", "7s")
    assert code == 0
    assert "protego       7 s " in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--interval", "soon"], "--interval: expected a duration such as 6s, 3m or 1h, got 'soon'"),
        (["--interval", "90s"], "an interval of 90 s is no multiple of the step of"),
        (["--reaction", "2m"], "a reaction of 120 s is longer than the step of"),
        (["--policy", "magic"], "no plugin provides the packing policy 'magic'; known: "),
        (["--capacity", "0"], "--capacity: expected Mbit/s from 0.001"),
        (["--max-moves", "-1"], "--max-moves: expected a number from 0"),
        (["--step", "0s"], "--step: expected a duration above 0"),
        (["--trace", "none.csv"], "none.csv: cannot be read: No such file"),
    ],
)
def test_wrong_options_are_named(run: Run, trace: Path, options: list[str], says: str) -> None:
    code, out, err = run("simulate", "--trace", trace, *options)
    assert (code, out) == (2, "")
    assert err.startswith("protego: ")
    assert says in err
    assert err.count("\n") == 1


def test_a_fault_of_a_trace_names_file_row_and_column(run: Run, trace: Path) -> None:
    trace.write_text(trace.read_text().replace("9,280,", "9,2x0,"))
    code, _, err = run("simulate", "--trace", trace)
    assert code == 2
    assert err == f"protego: {trace}: row 11, column 2 (acme/hq): '2x0' is no number\n"


def test_a_policy_of_a_plugin_is_simulated_and_named_when_it_fails(
    run: Run, trace: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "bad.py"
    plugin.write_text(
        "from protego_cli.hookspecs import hookimpl\n"
        "class Bad:\n"
        "    name = 'bad'\n"
        "    def place(self, tunnel, view): return None\n"
        "    def plan(self, view): return [('acme/hq', 'nowhere')]\n"
        "@hookimpl\n"
        "def protego_packing_policies(): return [Bad()]\n"
    )
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(f'[plugins]\npaths = ["{plugin}"]\n')
    code, out, err = run("simulate", "--trace", trace, "--policy", "bad", "-c", cluster)
    assert (code, out) == (1, "")
    assert "the packing policy 'bad' of plugin 'bad' moves acme/hq to 'nowhere'" in err


def test_pictures_are_drawn(run: Run, trace: Path, tmp_path: Path) -> None:
    plots = tmp_path / "some/plots"
    code, _, err = run(
        "simulate", "--trace", trace, "--policy", "protego,spread", "--interval", "3m,10m", "--plot", plots
    )
    assert code == 0
    drawn = ["gpns-1-t.csv-3_min.png", "gpns-2-t.csv-10_min.png", "saving-guarantee.png"]
    assert sorted(path.name for path in plots.iterdir()) == drawn
    assert [line for line in err.splitlines() if line] == [f"drew {plots / name}" for name in drawn]
    assert all((plots / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_without_matplotlib_it_says_what_to_install(
    run: Run, trace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    code, out, err = run("simulate", "--trace", trace, "--plot", tmp_path)
    assert (code, out) == (5, "")
    assert "pip install 'protego-ipsec[plot]'" in err


def test_policies_are_completed_one_after_the_other(cluster: Path) -> None:
    context = SimpleNamespace(params={"cluster": cluster})
    assert complete_policies(context, "spr") == ["spread"]  # type: ignore[arg-type]
    assert complete_policies(context, "protego,spr") == ["protego,spread"]  # type: ignore[arg-type]


# ---- trace generate


def test_a_trace_is_generated(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    arguments = ("trace", "generate", path, "--tunnels", 5, "--duration", "2h", "--step", "5m", "--seed", 9)
    code, out, _ = run(*arguments)
    assert code == 0
    assert out.startswith(f"{path}: 5 tunnels, 24 steps of 300 s, ")
    first, demand = path.read_bytes(), read(path).demand
    assert demand.shape == (24, 5)
    assert run(*arguments)[0] == 2  # it is there already
    assert run(*arguments, "--force")[0] == 0
    assert path.read_bytes() == first
    other = tmp_path / "paper.csv"
    assert run("trace", "generate", other, "--preset", "paper", "--duration", "10m")[0] == 0
    assert read(other).demand.shape == (10, 170)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sigma", "-1"], "sigma: expected a number from 0 to 5, got -1"),
        (["--preset", "mine"], "--preset: there is no 'mine'; known: default, paper"),
        (["--duration", "long"], "--duration: expected a duration"),
        (["--seed", "-1"], "--seed: expected a number from 0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_named(
    run: Run, tmp_path: Path, options: list[str], says: str
) -> None:
    code, _, err = run("trace", "generate", tmp_path / "t.csv", *options)
    assert code == 2
    assert err == f"protego: {says}" + err[9 + len(says) :]
    assert not list(tmp_path.iterdir())


# ---- trace record


def test_counters_become_mbits() -> None:
    recorder = Recorder(10.0)
    recorder.feed({"a": 1_000_000, "b": 5})
    recorder.feed({"a": 13_500_000, "b": 5})
    recorder.feed({"b": 25_000_005, "c": 1_250_000, "a": 13_500_000}, 2)  # one reading was missed
    recorder.feed({"a": 1_250_000, "b": 25_000_005})  # begun anew, and one gone
    trace = recorder.trace("x")
    assert trace.tunnels == ("a", "b", "c")
    assert trace.step == 10
    assert trace.demand.tolist() == [[10, 0, 0], [0, 10, 0.5], [0, 10, 0.5], [1, 0, 0]]


def test_nothing_recorded_is_no_trace() -> None:
    recorder = Recorder(10.0)
    recorder.feed({"a": 1})
    with pytest.raises(TraceError, match="x: not written: no whole interval has passed"):
        recorder.trace("x")
    recorder = Recorder(10.0)
    recorder.feed({})
    recorder.feed({})
    with pytest.raises(TraceError, match="no tunnel was there"):
        recorder.trace("x")


class Gmn:
    """A control node whose tunnel carries 8 Mbit/s each way; it may go away, or call for an end."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, interrupt_at: int = 0, away: range = range(0)
    ) -> None:
        self.asked = 0
        self._interrupt_at = interrupt_at
        self._away = away
        self._began: float | None = None
        monkeypatch.setattr(asking, "ask", self.ask)

    async def ask(self, _: Cluster, request: Request) -> Reply:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        now = trio.current_time()
        self._began = now if self._began is None else self._began
        if self.asked == self._interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
            await trio.sleep_forever()
        if self.asked in self._away:
            raise Unreachable("gone")
        bytes_ = int((now - self._began) * 1e6)
        tunnel = TunnelStatus("acme/hq", "up", "gpn-1", None, None, None, 0, 0, bytes_, bytes_)
        return Status(epoch=1, nodes=(), tunnels=(tunnel,))


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    return write_cluster(tmp_path)


async def test_a_recording_lasts_as_long_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch, cluster: Path, autojump_clock: trio.testing.MockClock
) -> None:
    Gmn(monkeypatch)
    recording = _Recording(load(cluster), 10.0, 65.0)
    await recording.run()
    trace = recording.recorder.trace("x")
    assert trace.demand.tolist() == [[16.0]] * 6


async def test_while_the_control_node_is_away_a_recording_waits(
    monkeypatch: pytest.MonkeyPatch, cluster: Path, autojump_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Gmn(monkeypatch, away=(3, 4, 5))
    recording = _Recording(load(cluster), 10.0, 100.0)
    await recording.run()
    assert recording.recorder.trace("x").demand.tolist() == [[16.0]] * 10
    assert capsys.readouterr().err.count("the control node is gone") == 1


async def test_ctrl_c_ends_a_recording_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, cluster: Path, autojump_clock: trio.testing.MockClock
) -> None:
    Gmn(monkeypatch, interrupt_at=4)
    recording = _Recording(load(cluster), 10.0, None)
    await recording.run()
    assert recording.recorder.trace("x").demand.tolist() == [[16.0]] * 2


def test_a_recording_is_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, cluster: Path, tmp_path: Path
) -> None:
    Gmn(monkeypatch)
    path = tmp_path / "live.csv"
    code, out, _ = run("trace", "record", path, "--interval", "1s", "--duration", "1s", "-c", cluster)
    assert (code, out) == (0, f"{path}: 1 tunnel, 1 step of 1 s\n")
    assert read(path).demand[0, 0] == pytest.approx(16, rel=0.2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--interval", "100ms"], "--interval: expected at least 1s"),
        (["--duration", "2s"], "--duration: expected at least one --interval"),
    ],
)
def test_recordings_that_make_no_sense(
    run: Run, tmp_path: Path, cluster: Path, options: list[str], says: str
) -> None:
    code, _, err = run("trace", "record", tmp_path / "t.csv", "-c", cluster, *options)
    assert code == 2
    assert says in err
