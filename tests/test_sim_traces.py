"""Files of traces: what is read, what comes back as it was written, and how faults are named."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.errors import EnvironmentFault, Exit, UsageError
from protego_cli.sim import reading
from protego_cli.sim.clock import names_a_time, unit
from protego_cli.sim.reading import read
from protego_cli.sim.trace import Trace, TraceError, make
from protego_cli.sim.writing import SUFFIXES, check_target, write


def csv(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ---- what is read


@pytest.mark.parametrize(
    ("text", "names", "demand", "step"),
    [
        ("minute,a/x,b\n0,1,2\n1,3,4.5\n", "a/x b", [[1, 2], [3, 4.5]], 60),
        ("minute,a,b\n0,1,2\n5,3,4\n", "a b", [[1, 2], [3, 4]], 300),
        ("second,a,b\n0,1,2\n5,3,4\n", "a b", [[1, 2], [3, 4]], 5),
        ("Time (s),a\n0,1\n0.5,3\n", "a", [[1], [3]], 0.5),
        ("hour,a\n0,1\n0.25,3\n0.5,1\n", "a", [[1], [3], [1]], 900),
        ("time,a,b\n0,1,2\n1,3,4\n", "a b", [[1, 2], [3, 4]], 60),
        ("time,a,b\n600,1,2\n900,3,4\n", "a b", [[1, 2], [3, 4]], 300),
        (",a,b\n0,1,2\n1,3,4\n", "a b", [[1, 2], [3, 4]], 60),
        (",0,1\n0,1,2\n1,3,4\n", "0 1", [[1, 2], [3, 4]], 60),
        ("a,b\n1,2\n3,4\n", "a b", [[1, 2], [3, 4]], 60),
        ("1,2\n3,4\n", "tunnel-1 tunnel-2", [[1, 2], [3, 4]], 60),
        ("0,2\n1,4\n2,1\n", "tunnel-1", [[2], [4], [1]], 60),
        ("0,2\n300,4\n600,1\n", "tunnel-1", [[2], [4], [1]], 300),
        ("0,0\n1,4\n3,1\n", "tunnel-1 tunnel-2", [[0, 0], [1, 4], [3, 1]], 60),
        ("2026-01-01T00:00:00,2\n2026-01-01T00:00:10,4\n", "tunnel-1", [[2], [4]], 10),
        ("time,a\n2026-03-29T01:50,2\n2026-03-29T02:50,4\n2026-03-29T03:50,4\n", "a", [[2], [4], [4]], 3600),
        ("date,a\n2026-01-01 00:00,2\n2026-01-01 00:05,4\n", "a", [[2], [4]], 300),
        ("minute,a\n2026-01-01T00:00Z,2\n2026-01-01T00:05Z,4\n", "a", [[2], [4]], 300),
        ("minute;a;b\n0;1;2\n1;3;4\n", "a b", [[1, 2], [3, 4]], 60),
        ("a\tb\r\n1\t2\r\n3\t4\r\n", "a b", [[1, 2], [3, 4]], 60),
        ('# made by hand\nminute,"a,b",c\n# so\n0,1,2\n1, 3 ,4e1\n\n\n', "a,b c", [[1, 2], [3, 40]], 60),
        ("\ufeffminute,a\n0,1\n1,2", "a", [[1], [2]], 60),
        ("a\n1\n2\n3\n", "a", [[1], [2], [3]], 60),
        ("5\n", "tunnel-1", [[5]], 60),
        ("time,1,2\n0,7,8\n", "1 2", [[7, 8]], 60),
    ],
)
def test_csv_is_read_with_and_without_header_and_times(
    tmp_path: Path, text: str, names: str, demand: list[list[float]], step: float
) -> None:
    path = csv(tmp_path, text)
    trace = read(path)
    assert trace.name == str(path)
    assert trace.tunnels == tuple(names.split())
    assert trace.demand.tolist() == demand
    assert trace.step == pytest.approx(step)
    assert read(csv(tmp_path, gzip.compress(text.encode()), "zipped")).demand.tolist() == demand


def test_the_step_can_be_told(tmp_path: Path) -> None:
    assert read(csv(tmp_path, "minute,a\n0,1\n1,2\n"), 10.0).step == 10


@pytest.mark.parametrize(
    ("name", "is_one", "seconds"),
    [
        ("minute", True, 60), ("Time [min]", True, 60), ("time_s", True, 1), ("TIMESTAMP", True, None),
        ("Unnamed: 0", True, None), ("", True, None), ("seconds", True, 1), ("hour", True, 3600),
        ("s", False, 1), ("acme/hq", False, None), ("time-warner", False, None), ("t1", False, None),
        ("headquarters", False, None),
    ],
)  # fmt: skip
def test_names_of_times(name: str, is_one: bool, seconds: float | None) -> None:
    assert names_a_time(name) is is_one
    assert unit(name) == seconds


def test_parquet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    at = pyarrow.array([0, 300_000_000, 600_000_000], pyarrow.timestamp("us"))
    columns = {"when": at, "a": [1, 2, 3], "b": pyarrow.array([0.5, 1.5, 2.5], pyarrow.float32())}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    trace = read(path)
    assert trace.tunnels == ("a", "b")
    assert trace.demand.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5]]
    assert trace.step == 300
    columns = {"a": [1, 2, 3], "__index_level_0__": [0, 1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert read(path).tunnels == ("a",)


# ---- what is written


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(
    rows=st.lists(st.lists(st.floats(0, 1e9), min_size=3, max_size=3), min_size=2, max_size=5),
    step=st.sampled_from([1.0, 5.0, 60.0, 300.0]),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[list[float]], step: float
) -> None:
    path = tmp_path_factory.mktemp("t") / f"t{suffix}"
    trace = make("x", np.array(rows), step)
    write(trace, path)
    again = read(path)
    assert again.demand.tolist() == trace.demand.tolist()
    assert again.step == step
    assert again.tunnels == trace.tunnels
    before = path.read_bytes()
    write(trace, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_where_a_trace_cannot_be_written(tmp_path: Path) -> None:
    there = csv(tmp_path, "")
    check_target(there, force=True)
    for path, says in (
        (there, "is there already; --force replaces it"),
        (tmp_path / "t.txt", r"a trace's file ends in \.csv"),
        (tmp_path / "none/t.csv", "there is no directory"),
    ):
        with pytest.raises(UsageError, match=says):
            check_target(path)
    with pytest.raises(EnvironmentFault, match=r"none/t.csv: cannot be written: No such file"):
        write(make("x", np.ones((2, 2))), tmp_path / "none/t.csv")


# ---- what is wrong


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ": is empty"),
        ("\n\n", ": is empty"),
        ("minute,a,b\n", ": has a header and no rows"),
        ("minute,a,b\n0,1,\n", ": row 2, column 3 (b): there is no value: a gap"),
        ("minute,a,b\n0,1,2\n1,,2\n", ": row 3, column 2 (a): there is no value: a gap"),
        ("1,2\n3,\n", ": row 2, column 2: there is no value: a gap"),
        ("minute,a\n0,1\n1,2\n3,4\n", ": row 4 has the time 3 after 1, in steps of 1: a gap"),
        ("minute,a\n0,1\n2,2\n3,4\n", ": row 4 has the time 3 after 2, in steps of 2: no even step"),
        ("minute,a\n0,1\n0,2\n", ": row 3 has the time 0 after 0"),
        ("minute,a\n0,1\nx,2\n", ": row 3, column 1 (minute): 'x' is no time, neither a number nor ISO 8601"),
        ("minute,a\n0,1\nnan,2\n", ": row 3, column 1 (minute): 'nan' is no time"),
        ("minute,a\n0,1\n1_0,2\n", ": row 3, column 1 (minute): '1_0' is no time"),
        ("minute,a\n-1e308,1\n1e308,2\n", ": row 3 has the time 1e+308 after -1e+308, in steps of inf"),
        ("minute,a\n0,1\n\n1,2\n", ": row 3 is empty: a gap"),
        ("minute,a,b\n0,1,-2.5\n", ": row 2, column 3 (b): -2.5 is negative"),
        ("# c\nminute,a,b\n0,1,nan\n", ": row 3, column 3 (b): NaN is no number: a gap"),
        ("minute,a,b\n0,1,inf\n", ": row 2, column 3 (b): inf is beyond 1e+09 Mbit/s"),
        ("minute,a,b\n0,1,2\n1,fast,2\n", ": row 3, column 2 (a): 'fast' is no number"),
        ("minute,a,b\n0,1_0,2\n", ": row 2, column 2 (a): '1_0' is no number"),
        ("1,2\n1,\"2\n3\"\n", ": row 3, column 2: '2\\n3' is no number"),
        ("1,2,x\n3,4,5\n", ": row 1, column 3: 'x' is no number"),
        ("minute,a,b\n0,1,2\n1,3\n", ": row 3 has 2 values, and the header has 3"),
        ("1,2\n1,2,3\n", ": row 2 has 3 values, and the first row has 2"),
        ("minute\n0\n1\n", ": has a column of times, and none of a tunnel"),
        ("minute,a,\n0,1,2\n", ": column 2 of the tunnels has no name"),
        ("minute,a,a\n0,1,2\n", ": 2 columns have the name 'a'"),
        (b"\xff\xfe\x00abc", ": row 1 is no text; a trace is a CSV, gzipped or not, or Parquet"),
        (b"a,b\n1,2\n\x00\x01\n", ": row 3 has zero bytes: it is no text"),
        (b"\x1f\x8bnonsense", ": broken gzip: "),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 9, mtime=0)[:-9], ": broken gzip: "),
        (b"PAR1 but not really", ": broken Parquet: "),
        ("a,b\n" + "1" * 140_000 + ",2\n", ": row 2 is no CSV: field larger than field limit"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(TraceError) as fault:
        read(path)
    assert str(fault.value).startswith(str(path) + says)
    assert fault.value.exit_code == Exit.USAGE


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none.csv: cannot be read: No such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"minute": [0, 1], "a": [1.0, None]}, ": row 2, column a: NaN is no number: a gap"),
        ({"minute": [0, 1], "a": [-1.0, 2.0]}, ": row 1, column a: -1 is negative"),
        ({"minute": [0, 1], "a": ["x", "y"]}, ": column a: holds string, which are no numbers"),
        ({"minute": [0, 1, 3], "a": [1, 2, 3]}, ": row 3 has the time 3 after 1, in steps of 1: a gap"),
        ({"minute": [0, 1]}, ": has a column of times, and none of a tunnel"),
        ({"a": pyarrow.array([], pyarrow.float64())}, ": has no rows"),
    ],
)
def test_faults_of_parquet_are_named(tmp_path: Path, columns: dict[str, object], says: str) -> None:
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(TraceError) as fault:
        read(path)
    assert str(fault.value) == str(path) + says


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'protego-ipsec\[parquet\]'"):
        read(csv(tmp_path, b"PAR1....", "t.parquet"))


def test_any_bytes_are_a_trace_or_a_fault_of_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    words = st.sampled_from(
        [
            ",",
            "\n",
            "1",
            "2.5",
            "-1",
            "minute",
            "a",
            '"',
            ";",
            "nan",
            "\x00",
            "é",
            " ",
            "_",
            "1e308",
            "-1e308",
            "2026-01-01",
            "0001-01-01",
            "T00:01",
        ]
    )

    @given(st.one_of(st.binary(max_size=60), st.lists(words).map(lambda each: "".join(each).encode())))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            trace = read(path)
        except TraceError:
            return
        assert isinstance(trace, Trace)
        assert np.isfinite(trace.demand).all()
        assert trace.demand.shape == (trace.steps, len(trace.tunnels))

    check()


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_VALUES", 300_000)
    monkeypatch.setattr(reading, "LONGEST", 1 << 20)
    long, wide = tmp_path / "long.csv", tmp_path / "wide.csv"
    long.write_bytes(gzip.compress(b"a,b,c\n" + b"1,2,3\n" * 10_000_000, 1))
    wide.write_bytes(gzip.compress(b"1," * 20_000_000, 1))
    tracemalloc.start()
    with pytest.raises(TraceError, match=r"row 100002 is too much: more than 300,000 values"):
        read(long)
    with pytest.raises(TraceError, match=r"row 1 is longer than 1,048,576 characters"):
        read(wide)
    assert tracemalloc.get_traced_memory()[1] < 16e6
    tracemalloc.stop()


def test_a_million_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 1_000_000)
    assert read(path).demand.shape == (1_000_000, 2)
