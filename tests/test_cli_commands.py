"""The commands as an operator meets them: what they print, and what exit code they end with."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from protego_cli import __version__
from protego_cli.cli import asking
from protego_cli.cli.app import main
from protego_cli.cli.render import status_view
from protego_cli.config.diff import FieldChange, Landed
from protego_cli.config.model import Cluster
from protego_cli.control.channel.message import Reply, Request
from protego_cli.control.channel.node_messages import Noted
from protego_cli.control.channel.operator_messages import (
    GetStatus,
    Migrate,
    Migrated,
    NodeStatus,
    Reload,
    Reloaded,
    Status,
    TunnelStatus,
)
from protego_cli.errors import (
    EnvironmentFault,
    Exit,
    NotFound,
    PluginError,
    ProtegoError,
    Refused,
    Unreachable,
    UsageError,
)
from tests.support.clusters import changed, write_cluster

STATUS = Status(
    epoch=7,
    nodes=(
        NodeStatus("gmn-1", "gmn", "up", 0, 0.01),
        NodeStatus("gpn-1", "gpn", "up", 1, 0.42, {"gpn_opened": 5}, 0.4, 1.0),
        NodeStatus("gpn-2", "gpn", "down", 0, 0.0, {}, 0.0, 0.5),
        NodeStatus("gpn-3", "gpn", "up", 0, 0.0, {}, 0.01, 1.0, True, 2, "no plugin here provides rot13"),
    ),
    tunnels=(
        TunnelStatus(
            "acme/hq", "up", "gpn-1", "c1d2e3f4", "0a0b0c0d", "aes256gcm16-x25519",
            1234567, 9, 2048, 500, "198.51.100.7", None, 900.0, 1.5, 7_200_000.0, 12_000.0, 0.0312,
        ),
        TunnelStatus("acme/branch", "down", None, None, None, None, 0, 0, 0, 0, None, "the PSK differs"),
    ),
)  # fmt: skip


class Run:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        self.out, self.err = self._capsys.readouterr()
        return int(ended.value.code or 0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    return write_cluster(tmp_path)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reply | Exception], list[Request]]:
    """Put an answer into the control node's mouth; returns what was asked."""

    def put(answer: Reply | Exception) -> list[Request]:
        asked: list[Request] = []

        async def ask(_: Cluster, request: Request) -> Reply:
            asked.append(request)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(asking, "ask", ask)
        return asked

    return put


def test_version(run: Run) -> None:
    assert run("--version") == 0
    assert run.out == f"protego {__version__}\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["up", "status", "migrate", "local", "plugins", "config", "pki", "psk", "Exit codes: 0 done"]),
        (["up"], ["--role", "gmn|gin|gen|gpn", "--name", "--cluster", "--log-level"]),
        (["local"], ["--json", "--headless", "--duration", "--tenants", "--gpns", "--migrations", "--pps"]),
        (["migrate"], ["TUNNEL", "--to", "--json"]),
        (["status"], ["--json", "--watch"]),
        (["explain"], ["TUNNEL", "--unknown", "--json"]),
        (["tunnel"], ["list", "show", "up", "down", "rekey"]),
        (["tunnel", "list"], ["--tenant", "--state", "--gpn", "--json"]),
        (["tunnel", "rekey"], ["TUNNEL", "--ike", "--json"]),
        (["events"], ["--follow", "--json", "--since", "--tunnel", "--node", "-n"]),
        (["config", "check"], ["FILE", "--cluster"]),
        (["pki", "init"], ["--cluster"]),
        (["psk", "generate"], ["FILE"]),
        (["plugins"], ["--json"]),
    ],
)
def test_help(run: Run, command: list[str], words: list[str]) -> None:
    assert run(*command, "--help") == 0
    for word in words:
        assert word in run.out
    assert "lab-peers" not in run.out
    assert "lifeline" not in run.out


