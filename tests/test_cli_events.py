"""`protego events`: what it asks for, what it prints, and how it outlives the control node."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from protego_cli.cli import follow
from protego_cli.cli.app import main
from protego_cli.cli.events import instant
from protego_cli.cli.follow import Printer
from protego_cli.control.channel.client import Ask
from protego_cli.control.channel.message import Reply, Request
from protego_cli.control.channel.operator_messages import Event, Events, GetEvents
from protego_cli.errors import Unreachable, UsageError
from tests.support.clusters import write_cluster

UP = Event(1, 1_750_000_000.25, "tunnel up", "info", "acme/hq", "gpn-1", "c1d2e3f4", None, {})
FAILED = Event(
    2, 1_750_000_001.0, "negotiation failed", "warning", None, None, None, "no tunnel\x1b[2J",
    {"peer": "198.51.100.9"},
)  # fmt: skip


class Run:
    def __init__(self, capsys: pytest.CaptureFixture[str], file: Path) -> None:
        self._capsys = capsys
        self._file = file
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["events", *map(str, arguments), "-c", str(self._file)])
        self.out, self.err = self._capsys.readouterr()
        return int(ended.value.code or 0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return Run(capsys, write_cluster(tmp_path))


Answers = Callable[[list[Reply | BaseException]], list[GetEvents]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """What the control node answers, one after another, and the connection that breaks with an error."""

    def put(replies: list[Reply | BaseException]) -> list[GetEvents]:
        asked: list[GetEvents] = []

        async def ask(request: Request) -> Reply:
            assert isinstance(request, GetEvents)
            asked.append(request)
            reply = replies.pop(0)
            if isinstance(reply, BaseException):
                raise reply
            return reply

        async def converse(_: object, talk: Callable[[Ask], object]) -> object:
            return await talk(ask)  # type: ignore[arg-type, misc]  # as much of it as is used

        monkeypatch.setattr(follow, "converse", converse)
        monkeypatch.setattr(follow, "FIRST_PAUSE", 0.0)
        return asked

    return put


def test_json_is_a_line_for_each_event(run: Run, answers: Answers) -> None:
    asked = answers([Events(7, 2, 0, (UP, FAILED))])
    assert run("--json") == 0
    assert asked == [GetEvents(last=20)]
    first, second = map(json.loads, run.out.splitlines())
    assert datetime.fromisoformat(first.pop("time")).timestamp() == UP.time
    assert first == {
        "number": 1, "kind": "tunnel up", "severity": "info", "tunnel": "acme/hq", "node": "gpn-1",
        "spi": "c1d2e3f4", "reason": None, "details": {},
    }  # fmt: skip
    assert second["details"] == {"peer": "198.51.100.9"}


def test_a_line_shows_what_is_known_and_no_control_characters() -> None:
    printer = Printer(as_json=False, clock=lambda: UP.time)
    assert printer.line(UP).plain.split("  ", 1)[1] == (
        "tunnel up           acme/hq   node=gpn-1  spi=c1d2e3f4"
    )
    line = printer.line(FAILED).plain
    assert r"no tunnel\x1b[2J" in line
    assert line.isprintable()
    later = Printer(as_json=False, clock=lambda: UP.time + 3e6).line(UP).plain
    assert later.startswith(datetime.fromtimestamp(UP.time).strftime("%Y-%m-%d "))


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["-n", "5"], GetEvents(last=5)),
        (["--tunnel", "acme/hq", "--node", "gpn-1"], GetEvents(last=20, tunnel="acme/hq", node="gpn-1")),
        (["--since", "2025-06-15T15:06:40+00:00"], GetEvents(since=1_750_000_000.0)),
        (["--since", "2025-06-15T15:06:40+00:00", "-n", "1"], GetEvents(last=1, since=1_750_000_000.0)),
    ],
)
def test_options_are_asked_for(run: Run, answers: Answers, arguments: list[str], request_: GetEvents) -> None:
    asked = answers([Events(7, 0, 0, ())])
    assert run(*arguments) == 0
    assert asked == [request_]
    assert run.out == ""


NOW = datetime(2025, 6, 15, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW.replace(hour=11, minute=58, second=30)),
        ("10m", NOW.replace(hour=11, minute=50)),
        ("2h", NOW.replace(hour=10)),
        ("1d", NOW.replace(day=14)),
        ("2025-06-15", NOW.replace(hour=0)),
        ("2025-06-15T11:30", NOW.replace(hour=11, minute=30)),
    ],
)
def test_times(text: str, expected: datetime) -> None:
    assert instant(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "10", "m", "-5m", "999999999d", "2025-13-01"])
def test_no_times(text: str) -> None:
    with pytest.raises(UsageError, match="is no time: write 30s, 10m"):
        instant(text, NOW)


@pytest.mark.parametrize(
    "end",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup("", [KeyboardInterrupt()]),
        BaseExceptionGroup("", [SystemExit(1)]),  # rich, where nobody reads stdout any more
    ],
)
def test_following_asks_for_what_is_behind_and_ends_quietly(
    run: Run, answers: Answers, end: BaseException
) -> None:
    asked = answers([Events(7, 1, 0, (UP,)), Events(7, 1, 0, ()), Events(7, 2, 0, (FAILED,)), end])
    assert run("--follow", "--json", "-n", "3", "--tunnel", "acme/hq") == 0
    assert [json.loads(line)["number"] for line in run.out.splitlines()] == [1, 2]
    assert run.err == ""
    more = GetEvents(epoch=7, after=1, tunnel="acme/hq", wait=follow.WAIT)
    assert asked[:3] == [GetEvents(last=3, tunnel="acme/hq"), more, more]
    assert (asked[3].after, asked[3].last) == (2, None)


def test_missing_events_are_told_of(run: Run, answers: Answers) -> None:
    answers([Events(7, 1, 0, (UP,)), Events(7, 60, 58, (FAILED,)), KeyboardInterrupt()])
    assert run("--follow", "--json") == 0
    assert "missing here: 58 events" in run.err


def test_it_outlives_the_control_node(run: Run, answers: Answers) -> None:
    gone = Unreachable("nothing answers at 10.10.0.1:7443")
    asked = answers(
        [Events(7, 9, 0, (UP,)), gone, gone, Events(8, 2, 0, (FAILED,)), gone, Events(8, 2, 0, ()),
         KeyboardInterrupt()]
    )  # fmt: skip
    assert run("--follow", "--json") == 0
    assert [json.loads(line)["number"] for line in run.out.splitlines()] == [1, 2]
    assert run.err.splitlines() == [
        "protego: the control node is gone: nothing answers at 10.10.0.1:7443; waiting for it (Ctrl-C ends)",
        "protego: the control node has restarted; what it has told nobody before is lost",
        "protego: the control node is gone: nothing answers at 10.10.0.1:7443; waiting for it (Ctrl-C ends)",
        "protego: the control node is back",
    ]
    assert [(request.epoch, request.after) for request in asked[1:5]] == [(7, 9), (7, 9), (7, 9), (8, 2)]


def test_a_control_node_that_never_answered_is_an_error(run: Run, answers: Answers) -> None:
    answers([Unreachable("nothing answers")])
    assert run("--follow") == 3
    assert run.err == "protego: nothing answers\n"
