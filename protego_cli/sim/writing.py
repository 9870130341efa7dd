"""Traces into files, by their suffix: .csv, .csv.gz, .parquet. A file is there as a whole, or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np

from protego_cli.errors import EnvironmentFault, UsageError
from protego_cli.sim.trace import Trace

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats

SUFFIXES: Final = (".csv", ".csv.gz", ".parquet")


def check_target(path: Path, *, force: bool = False) -> None:
    """Whether a trace can go there: asked before the work. Raises UsageError."""
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path}: a trace's file ends in {', '.join(SUFFIXES)}")
    if path.exists() and not force:
        raise UsageError(f"{path}: is there already; --force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}")


def write(trace: Trace, path: Path) -> None:
    """Raises EnvironmentFault."""
    clock, unit = ("minute", 60.0) if trace.step % 60 == 0 else ("second", 1.0)
    times = np.arange(trace.steps, dtype=np.float64) * (trace.step / unit)
    try:
        with _whole(path) as part:
            if path.name.endswith(".parquet"):
                from protego_cli.sim.parquet import write_parquet

                write_parquet(trace, part, clock, times)
            else:
                with part.open("wb") as file:
                    _csv(trace, file, clock, times, packed=path.name.endswith(".gz"))
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside it that takes its place in the end."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _csv(trace: Trace, file: IO[bytes], clock: str, times: Floats, *, packed: bool) -> None:
    """Values as short as they can be without a loss; the same trace always makes the same bytes."""
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) if packed else nullcontext(file) as out:
        text = io.TextIOWrapper(out, encoding="utf-8", newline="")
        csv.writer(text, lineterminator="\n").writerow([clock, *trace.tunnels])
        for time, row in zip(times.tolist(), trace.demand, strict=True):
            text.write(f"{time:.12g},{','.join(map(repr, row.tolist()))}\n")
        text.flush()
        text.detach()  # it would close the file, which is not its own