def test_help_imports_nothing_heavy() -> None:
    """What keeps `--help` and completion fast, said without a clock."""
    heavy = ["trio", "cryptography", "msgspec", "rich", "pluggy", "tomli", "ssl", "asyncio"]
    code = (
        "import sys\n"
        "from protego_cli.cli.app import main\n"
        "try: main(['--help'])\n"
        f"finally: print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "protego_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"protego {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["migrate", "acme/hq"], ["up", "--role", "boss"], ["status", "-x"]]
)
def test_wrong_arguments_exit_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments) == 2
    assert "Traceback" not in run.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProtegoError("it failed"), 1),
        (Refused("it failed"), 1),
        (UsageError("it failed"), 2),
        (PluginError("it failed"), 2),
        (Unreachable("it failed"), 3),
        (NotFound("it failed"), 4),
        (EnvironmentFault("it failed"), 5),
        (ExceptionGroup("", [ExceptionGroup("", [NotFound("it failed")]), NotFound("it failed")]), 4),
    ],
)
def test_an_error_is_one_sentence_and_its_exit_code(
    run: Run, cluster: Path, answers: Callable[[Reply | Exception], Any], error: Exception, code: int
) -> None:
    answers(error)
    assert run("status", "-c", cluster) == code
    assert run.err == "protego: it failed\n"
    assert run.out == ""


def test_a_bug_is_not_hidden(cluster: Path, answers: Callable[[Reply | Exception], Any]) -> None:
    answers(ExceptionGroup("", [NotFound("it failed"), ZeroDivisionError()]))
    with pytest.raises(ExceptionGroup):
        main(["status", "-c", str(cluster)])


