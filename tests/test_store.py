"""The SQLite store: durable, shredded, and refused in one sentence when it is not what it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from protego_cli.control.state import sqlite
from protego_cli.control.state.sqlite import SqliteStore
from protego_cli.errors import EnvironmentFault, Exit
from protego_cli.plugins.state_stores import protego_state_stores

FRAME = sqlite.PAGE + 24  # of the WAL


def contents(directory: Path) -> dict[bytes, bytes]:
    with closing(SqliteStore(directory)) as store:
        return dict(store.load())


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The files as a process that was killed leaves them, with ten commits in the WAL."""
    live, left = tmp_path / "live", tmp_path / "left"
    live.mkdir()
    with closing(SqliteStore(live)) as store:
        for i in range(10):
            store.commit([(b"key %d" % i, b"value %d" % i)])
        shutil.copytree(live, left)
    return left


def refused(directory: Path) -> str:
    """What is said, when not a byte is changed."""
    before = files(directory)
    with pytest.raises(EnvironmentFault) as caught:
        SqliteStore(directory)
    assert files(directory) == before
    text = str(caught.value)
    assert "\n" not in text
    assert str(directory) in text
    return text


def test_the_built_in_store() -> None:
    assert [kind.name for kind in protego_state_stores()] == ["sqlite"]


