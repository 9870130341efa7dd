"""Logging to stderr: lines to read on a terminal, one JSON object per line elsewhere.

1. A call logs "text key=%s key=%08x" with its values, or an `Event`. `Line.of` pairs each key with its value
   by the template, not by the text that comes of it: a value may hold anything.
2. `RateLimit` lets `BURST` lines of one kind and tunnel through in `WINDOW` seconds; one line says how many
   more there were.
3. A formatter makes it a line. What a peer sent may be in a value: no control character reaches a terminal.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TextIO

from protego_cli.control.channel.operator_messages import Event

Format = Literal["auto", "text", "json"]
Value = str | int | float

BURST: Final = 20  # lines of one kind and tunnel, in
WINDOW: Final = 10.0  # seconds
REMEMBERED: Final = 4096  # kinds and tunnels that are counted at a time

_FIELD = re.compile(r"(?:^|\s)([a-z_]+)=")
_HOLE = re.compile(r"%[-+ #0]*\d*(?:\.\d+)?[a-zA-Z]")
_COLOURS: Final = {"WARNING": "33", "ERROR": "31", "CRITICAL": "31"}


@dataclass(frozen=True)
class Line:
    """A record of the log: what it says, and the fields by their names."""

    text: str
    fields: dict[str, Value]
    kind: str  # equal for all lines that one place logs

    @classmethod
    def of(cls, record: logging.LogRecord) -> Line:
        if isinstance(record.msg, Event):
            return cls(record.msg.kind, record.msg.fields(), record.msg.kind)
        template = str(record.msg)
        if not isinstance(record.args, tuple) or not record.args:
            return cls(record.getMessage(), {}, template)
        first, *pairs = pieces(template)
        holes = sum(count for _, _, count in (first, *pairs))
        if holes != len(record.args):
            return cls(record.getMessage(), {}, template)
        values = iter(record.args)
        text = first[1] % tuple(next(values) for _ in range(first[2]))
        fields = {key: _value(form, tuple(next(values) for _ in range(count))) for key, form, count in pairs}
        return cls(text, fields, template)


@lru_cache(maxsize=1024)
def pieces(template: str) -> list[tuple[str, str, int]]:
    """(key, format, how many values it takes) of the leading text, whose key is empty, and of each field."""
    starts = list(_FIELD.finditer(template))
    ends = [match.start() for match in starts[1:]] + [len(template)]
    found = [("", template[: starts[0].start()] if starts else template)]
    found += [
        (match[1], template[match.end() : end].strip())
        for match, end in zip(starts, ends, strict=starts != [])
    ]
    return [(key, form, len(_HOLE.findall(form.replace("%%", "")))) for key, form in found]


def _value(form: str, values: tuple[object, ...]) -> Value:
    """A number stays one where the format does not say how to write it."""
    if form in ("%s", "%d") and isinstance(values[0], int | float):
        return values[0]
    return form % values


class RateLimit:
    """Counts lines by kind and tunnel (or node)."""

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str, Value], _Count] = (
            OrderedDict()
        )  # by when their windows began

    def admits(self, line: Line, now: float) -> bool:
        of = next((field for field in ("tunnel", "node") if field in line.fields), "")
        key = line.kind, of, line.fields.get(of, "")
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = _Count(now, line.text)
        count.lines += 1
        return count.lines <= BURST

    def over(self, now: float) -> list[Line]:
        """What was held back in windows that have ended, or that have to make room."""
        found = []
        while self._counts:
            key, count = next(iter(self._counts.items()))
            if count.since + WINDOW > now and len(self._counts) <= REMEMBERED:
                break
            del self._counts[key]
            if count.lines > BURST:
                _, of, name = key
                fields: dict[str, Value] = {of: name} if of else {}
                fields |= {"like": count.text, "count": count.lines - BURST}
                found.append(Line("suppressed", fields, "suppressed"))
        return found


@dataclass
class _Count:
    since: float
    text: str
    lines: int = 0


class JsonFormatter(logging.Formatter):
    """`name` and `role` are this process's."""

    def __init__(self, role: str = "", name: str = "") -> None:
        super().__init__()
        self._ours = {key: value for key, value in (("role", role), ("name", name)) if value}
        self._second = -1  # of the last line, and
        self._text = ""  # as text

    def format(self, record: logging.LogRecord) -> str:
        return self.line(Line.of(record), record)

    def line(self, line: Line, record: logging.LogRecord) -> str:
        if (second := int(record.created)) != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        entry: dict[str, Value] = {
            "time": f"{self._text}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            **self._ours,
            "logger": record.name.removeprefix("protego_cli."),
            "message": line.text,
        }
        for key, value in line.fields.items():
            entry.setdefault(key, value)  # no field passes itself off as one of ours
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _json(entry)


_json = json.JSONEncoder(ensure_ascii=False).encode


class TerminalFormatter(logging.Formatter):
    def __init__(self, *, colours: bool = False) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        return self.line(Line.of(record), record)

    def line(self, line: Line, record: logging.LogRecord) -> str:
        level = f"{record.levelname:<7}"
        if self._colours and (colour := _COLOURS.get(record.levelname)):
            level = f"\x1b[{colour}m{level}\x1b[0m"
        said = " ".join((printable(line.text), *(f"{key}={quoted(v)}" for key, v in line.fields.items())))
        text = f"{self.formatTime(record, self.datefmt)} {level} {said}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def quoted(value: Value) -> str:
    """As it is where that is one word."""
    text = printable(str(value))
    return text if text and not re.search(r'[\s"=]', text) else json.dumps(text, ensure_ascii=False)


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Handler(logging.StreamHandler[TextIO]):
    """Writes what the limit admits, and says what it did not."""

    def __init__(self, stream: TextIO, formatter: JsonFormatter | TerminalFormatter) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._lines = formatter
        self._limit = RateLimit()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = Line.of(record)
            self._tell(self._limit.over(record.created), record.created)
            if self._limit.admits(line, record.created):
                self.stream.write(self._lines.line(line, record) + self.terminator)
            self.flush()
        except (ValueError, TypeError, OSError):  # a wrong call, or a stream that is gone
            self.handleError(record)

    def close(self) -> None:
        """The process ends: nothing stays unsaid."""
        now = time.time()
        try:
            self._tell(self._limit.over(float("inf")), now)
            self.flush()
        except (ValueError, OSError):  # the stream is gone
            pass
        super().close()

    def _tell(self, lines: list[Line], now: float) -> None:
        for line in lines:
            record = logging.LogRecord(__name__, logging.WARNING, "", 0, line.text, (), None)
            record.created, record.msecs = now, now % 1 * 1000
            self.stream.write(self._lines.line(line, record) + self.terminator)


def configure_logging(level: str, form: Format = "auto", role: str = "", name: str = "") -> None:
    """Send the log to stderr from now on. Who called, in which thread and process, no line tells."""
    logging._srcfile = None  # the documented way not to look for it
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    terminal = sys.stderr.isatty()
    formatter: JsonFormatter | TerminalFormatter
    if form == "text" or (form == "auto" and terminal):
        formatter = TerminalFormatter(colours=terminal and not os.environ.get("NO_COLOR"))
    else:
        formatter = JsonFormatter(role, name)
    logging.basicConfig(level=level, handlers=[Handler(sys.stderr, formatter)], force=True)
