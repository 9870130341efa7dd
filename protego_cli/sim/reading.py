"""Traces from files: CSV, the same gzipped, or Parquet, told apart by their first bytes.

Rows are times, columns are tunnels, values are Mbit/s. In a CSV, separated by commas, semicolons or tabs,

- a first row of names is a header; without one the tunnels are numbered;
- a first column says when, and not how much, if it is named for a time (`time`, `minute`, `second`, …) or not
  at all, if it holds ISO 8601 times, or, without a header, numbers that rise evenly (`clock.py`);
- lines that begin with # are no rows.

Whatever is wrong is told with file, row (the line of a CSV: the header is the first) and column. Memory is
bounded, whatever the file is like.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Final

import numpy as np

from protego_cli.sim.clock import is_ramp, moment, names_a_time, unit
from protego_cli.sim.finishing import Clock, finished
from protego_cli.sim.parquet import read_parquet
from protego_cli.sim.trace import MOST_VALUES, Trace, TraceError, numbered

LONGEST: Final = 1 << 25  # characters of a line
_GZIP: Final = b"\x1f\x8b"
_PARQUET: Final = b"PAR1"
_DELIMITERS: Final = ",;\t"


def read(path: Path, step: float | None = None) -> Trace:
    """The trace in a file; `step`: in seconds, if it shall not be what the file's times say.

    Raises TraceError, or EnvironmentFault where Parquet cannot be read here.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            start = file.peek(len(_PARQUET))
            if start.startswith(_PARQUET):
                return read_parquet(path, step)
            if start.startswith(_GZIP):
                with gzip.open(file) as unpacked, _text(unpacked) as text:
                    return _csv(name, text, step)
            with _text(file) as text:
                return _csv(name, text, step)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TraceError(f"{name}: broken gzip: {error}") from None
    except OSError as error:
        raise TraceError(f"{name}: cannot be read: {error.strerror or error}") from None


# ---- CSV


def _text(file: IO[bytes] | gzip.GzipFile) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _csv(name: str, text: IO[str], step: float | None) -> Trace:
    rows = _Rows(name, text)
    first = next(rows, None)
    if first is None:
        raise TraceError(f"{name}: is empty")
    header = [cell.strip() for cell in first] if _is_header(first) else None
    timed = names_a_time(first[0]) if header else len(first) > 1 and moment(first[0]) is not None
    values, times, lines = array("d"), array("d"), array("q")

    def fault(row: int, column: int | None, what: str) -> TraceError:
        return rows.fault(what, None if column is None else column + timed, header, lines[row])

    for row in rows if header else chain([first], rows):
        lines.append(rows.line)
        if len(row) != len(first):
            whose = "the header" if header else "the first row"
            raise rows.fault(f"has {len(row)} values, and {whose} has {len(first)}", None, header)
        if timed:
            times.append(_time(row[0], rows, header))
        try:
            values.extend(map(float, row[timed:]))
        except ValueError:
            raise _no_number(row, rows, header, timed=timed) from None
        if "_" in "".join(row[timed:]):  # Python reads 1_000 as a number
            raise _no_number(row, rows, header, timed=timed)
        if len(values) > MOST_VALUES:
            raise rows.fault(f"is too much: more than {MOST_VALUES:,} values", None, header)
    if not lines:
        raise TraceError(f"{name}: has a header and no rows")
    table = np.frombuffer(values).reshape(len(lines), -1) if values else np.empty((len(lines), 0))
    clock: Clock | None = None
    if timed:
        seconds = unit(header[0]) if header and not rows.dated else 1.0
        clock = np.frombuffer(times), seconds
    if header is None and not timed and table.shape[1] > 1 and is_ramp(table[:, 0]):
        timed, clock, table = True, (table[:, 0], None), np.ascontiguousarray(table[:, 1:])
    names = header[timed:] if header else numbered(table.shape[1])
    return finished(name, names, table, clock, step, fault)


def _is_header(row: Sequence[str]) -> bool:
    """Names, rather than numbers, perhaps behind a time."""
    numbers = [_is_number(cell) for cell in row]
    return not (numbers[0] or moment(row[0])) or (len(row) > 1 and not any(numbers[1:]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _time(cell: str, rows: _Rows, header: Sequence[str] | None) -> float:
    if (at := moment(cell)) is not None:
        rows.dated = True
        return at.timestamp()
    if _is_number(cell) and math.isfinite(float(cell)):
        return float(cell)
    raise rows.fault(f"{cell[:40]!r} is no time, neither a number nor ISO 8601", 0, header)


def _no_number(row: Sequence[str], rows: _Rows, header: Sequence[str] | None, *, timed: bool) -> TraceError:
    column, cell = next(
        (column, cell) for column, cell in enumerate(row) if column >= timed and not _is_number(cell)
    )
    what = f"{cell.strip()[:40]!r} is no number" if cell.strip() else "there is no value: a gap"
    return rows.fault(what, column, header)


class _Rows(Iterator[list[str]]):
    """The rows of a CSV, and the line that the last one came from."""

    def __init__(self, name: str, text: IO[str]) -> None:
        self.line = 0
        self.dated = False  # times are dates, not numbers
        self._name = name
        self._text = text
        self._read = 0  # lines
        first = list(islice(self._lines(), 1))
        delimiter = max(_DELIMITERS, key="".join(first).count)
        self._rows = csv.reader(chain(first, self._lines()), delimiter=delimiter)

    def __next__(self) -> list[str]:
        try:
            row = next(self._rows)
        except csv.Error as error:
            raise self.fault(f"is no CSV: {error}", None, None, self._read) from None
        self.line = self._read
        return row

    def _lines(self) -> Iterator[str]:
        """Without comments, and without empty ones at the end."""
        empty = 0
        while True:
            here = None, None, self._read + 1
            try:
                line = self._text.readline(LONGEST)
            except UnicodeDecodeError:
                raise self.fault("is no text; a trace is a CSV, gzipped or not, or Parquet", *here) from None
            if not line:
                return
            self._read += 1
            if len(line) >= LONGEST:
                raise self.fault(f"is longer than {LONGEST:,} characters", *here)
            if "\0" in line:
                raise self.fault("has zero bytes: it is no text", *here)
            if not line.strip():
                empty = empty or self._read
            elif not line.startswith("#"):
                if empty:
                    raise self.fault("is empty: a gap", None, None, empty)
                yield line

    def fault(
        self, what: str, column: int | None, header: Sequence[str] | None, line: int | None = None
    ) -> TraceError:
        where = f"{self._name}: row {self.line if line is None else line}"
        if column is None:
            return TraceError(f"{where} {what}")
        named = f" ({header[column]})" if header and column < len(header) and header[column] else ""
        return TraceError(f"{where}, column {column + 1}{named}: {what}")