def test_ctrl_c_in_a_nursery_is_an_interruption(
    run: Run, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(*_: object) -> Reply:
        raise BaseExceptionGroup("", [KeyboardInterrupt()])

    monkeypatch.setattr(asking, "ask", ask)
    assert run("status", "-c", cluster) == 130
    assert run.err == ""


@pytest.mark.parametrize("end", [KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt()])])
def test_watch_repeats_until_ctrl_c(
    run: Run, cluster: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    replies: list[Reply | BaseException] = [STATUS, STATUS, end]

    async def ask(*_: object) -> Reply:
        reply = replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    monkeypatch.setattr(asking, "ask", ask)
    monkeypatch.setattr(asking, "WATCH_INTERVAL", 0)
    assert run("status", "--watch", "--json", "-c", cluster) == 0
    assert [json.loads(line)["epoch"] for line in run.out.splitlines()] == [7, 7]


def test_an_answer_of_another_kind_is_an_error(
    run: Run, cluster: Path, answers: Callable[[Reply | Exception], Any]
) -> None:
    answers(Noted())
    assert run("status", "-c", cluster) == 1
    assert "answered Noted to GetStatus" in run.err


def test_status_json(run: Run, cluster: Path, answers: Callable[[Reply | Exception], Any]) -> None:
    asked = answers(STATUS)
    assert run("status", "--json", "-c", cluster) == 0
    assert asked == [GetStatus()]
    document = json.loads(run.out)
    assert list(document) == ["epoch", "nodes", "tunnels"]
    assert document["epoch"] == 7
    assert document["nodes"][1] == {
        "name": "gpn-1", "role": "gpn", "state": "up", "tunnels": 1, "cpu": 0.42,
        "counters": {"gpn_opened": 5}, "load": 0.4, "capacity": 1.0, "draining": False,
        "refused": 0, "reason": None,
    }  # fmt: skip
    assert document["tunnels"][0] == {
        "id": "acme/hq", "state": "up", "gpn": "gpn-1", "spi_in": "c1d2e3f4", "spi_out": "0a0b0c0d",
        "suite": "aes256gcm16-x25519", "packets_in": 1234567, "packets_out": 9, "bytes_in": 2048,
        "bytes_out": 500, "peer": "198.51.100.7", "error": None, "pps_in": 900.0, "pps_out": 1.5,
        "bps_in": 7_200_000.0, "bps_out": 12_000.0, "cpu": 0.0312, "held": False,
            "limited_in": 0, "limited_out": 0,
    }  # fmt: skip
    assert document["tunnels"][1]["gpn"] is None


def test_a_narrow_terminal_shows_fewer_columns_and_cuts_none() -> None:
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(status_view(STATUS, console))
    text = console.export_text()
    assert "…" not in text
    assert "acme/hq" in text
    assert "SPI" not in text


def test_status_table(run: Run, cluster: Path, answers: Callable[[Reply | Exception], Any]) -> None:
    answers(STATUS)
    assert run("status", "-c", cluster) == 0
    lines = {line.split()[0]: line for line in run.out.splitlines() if line.strip()}
    assert lines["gpn-1"].split() == ["gpn-1", "gpn", "up", "1", "42%", "0.40", "of", "1"]
    assert lines["gpn-3"].split()[2] == "draining"
    assert lines["gpn-3:"] == "gpn-3: refuses 2 of its records: no plugin here provides rot13"
    assert "1,234,567" in lines["acme/hq"]
    assert "7.2 Mbit/s" in lines["acme/hq"]
    assert "3.1%" in lines["acme/hq"]
    assert "2.0 KiB" in lines["acme/hq"]
    assert lines["acme/branch:"] == "acme/branch: the PSK differs"


def test_migrate(run: Run, cluster: Path, answers: Callable[[Reply | Exception], Any]) -> None:
    asked = answers(Migrated("acme/hq", "gpn-1", "gpn-2", "rekey", 4.25, 2.5, 9.875))
    assert run("migrate", "acme/hq", "--to", "gpn-2", "--json", "-c", cluster) == 0
    assert asked == [Migrate("acme/hq", "gpn-2")]
    assert json.loads(run.out) == {
        "tunnel": "acme/hq", "from": "gpn-1", "to": "gpn-2", "method": "rekey",
        "rekey_ms": 4.25, "distribute_ms": 2.5, "total_ms": 9.875,
    }  # fmt: skip
    assert run("migrate", "acme/hq", "--to", "gpn-2", "-c", cluster) == 0
    assert run.out == (
        "acme/hq moved from gpn-1 to gpn-2 by rekey in 9.9 ms (rekey 4.2 ms, distribution 2.5 ms)\n"
    )


def test_plugins(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROTEGO_CLUSTER", raising=False)
    assert run("plugins", "--json") == 0
    listed = {plugin["name"]: plugin for plugin in json.loads(run.out)}
    hooks = {hook for plugin in listed.values() for hook in plugin["hooks"]}
    assert hooks >= {
        "protego_crypto_suites",
        "protego_packing_policies",
        "protego_state_stores",
        "protego_steering_backends",
    }
    assert all(set(plugin) == {"name", "version", "source", "hooks"} for plugin in listed.values())
    monkeypatch.setenv("COLUMNS", "200")
    assert run("plugins") == 0
    assert all(name in run.out for name in listed)


def test_plugins_of_a_cluster_file(run: Run, tmp_path: Path) -> None:
    file = write_cluster(tmp_path, changed(("[cluster]", '[plugins]\npaths = ["none.py"]\n\n[cluster]')))
    assert run("plugins", "-c", file) in (2, 5)
    assert "none.py" in run.err
    assert run("plugins", "-c", tmp_path / "none.toml") == 2


def test_config_check(run: Run, cluster: Path) -> None:
    assert run("config", "check", cluster) == 0
    assert run.out == f"{cluster}: valid, 5 nodes, 2 tenants, 2 tunnels\n"
    assert run("config", "check", "-c", cluster) == 0  # as with every other command
    assert run("config", "check", "-c", cluster, cluster) == 2
    assert "say which file to check once" in run.err


def test_config_check_shows_every_problem(run: Run, tmp_path: Path) -> None:
    file = write_cluster(
        tmp_path,
        changed(
            ("vni = 1001", "vni = 0"), ('peer = "any"', 'peer = "any"\nesp = ["rot13"]'), ("role", "rolle")
        ),
    )
    (tmp_path / "secrets/acme-hq.psk").chmod(0o644)
    assert run("config", "check", file) == 2
    lines = run.err.splitlines()
    assert lines[-1] == f"protego: {len(lines) - 1} problems in {file}"
    for key in (
        "nodes.gmn-1.role:",
        'nodes.gmn-1.rolle: is not a known key; did you mean "role"?',
        "tenants.acme.vni:",
        "tenants.acme.tunnels.branch.esp[0]:",
        "tenants.acme.tunnels.hq.auth.file:",
    ):
        assert any(line.startswith(f"{file}: {key}") for line in lines), key


def test_config_check_of_a_bad_backend(run: Run, tmp_path: Path) -> None:
    file = write_cluster(tmp_path, changed(('name = "demo"', 'name = "demo"\npacking = "dense"')))
    assert run("config", "check", file) == 2
    known = '"best-fit", "first-fit-decreasing", "predictive", "protego", "spread", "sticky"'
    assert f'expected a packing policy: {known}, got "dense"' in run.err


def test_pki_init_is_idempotent(run: Run, cluster: Path) -> None:
    assert run("pki", "init", "-c", cluster) == 0
    made = {file.name: file.read_bytes() for file in (cluster.parent / "pki").iterdir()}
    assert {"ca.pem", "ca.key", "operator.pem", "operator.key", "gpn-2.pem", "gpn-2.key"} <= set(made)
    assert "new" not in run.out.splitlines()[0]
    assert run("pki", "init", "-c", cluster) == 0
    assert {file.name: file.read_bytes() for file in (cluster.parent / "pki").iterdir()} == made
    assert run.out.splitlines()[0].endswith("; new: none")
    (cluster.parent / "pki" / "gpn-2.pem").unlink()
    assert run("pki", "init", "-c", cluster) == 0
    assert run.out.splitlines()[0].endswith("; new: gpn-2.pem")


def test_psk_generate(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "hq.psk"
    assert run("psk", "generate", file) == 0
    assert file.read_text().strip() not in run.out
    assert run("psk", "generate", file) == 2
    assert "never overwritten" in run.err


@pytest.mark.parametrize("code", [Exit.OK, Exit.FAILED])
def test_local_passes_its_options_and_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: Exit
) -> None:
    given: dict[str, object] = {}

    def run_local(**options: object) -> int:
        given.update(options)
        return code

    monkeypatch.setattr("protego_cli.lab.main.run_local", run_local)
    assert run("local", "--json", "--tenants", "3", "--migrations", "7", "--duration", "1.5") == code
    assert given == {
        "json": True, "headless": False, "duration": 1.5,
        "tenants": 3, "gpns": 3, "migrations": 7, "pps": 200,
    }  # fmt: skip


@pytest.mark.parametrize(
    "options", [["--policy", "protego"], ["--trace", "x.csv"], ["--elastic", "--pps", "200"]]
)
def test_local_takes_no_option_of_the_other_kind_of_run(run: Run, options: list[str]) -> None:
    assert run("local", *options) == 2
    assert f"{options[-2]} goes with" in run.err


@pytest.mark.parametrize(
    "options", [["--capacity", "0"], ["--capacity", "nan"], ["--duration", "0"], ["--duration", "3"]]
)
def test_local_refuses_figures_that_no_trace_can_be_replayed_with(run: Run, options: list[str]) -> None:
    assert run("local", "--elastic", *options) == 2
    assert run.err.startswith(("protego: --", "protego: a made-up hour: it passes in 3 s here"))


@pytest.mark.parametrize("command", ["lab-peers", "lab-tenants"])
def test_lab_endpoints_take_a_plan(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    plans: list[Path] = []
    monkeypatch.setattr(f"protego_cli.lab.{command.removeprefix('lab-')}.main", plans.append)
    assert run(command, "plan.json") == 0
    assert plans == [Path("plan.json")]


# ---- reload

CHANGES = (
    Landed(
        "tunnel", "acme/hq", "changed", "rekey", "The peer is offered the new selectors by a rekey.",
        (FieldChange("remote_ts", "10.2.0.0/24", "10.2.0.0/24, 10.4.0.0/24"),), (), "under way",
    ),
    Landed(
        "setting", "cluster.ingress", "changed", "restart", "A GIN or GEN reads it when it starts.",
        (FieldChange("cluster.ingress", "mux", "nft"),), ("gin-1", "gen-1"), "at restart",
    ),
)  # fmt: skip


def test_reload_shows_what_changed_and_how(run: Run, cluster: Path, answers: Any) -> None:
    asked = answers(Reloaded("/etc/protego/cluster.toml", True, CHANGES, ()))
    assert run("reload", "-c", cluster) == 0
    assert asked == [Reload(dry_run=False)]
    rows = [line.split() for line in run.out.splitlines()]
    assert ["tunnel", "acme/hq", "changed", "rekey", "under", "way"] in rows
    assert (
        "tunnel acme/hq: remote_ts: 10.2.0.0/24 -> 10.2.0.0/24, 10.4.0.0/24. The peer is offered the new "
        "selectors by a rekey." in run.out
    )
    assert "Restart: gin-1, gen-1." in run.out


def test_reload_prints_json(run: Run, cluster: Path, answers: Any) -> None:
    answers(Reloaded("cluster.toml", True, CHANGES, ()))
    assert run("reload", "--json", "-c", cluster) == 0
    document = json.loads(run.out)
    assert (document["file"], document["applied"], document["problems"]) == ("cluster.toml", True, [])
    assert document["changes"][0] == {
        "what": "tunnel",
        "name": "acme/hq",
        "kind": "changed",
        "lands": "rekey",
        "note": "The peer is offered the new selectors by a rekey.",
        "fields": [{"name": "remote_ts", "old": "10.2.0.0/24", "new": "10.2.0.0/24, 10.4.0.0/24"}],
        "restart": [],
        "outcome": "under way",
        "reason": "",
    }


def test_a_dry_run_is_asked_for(run: Run, cluster: Path, answers: Any) -> None:
    asked = answers(Reloaded("cluster.toml", False, (), ()))
    assert run("reload", "--dry-run", "-c", cluster) == 0
    assert asked == [Reload(dry_run=True)]
    assert run.out == "cluster.toml: nothing has changed\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_faults_of_the_file_are_all_shown(run: Run, cluster: Path, answers: Any, as_json: bool) -> None:
    problems = ("cluster.toml: cluster.name: is missing", "cluster.toml: nodes: there is none")
    answers(Reloaded("cluster.toml", False, (), problems))
    assert run("reload", "-c", cluster, *(["--json"] if as_json else [])) == Exit.USAGE
    if as_json:
        assert json.loads(run.out)["problems"] == list(problems)
    else:
        assert run.out == ""
        assert run.err == "\n".join((*problems, "protego: 2 problems: nothing has changed")) + "\n"


def test_what_is_refused_says_why(run: Run, cluster: Path, answers: Any) -> None:
    note, reason = "Is let in no more; stop it.", "it is busy"
    refused = Landed("node", "gpn-2", "removed", "now", note, outcome="refused", reason=reason)
    answers(Reloaded("cluster.toml", False, (refused,), ()))
    assert run("reload", "-c", cluster) == Exit.FAILED
    assert "node gpn-2: Is let in no more; stop it. Refused: it is busy." in run.out
