"""Completion: the files in completions/ are what the command generates, and names come from the cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from protego_cli.cli import options
from protego_cli.config.model import Cluster
from protego_cli.control.channel import client
from protego_cli.control.channel.message import Reply, Request
from protego_cli.control.channel.operator_messages import ListNames, Names
from protego_cli.errors import Unreachable
from tests.support.clusters import write_cluster

COMPLETIONS = Path(__file__).parents[1] / "completions"
SHELLS = ("bash", "zsh", "fish")
COMMAND = "from protego_cli.cli.app import main; main()"

Complete = Callable[[object, str], list[str]]


def protego(**environment: str) -> str:
    """What the command prints when a shell asks it for completion."""
    return subprocess.run(
        [sys.executable, "-c", COMMAND],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    ).stdout


class Context:
    """The part of typer's context that completion reads: the options given so far."""

    def __init__(self, cluster: Path) -> None:
        self.params = {"cluster": cluster}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_cluster(tmp_path)


def answer(monkeypatch: pytest.MonkeyPatch, reply: Reply | Exception | None) -> None:
    """Put an answer into the live cluster's mouth; None is one that never comes."""

    async def ask(_: Cluster, request: Request) -> Reply:
        assert isinstance(request, ListNames)
        if reply is None:
            await trio.sleep_forever()
        if isinstance(reply, Reply):
            return reply
        raise reply or AssertionError

    monkeypatch.setattr(client, "ask", ask)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_files_are_what_the_command_generates(shell: str) -> None:
    generated = protego(_PROTEGO_COMPLETE=f"source_{shell}")
    assert "protego" in generated
    assert (COMPLETIONS / f"protego.{shell}").read_text() == generated, "run `make completions`"


def test_nothing_else_is_in_the_directory() -> None:
    assert {file.name for file in COMPLETIONS.iterdir()} == {f"protego.{shell}" for shell in SHELLS}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("protego mi", ["migrate"]),
        ("protego lab", []),
        ("protego up --role g", ["gmn", "gin", "gen", "gpn"]),
        ("protego config ", ["check"]),
        ("protego tunnel ", ["list", "show", "up", "down", "rekey"]),
        ("protego tunnel list --state ", ["up", "connecting", "down"]),
    ],
)
def test_commands_and_values_complete(words: str, offered: list[str]) -> None:
    position = len(words.split(" ")) - 1
    out = protego(_PROTEGO_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(position))
    assert out.split() == offered


def test_bash_completes_with_the_file(file: Path, tmp_path: Path) -> None:
    """The generated script, in a real bash, down to the names of the cluster's file."""
    bash = shutil.which("bash")
    assert bash, "bash is on every machine that runs these tests"
    command = tmp_path / "protego"
    command.write_text(f"#!{sys.executable}\n{COMMAND}\n")
    command.chmod(0o755)
    script = (
        f"source {COMPLETIONS / 'protego.bash'}\n"
        "COMP_WORDS=(protego migrate acme/) COMP_CWORD=2\n"
        f"_protego_completion {command}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [bash, "-c", script],
        env=os.environ | {"PROTEGO_CLUSTER": str(file), "PYTHONPATH": str(COMPLETIONS.parent)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["acme/hq", "acme/branch"]


@pytest.mark.parametrize(
    ("complete", "incomplete", "offered"),
    [
        (options.complete_tunnel, "", ["acme/hq", "blue/new"]),
        (options.complete_tunnel, "b", ["blue/new"]),
        (options.complete_gpn, "", ["gpn-1", "gpn-7"]),
        (options.complete_any_node, "g", ["gmn-1", "gen-1", "gpn-1", "gpn-7"]),
        (options.complete_tenant, "", ["acme", "blue"]),
        (options.complete_node, "g", ["gmn-1", "gin-1", "gen-1", "gpn-1", "gpn-2"]),
    ],
)
def test_names_come_from_the_live_cluster(
    monkeypatch: pytest.MonkeyPatch, file: Path, complete: Complete, incomplete: str, offered: list[str]
) -> None:
    answer(monkeypatch, Names(tunnels=("acme/hq", "blue/new"), nodes=("gmn-1", "gen-1", "gpn-1", "gpn-7")))
    assert complete(Context(file), incomplete) == offered


@pytest.mark.parametrize(
    "reply", [Unreachable("no"), OSError(), ExceptionGroup("", [OSError()]), Reply(), None]
)
def test_names_come_from_the_file_when_the_cluster_is_silent(
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    reply: Reply | Exception | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "COMPLETION_TIMEOUT", 0.01)
    answer(monkeypatch, reply)
    assert options.complete_tunnel(Context(file), "") == ["acme/hq", "acme/branch"]
    assert options.complete_gpn(Context(file), "") == ["gpn-1", "gpn-2"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("complete", [options.complete_tunnel, options.complete_gpn, options.complete_node])
def test_without_a_file_there_are_no_names(tmp_path: Path, complete: Complete) -> None:
    assert complete(Context(tmp_path / "none.toml"), "") == []