def test_what_is_committed_is_there(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path)) as store:
        assert dict(store.load()) == {}
        store.commit([(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
        store.commit([(b"a", b"4"), (b"b", None), (b"never", None)])
    assert contents(tmp_path) == {b"a": b"4", b"c": b"3"}


def test_files_are_private(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path)) as store:
        store.commit([(b"a", b"1")])
        assert {path.name for path in tmp_path.iterdir()} == {"state.db", "state.db-wal", "state.head"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_killed_process_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    """It says what it has committed, and is killed while it commits on."""
    program = (
        "import sys; from pathlib import Path; from protego_cli.control.state.sqlite import SqliteStore\n"
        "store = SqliteStore(Path(sys.argv[1]))\n"
        "for i in range(1_000_000):\n"
        "    store.commit([(b'%d' % (i % 50), b'%d' % i), (b'last', b'%d' % i)])\n"
        "    print(i, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(200):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        said = int((process.stdout.read().split() or [b"199"])[-1])
    found = contents(tmp_path)
    last = int(found[b"last"])
    assert last >= said
    assert found[b"%d" % (last % 50)] == b"%d" % last


def test_a_transaction_is_whole_or_not_there(killed: Path) -> None:
    """A WAL that was still being written when the power went: head and all."""
    expected = {b"key %d" % i: b"value %d" % i for i in range(10)}
    wal = (killed / "state.db-wal").read_bytes()
    (killed / "state.db-wal").write_bytes(wal + wal[-FRAME:-1000])
    assert contents(killed) == expected


# ---- shredding


def holds(directory: Path, text: bytes) -> bool:
    return any(text in data for data in files(directory).values())


def test_what_is_deleted_or_replaced_is_on_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(sqlite.time, "monotonic", lambda: now)
    with closing(SqliteStore(tmp_path)) as store:
        store.commit([(b"k%d" % i, b"SECRET-%d" % i * 300) for i in range(20)])
        store.commit([(b"k%d" % i, None) for i in range(0, 20, 2)])
        store.commit([(b"k%d" % i, b"short") for i in range(1, 20, 4)])
        assert holds(tmp_path, b"SECRET-0")
        now += sqlite.SHRED - 1
        store.tend()
        assert holds(tmp_path, b"SECRET-0")
        now += 1
        store.tend()
        gone = [i for i in range(20) if i % 2 == 0 or i % 4 == 1]
        assert not any(holds(tmp_path, b"SECRET-%d" % i * 2) for i in gone)
        assert holds(tmp_path, b"SECRET-3SECRET-3")
        assert (tmp_path / "state.db-wal").stat().st_size == 0


def test_a_long_wal_is_emptied_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "FRAMES", 50)
    with closing(SqliteStore(tmp_path)) as store:
        for i in range(200):
            store.commit([(b"%d" % i, bytes(100))])
            assert (tmp_path / "state.db-wal").stat().st_size < 60 * FRAME
    assert len(contents(tmp_path)) == 200


# ---- batches


def test_batches_count_in_the_order_of_the_commits(tmp_path: Path) -> None:
    """As a killed process leaves them, and folded; what they replace is in the records already."""
    expected = {b"a": b"3", b"c": b"1", b"e": b"2"}
    live, left = tmp_path / "live", tmp_path / "left"
    live.mkdir()
    with closing(SqliteStore(live)) as store:
        store.commit([(b"a", b"1"), (b"b", b"1"), (b"d", b"1")])
    with closing(SqliteStore(live)) as store:
        store.commit([(b"a", b"2"), (b"b", None), (b"c", b"0"), (b"e", None)])
        store.commit([(b"a", b"3"), (b"c", b"1"), (b"d", None), (b"e", b"2")])
        shutil.copytree(live, left)
    assert contents(live) == contents(left) == contents(left) == expected
    assert len(rows(live, "batch")) == 0
    assert len(rows(live, "record")) == 3


def rows(directory: Path, table: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(directory / "state.db")) as db:
        return db.execute(f"SELECT * FROM {table}").fetchall()


def test_a_batch_that_is_not_readable(killed: Path) -> None:
    with closing(SqliteStore(killed)) as store:
        store._db.execute("INSERT INTO batch (changes) VALUES (x'93')")
        with pytest.raises(EnvironmentFault, match="the database is damaged: a batch is not readable"):
            store.load()


def test_a_database_of_the_time_before_batches(tmp_path: Path) -> None:
    live, left = tmp_path / "live", tmp_path / "left"
    live.mkdir()
    with closing(sqlite3.connect(live / "state.db", isolation_level=None)) as db:
        db.execute("PRAGMA page_size = 4096")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE record (key BLOB NOT NULL UNIQUE, value BLOB NOT NULL) STRICT")
        db.execute("INSERT INTO record VALUES (x'61', x'31')")
    (live / "state.db").chmod(0o600)
    with closing(SqliteStore(live)) as store:
        assert dict(store.load()) == {b"a": b"1"}
        store.commit([(b"b", bytes(10_000))])
        shutil.copytree(live, left)
    assert contents(live) == contents(left) == {b"a": b"1", b"b": bytes(10_000)}
    os.truncate(live / "state.db", 4095)
    assert "the database is damaged: it ends after 4095 bytes" in refused(live)


# ---- what is not what it was


@pytest.mark.parametrize("cut", [1, FRAME, 3 * FRAME, 10 * FRAME])
def test_a_wal_that_lost_its_end(killed: Path, cut: int) -> None:
    os.truncate(killed / "state.db-wal", (killed / "state.db-wal").stat().st_size - cut)
    assert "state.db-wal has lost" in refused(killed)


@pytest.mark.parametrize("length", [1, 24, 32, 4096])
def test_a_wal_whose_beginning_is_lost(killed: Path, length: int) -> None:
    """SQLite takes none of it then, and goes on as if nothing had been in it."""
    wal = killed / "state.db-wal"
    wal.write_bytes(bytes(length) + wal.read_bytes()[length:])
    assert "state.db-wal has lost" in refused(killed)


def test_a_wal_that_is_gone(killed: Path) -> None:
    (killed / "state.db-wal").unlink()
    assert "state.db-wal has lost" in refused(killed)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_flipped_byte_in_the_wal(killed: Path, place: float) -> None:
    wal = killed / "state.db-wal"
    data = bytearray(wal.read_bytes())
    data[int(len(data) * place)] ^= 0x20
    wal.write_bytes(data)
    assert "state.db-wal has lost" in refused(killed)


def test_a_wal_without_its_database(killed: Path) -> None:
    (killed / "state.db").unlink()
    assert "it is missing or empty, but was there" in refused(killed)
    (killed / "state.head").unlink()
    assert "state.db-wal is there without it" in refused(killed)


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 8191, 8192, 20_000])
def test_a_torn_database(tmp_path: Path, size: int) -> None:
    with closing(SqliteStore(tmp_path)) as store:
        store.commit([(b"%d" % i, bytes(1000)) for i in range(100)])
    os.truncate(tmp_path / "state.db", size)
    assert "the database is damaged" in refused(tmp_path)


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database at all, but long enough to look at" * 100)
    (tmp_path / "state.db").chmod(0o600)
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(EnvironmentFault, match="the database is damaged: file is not a database") as caught:
        SqliteStore(tmp_path)
    assert caught.value.exit_code == Exit.ENVIRONMENT
    assert (tmp_path / "state.db").read_bytes() == before


def test_no_flipped_byte_passes_unnoticed_or_escapes(tmp_path: Path) -> None:
    """The store refuses, or hands out what it was given but for that byte: the vault's seal is for that."""
    with closing(SqliteStore(tmp_path)) as store:
        store.commit([(b"%d" % i, bytes(300)) for i in range(40)])
    sound = (tmp_path / "state.db").read_bytes()
    for place in range(0, len(sound), 97):
        data = bytearray(sound)
        data[place] ^= 0xFF
        (tmp_path / "state.db").write_bytes(data)
        with contextlib.suppress(EnvironmentFault):
            assert len(contents(tmp_path)) == 40
        (tmp_path / "state.db-wal").unlink(missing_ok=True)


def test_a_database_that_others_can_read(tmp_path: Path) -> None:
    contents(tmp_path)
    (tmp_path / "state.db").chmod(0o640)
    assert "chmod 600" in refused(tmp_path)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be read: No such file or directory"):
        SqliteStore(tmp_path / "nowhere")


# ---- a full disk


FULL = """
import resource, sys
from pathlib import Path
from protego_cli.control.state.sqlite import SqliteStore
from protego_cli.errors import EnvironmentFault
store = SqliteStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for i in range(10_000):
    try:
        store.commit([(b"%d" % i, bytes(3000))])
    except EnvironmentFault as error:
        print(i, error)
        break
"""


def test_a_full_disk_is_said_and_costs_nothing_that_was_stored(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    number, _, said = run.stdout.partition(" ")
    assert "the GMN's state cannot be stored" in said
    assert "start the GMN again" in said
    assert set(contents(tmp_path)) == {b"%d" % i for i in range(int(number))}


def test_what_it_costs_is_one_sync(tmp_path: Path) -> None:
    """The settings that make a commit durable, and no more."""
    with closing(SqliteStore(tmp_path)) as store:
        values = {
            name: store._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete", "wal_autocheckpoint")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "wal_autocheckpoint": 0}
    assert sqlite3.threadsafety == 3  # one connection may change threads
