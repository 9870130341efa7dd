"""The log: fields by their names whatever is in them, lines that nobody can forge, floods cut off."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import protego_cli
from protego_cli.cli import logs
from protego_cli.cli.logs import (
    Handler,
    JsonFormatter,
    Line,
    RateLimit,
    TerminalFormatter,
    configure_logging,
    pieces,
)
from protego_cli.control.channel.operator_messages import Event
from protego_cli.control.operating.events import KINDS

PACKAGE = Path(protego_cli.__file__).parent
RESERVED = {"time", "level", "role", "name", "logger", "message", "exception"}


def record(message: object, *arguments: object, at: float = 1_000_000.0) -> logging.LogRecord:
    made = logging.LogRecord(
        "protego_cli.control.procedures.driver", logging.WARNING, "", 0, message, arguments, None
    )
    made.created, made.msecs = at, 7.0
    return made


def test_json_lines_carry_the_fields() -> None:
    line = JsonFormatter("gmn", "gmn-1").format(
        record(
            "tunnel %s tunnel=%s spi=%08x peer=%s:%d after=%.1f tries=%d reason=%s",
            *("down", "acme/hq", 0xABC, "198.51.100.7", 4500, 2.345, 6, 'no answer level="x" spi=1\n{'),
        )
    )
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-12T13:46:40.007Z",
        "level": "warning",
        "role": "gmn",
        "name": "gmn-1",
        "logger": "control.procedures.driver",
        "message": "tunnel down",
        "tunnel": "acme/hq",
        "spi": "00000abc",
        "peer": "198.51.100.7:4500",
        "after": "2.3",
        "tries": 6,
        "reason": 'no answer level="x" spi=1\n{',
    }


def test_a_terminal_gets_one_line_that_nobody_can_forge() -> None:
    line = TerminalFormatter().format(
        record("IKE_SA closed tunnel=%s reason=%s", "acme/hq", "bye\n12:00:00 ERROR forged\x1b[2J")
    )
    assert line.endswith(
        r' WARNING IKE_SA closed tunnel=acme/hq reason="bye\\n12:00:00 ERROR forged\\x1b[2J"'
    )
    assert line.isprintable()


def test_an_event_is_a_line() -> None:
    event = Event(3, 1.0, "migrated", "info", "acme/hq", "gpn-2", None, None, {"total_ms": 4.5})
    assert json.loads(JsonFormatter().format(record(event)))["total_ms"] == 4.5
    assert (
        TerminalFormatter().format(record(event)).endswith("migrated tunnel=acme/hq node=gpn-2 total_ms=4.5")
    )


@pytest.mark.parametrize(
    ("message", "arguments", "text"),
    [
        ("100 %% of %s", ("it",), "100 % of it"),
        ("no fields, no values", (), "no fields, no values"),
        ("100%", (), "100%"),
        ("%(name)s", ({"name": "by name"},), "by name"),
    ],
)
def test_other_calls_are_told_as_they_are(message: str, arguments: tuple[object, ...], text: str) -> None:
    assert Line.of(record(message, *arguments)).text == text


def test_an_exception_is_shown_whole() -> None:
    try:
        1 / 0  # noqa: B018 - for its exception
    except ZeroDivisionError:
        found = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    assert "ZeroDivisionError: division by zero" in json.loads(JsonFormatter().format(found))["exception"]
    assert TerminalFormatter().format(found).splitlines()[-1] == "ZeroDivisionError: division by zero"


# ---- floods


def written(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_flood_of_one_kind_and_tunnel_is_cut_off_and_counted() -> None:
    stream = io.StringIO()
    handler = Handler(stream, JsonFormatter())
    for i in range(logs.BURST + 30):
        handler.emit(record("SA up tunnel=%s spi=%08x", "acme/hq", i))
    handler.emit(record("SA up tunnel=%s spi=%08x", "acme/branch", 1))
    handler.emit(record("SA down tunnel=%s", "acme/hq"))
    assert len(written(stream)) == logs.BURST + 2
    handler.emit(record("SA up tunnel=%s spi=%08x", "acme/hq", 99, at=1_000_000.0 + logs.WINDOW))
    *_, told, again = written(stream)
    assert (told["message"], told["tunnel"], told["like"], told["count"]) == (
        "suppressed", "acme/hq", "SA up", 30,
    )  # fmt: skip
    assert again["spi"] == "00000063"


def test_a_flood_about_a_node_is_told_of_the_node() -> None:
    limit = RateLimit()
    for _ in range(logs.BURST + 2):
        limit.admits(Line.of(record("node down node=%s", "gpn-1")), 0.0)
    (line,) = limit.over(logs.WINDOW)
    assert line.fields == {"node": "gpn-1", "like": "node down", "count": 2}


def test_what_was_held_back_is_told_at_the_end_at_the_latest() -> None:
    stream = io.StringIO()
    handler = Handler(stream, JsonFormatter())
    for _ in range(logs.BURST + 1):
        handler.emit(record("odd"))
    handler.close()
    assert written(stream)[-1]["count"] == 1


def test_the_limit_remembers_a_bounded_number() -> None:
    limit = RateLimit()
    for i in range(logs.REMEMBERED * 2):
        limit.over(0.0)
        assert limit.admits(Line("up", {"tunnel": f"t{i}"}, "up"), 0.0)
    assert len(limit._counts) <= logs.REMEMBERED + 1


def test_a_stream_that_is_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    stream = io.StringIO()
    handler = Handler(stream, JsonFormatter())
    stream.close()
    handler.emit(record("lost"))
    handler.close()


# ---- which form


@pytest.mark.parametrize(
    ("terminal", "form", "text"),
    [(True, "auto", True), (False, "auto", False), (False, "text", True), (True, "json", False)],
)
def test_the_form_follows_the_terminal_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, form: logs.Format, text: bool
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure_logging("INFO", form, "gpn", "gpn-1")
    root.handle(record("down tunnel=%s", "acme/hq"))
    line = stream.getvalue()
    assert line.startswith('{"time": "') is not text
    assert line.endswith("WARNING down tunnel=acme/hq\n") is text


# ---- every call in the package


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


LOGGED = [
    (place, call.args[call.func.attr == "log"])  # type: ignore[attr-defined]  # the filter says it is one
    for place, call in calls()
    if ast.unparse(call.func.value) in ("log", "logger")  # type: ignore[attr-defined]
]
TEMPLATES = [(place, node.value) for place, node in LOGGED if isinstance(node, ast.Constant)]


def test_only_an_event_is_logged_without_a_template() -> None:
    others = [place.partition(":")[0] for place, node in LOGGED if not isinstance(node, ast.Constant)]
    assert others == ["control/operating/events.py"]
    assert len(TEMPLATES) > 20


@pytest.mark.parametrize(("place", "template"), TEMPLATES, ids=[place for place, _ in TEMPLATES])
def test_every_line_is_a_text_and_then_fields(place: str, template: str) -> None:
    first, *fields = pieces(template)
    assert first[1].strip(), "it says nothing"
    for key, form, count in fields:
        assert key not in RESERVED
        assert count, f"{key} has no value"
        assert not re.search(r"\s", form), f"text behind {key}"


EMITTED = [
    (place, call)
    for place, call in calls()
    if call.func.attr == "emit" and "events" in ast.unparse(call.func)  # type: ignore[attr-defined]
]
EMITTED = [(place, call) for place, call in EMITTED if not place.startswith("ike/")]


def test_every_event_is_of_a_known_kind_and_every_kind_occurs() -> None:
    kinds = set()
    for place, call in EMITTED:
        assert isinstance(call.args[0], ast.Constant), place
        kinds.add(call.args[0].value)
        assert not {keyword.arg for keyword in call.keywords} & RESERVED, place
    assert kinds == set(KINDS)
