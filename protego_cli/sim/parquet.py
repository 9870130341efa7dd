"""Traces as Parquet files, by pyarrow, which is an extra: `pip install 'protego-ipsec[parquet]'`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from protego_cli.errors import EnvironmentFault
from protego_cli.sim.clock import names_a_time, unit
from protego_cli.sim.finishing import finished
from protego_cli.sim.trace import MOST_VALUES, Trace, TraceError

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats

_BATCH: Final = 4096  # rows


def read_parquet(path: Path, step: float | None) -> Trace:
    """Raises TraceError, EnvironmentFault or OSError."""
    arrow, parquet = _pyarrow()
    name = str(path)
    try:
        with parquet.ParquetFile(path) as file:
            return _read(name, file, step, arrow)
    except arrow.ArrowException as error:
        raise TraceError(f"{name}: broken Parquet: {error}") from None


def _read(name: str, file: Any, step: float | None, arrow: Any) -> Trace:
    fields = list(file.schema_arrow)
    rows = file.metadata.num_rows
    if rows * len(fields) > MOST_VALUES:
        raise TraceError(f"{name}: is too much: more than {MOST_VALUES:,} values")
    if not rows:
        raise TraceError(f"{name}: has no rows")
    clocks = [index for index, field in enumerate(fields) if _is_clock(index, field, arrow)]
    tunnels = [field.name for index, field in enumerate(fields) if index not in clocks]
    for field in fields:
        if not (_is_number(field.type, arrow) or arrow.types.is_timestamp(field.type)):
            raise TraceError(f"{name}: column {field.name}: holds {field.type}, which are no numbers")

    def fault(row: int, column: int | None, what: str) -> TraceError:
        where = "" if column is None else f", column {tunnels[column]}:"
        return TraceError(f"{name}: row {row + 1}{where} {what}")

    demand = np.empty((rows, len(tunnels)))
    times = np.empty(rows)
    done = 0
    for batch in file.iter_batches(_BATCH):
        into = slice(done, done + batch.num_rows)
        column = 0
        for index, values in enumerate(batch.columns):
            if index in clocks:
                if index == clocks[0]:
                    times[into] = _numbers(values, arrow)
            else:
                demand[into, column] = _numbers(values, arrow)
                column += 1
        done += batch.num_rows
    clock = None
    if clocks:
        field = fields[clocks[0]]
        clock = (times, 1.0 if arrow.types.is_timestamp(field.type) else unit(field.name))
    return finished(name, tunnels, demand, clock, step, fault)


def _is_clock(index: int, field: Any, arrow: Any) -> bool:
    if arrow.types.is_timestamp(field.type) or field.name == "__index_level_0__":
        return True
    return index == 0 and names_a_time(field.name)


def _is_number(kind: Any, arrow: Any) -> bool:
    types = arrow.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def _numbers(values: Any, arrow: Any) -> Floats:
    """As floats; what is missing as NaN; timestamps as seconds."""
    if arrow.types.is_timestamp(values.type):
        microseconds = values.cast(arrow.timestamp("us"), safe=False).cast(arrow.int64())
        return np.asarray(microseconds.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False)) / 1e6
    return np.asarray(values.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False))


def write_parquet(trace: Trace, path: Path, clock: str, times: Floats) -> None:
    """Raises EnvironmentFault or OSError."""
    arrow, parquet = _pyarrow()
    columns = [arrow.array(times), *(arrow.array(np.ascontiguousarray(column)) for column in trace.demand.T)]
    parquet.write_table(arrow.Table.from_arrays(columns, names=[clock, *trace.tunnels]), path)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise EnvironmentFault(
            "Parquet needs pyarrow, which is not here: pip install 'protego-ipsec[parquet]', or use a CSV"
        ) from None
    return pyarrow, pyarrow.parquet
