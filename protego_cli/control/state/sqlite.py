"""The embedded state store: one SQLite database, `state.db`, in `cluster.state`.

1. WAL with synchronous=FULL: a commit is one fsync of the WAL and durable when it returns. (In WAL mode EXTRA
   adds nothing: it differs only for rollback journals.) EXCLUSIVE locking keeps the WAL's index in this
   process's memory; the GMN's own lock keeps a second one away.
2. *Batches.* A commit adds one row: all its changes, in one run of pages. Were each change made in the table
   of records, it would rewrite a page of its own or more. What is stored is the records as the batches behind
   them have left them.
3. *Shredding.* At the latest `SHRED` seconds after a commit, or `FRAMES` pages later, the batches are folded
   into the records, a key that has changed often once, and their pages are given back (auto_vacuum). Pages
   are zeroed where something was deleted or replaced (secure_delete), but the WAL still has the page as it
   was, so it is copied into the database and cut to nothing: from then on no file here holds what was
   deleted. That costs three fsyncs and the changed pages once a minute at most, however much is stored. What
   a disk keeps of blocks that files gave back is beyond a program's reach: encrypt the disk.
4. *The head.* SQLite takes a WAL up to its first damaged frame, for what comes after may be a transaction
   that was never finished. A WAL that lost its end would thus silently take the gateway back in time, to
   numbers that were used since. So `state.head` says after each commit how far the WAL goes. It is written
   without fsync: after a loss of power it may lag, and never runs ahead. At the start a WAL that is shorter
   than its head, or a database that is missing beside one, is refused, before anything is touched.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import struct
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from protego_cli.control.state.store import Change
from protego_cli.errors import EnvironmentFault

SHRED: Final = 60.0  # seconds that a deleted value may still be in the WAL
FRAMES: Final = 1000  # pages in the WAL after which it is emptied at once
PAGE: Final = 8192  # of new databases

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS record (key BLOB NOT NULL UNIQUE, value BLOB NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS batch (number INTEGER PRIMARY KEY, changes BLOB NOT NULL) STRICT",
)
_ADD: Final = "INSERT INTO batch (changes) VALUES (?)"
_DROP: Final = "DELETE FROM record WHERE key = ?"
_PUT: Final = "INSERT INTO record VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"

_WAL_HEADER: Final = struct.Struct(">IIIIIIII")
_FRAME_HEADER: Final = struct.Struct(">IIIIII")
_WAL_MAGIC: Final = 0x377F0682  # the lowest bit: big-endian checksums
_HEAD: Final = struct.Struct(">4sIIQ")  # magic, salts, frames; and the CRC of these
_HEAD_MAGIC: Final = b"PGH1"
_MAGIC: Final = b"SQLite format 3\0"
_PAGE_SIZE: Final = slice(16, 18)  # where a database tells it
_LEAST: Final = 512  # bytes of a page
_UNREADABLE: Final = "a batch is not readable"

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[Change]).decode


class Head(NamedTuple):
    """How far the WAL of these salts goes; no frame at all: it may be missing."""

    salts: tuple[int, int] = (0, 0)
    frames: int = 0


class SqliteStore:
    def __init__(self, directory: Path) -> None:
        """Raises EnvironmentFault when the database is damaged, or cannot be had."""
        self._directory = directory
        self._file = directory / "state.db"
        self._wal = directory / "state.db-wal"
        self._since: float | None = None  # of the first commit that is in the WAL
        try:
            self._check_files()
            self._head_fd = os.open(directory / "state.head", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvironmentFault(
                f"{error.filename}: the GMN's state cannot be read: {error.strerror}"
            ) from error
        try:
            self._db = self._open()
        except EnvironmentFault:
            os.close(self._head_fd)
            raise
        self._wal_fd: int | None = None  # from the first commit on
        self._salts: tuple[int, int] | None = None  # of the WAL as it is
        self._page: int = self._db.execute("PRAGMA page_size").fetchone()[0]
        self._fds = [self._head_fd]
        self._finish = weakref.finalize(self, _finish, self._db, self._head_fd, self._fds)

    # ---- opening

    def _check_files(self) -> None:
        """What can be told from the files before SQLite touches them."""
        head_file = self._directory / "state.head"
        head = _parse_head(head_file.read_bytes()) if head_file.exists() else None
        size = self._file.stat().st_size if self._file.exists() else 0
        if head is not None and not size:
            raise self._damaged("it is missing or empty, but was there")
        if size and stat.S_IMODE(self._file.stat().st_mode) & 0o077:
            raise EnvironmentFault(
                f"{self._file}: others can read the GMN's state; run `chmod 600 {self._file}`"
            )
        if 0 < size < self._least():  # SQLite would take a stump for a new database
            raise self._damaged(f"it ends after {size} bytes")
        wal = self._wal.read_bytes() if self._wal.exists() else b""
        salts, frames = _scan(wal)
        if head is not None:
            held = frames if salts == head.salts else 0  # of other salts: not the WAL of then
            if held < head.frames:
                raise self._damaged(f"{self._wal.name} has lost {head.frames - held} of {head.frames} pages")
        if wal and not size:
            raise self._damaged(f"{self._wal.name} is there without it")
        os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _least(self) -> int:
        """The bytes that the database must have: a page, as long as it says that its pages are."""
        with self._file.open("rb") as file:
            header = file.read(_PAGE_SIZE.stop)
        return max(int.from_bytes(header[_PAGE_SIZE]) if header.startswith(_MAGIC) else 0, _LEAST)

    def _open(self) -> sqlite3.Connection:
        with contextlib.ExitStack() as unless_opened:
            db = sqlite3.connect(self._file, timeout=0, isolation_level=None, check_same_thread=False)
            unless_opened.callback(db.close)
            self._prepare(db)
            unless_opened.pop_all()
        self._since = time.monotonic()  # of what an earlier life has left
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute(f"PRAGMA page_size = {PAGE}")
            db.execute("PRAGMA auto_vacuum = FULL")  # of a new one: what batches took is given back
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")
            db.execute("PRAGMA wal_autocheckpoint = 0")
            (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            if mode != "wal" or verdict != "ok":
                raise self._damaged(
                    " ".join(str(verdict).split()) if mode == "wal" else f"its mode is {mode}"
                )
            for table in _TABLES:
                db.execute(table)
        except sqlite3.Error as error:
            raise self._fault(error) from error
        except ValueError as error:  # SQLite quotes what it does not understand, and that may be no text
            raise self._damaged("its schema is not readable") from error

    # ---- the promises

    def load(self) -> Iterator[tuple[bytes, bytes]]:
        try:
            found = dict(self._db.execute("SELECT key, value FROM record"))
            for key, value in _folded(self._db).items():
                if value is None:
                    found.pop(key, None)
                else:
                    found[key] = value
        except sqlite3.Error as error:
            raise self._fault(error) from error
        except ValueError as error:
            raise self._damaged(_UNREADABLE) from error
        return iter(found.items())

    def commit(self, changes: Sequence[Change]) -> None:
        try:
            self._db.execute(_ADD, (_pack(changes),))
            frames = self._note_head()
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error
        if self._since is None:
            self._since = time.monotonic()
        if frames >= FRAMES:
            self._empty()

    def tend(self) -> None:
        if self._since is not None and time.monotonic() - self._since >= SHRED:
            self._empty()

    def close(self) -> None:
        self._finish()

    # ---- inside

    def _empty(self) -> None:
        """Fold the batches, copy the WAL into the database and cut it to nothing."""
        self._salts = None
        try:
            _fold(self._db)
            _write_head(self._head_fd, Head())
            os.fsync(self._head_fd)  # or, after a loss of power, the head would miss the WAL
            busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                self._since = None
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error
        except ValueError as error:
            raise self._damaged(_UNREADABLE) from error

    def _note_head(self) -> int:
        if self._wal_fd is None:  # SQLite has made it by now, and keeps it until it ends
            self._wal_fd = os.open(self._wal, os.O_RDONLY | os.O_CLOEXEC)
            self._fds.append(self._wal_fd)
        if self._salts is None:
            fields = _WAL_HEADER.unpack(os.pread(self._wal_fd, _WAL_HEADER.size, 0))
            self._salts = fields[4], fields[5]
        size = os.fstat(self._wal_fd).st_size
        frames = (size - _WAL_HEADER.size) // (_FRAME_HEADER.size + self._page)
        _write_head(self._head_fd, Head(self._salts, frames))
        return frames

    def _damaged(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self._file}: the database is damaged: {what}; nothing was changed. If it cannot be mended, "
            f"move {self._directory}/state.* away: the GMN then begins anew, and every peer must dial again"
        )

    def _fault(self, error: sqlite3.Error | OSError) -> EnvironmentFault:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._damaged(str(error))
        return EnvironmentFault(
            f"{self._file}: the GMN's state cannot be stored: {error}; see to the disk and the permissions "
            f"of {self._directory}, then start the GMN again: it carries on from what is stored"
        )


def _folded(db: sqlite3.Connection) -> dict[bytes, bytes | None]:
    """What the batches come to. Raises ValueError."""
    rows = db.execute("SELECT changes FROM batch ORDER BY number")
    return {key: value for (changes,) in rows for key, value in _unpack(changes)}


def _fold(db: sqlite3.Connection) -> None:
    """Put what the batches come to into the records, and nothing more is in the batches."""
    with db:  # commits, or rolls back
        db.execute("BEGIN IMMEDIATE")
        latest = _folded(db)
        db.executemany(_DROP, [(key,) for key, value in latest.items() if value is None])
        db.executemany(_PUT, [change for change in latest.items() if change[1] is not None])
        db.execute("DELETE FROM batch")


def _finish(db: sqlite3.Connection, head_fd: int, fds: Sequence[int]) -> None:
    """SQLite empties the WAL and removes it as it closes, also when an open store is forgotten."""
    with contextlib.suppress(sqlite3.Error, ValueError):  # a full disk; what is committed is safe in batches
        _fold(db)
    with contextlib.suppress(OSError):  # and in the WAL as well
        _write_head(head_fd, Head())
        os.fsync(head_fd)
    for fd in fds:
        os.close(fd)
    db.close()


def _write_head(head_fd: int, head: Head) -> None:
    data = _HEAD.pack(_HEAD_MAGIC, *head.salts, head.frames)
    os.pwrite(head_fd, data + zlib.crc32(data).to_bytes(4), 0)


def _parse_head(data: bytes) -> Head | None:
    """None when there never was one; a file that was made and not yet filled is none either."""
    if len(data) != _HEAD.size + 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:]):
        return None
    _, first, second, frames = _HEAD.unpack(data[:-4])
    return Head((first, second), frames)


def _scan(wal: bytes) -> tuple[tuple[int, int], int]:
    """The salts of a WAL and how many of its frames, up to the last commit, SQLite will take."""
    if len(wal) < _WAL_HEADER.size:
        return (0, 0), 0
    magic, _, page, _, *salts, check1, check2 = _WAL_HEADER.unpack_from(wal)
    order = ">" if magic & 1 else "<"
    sums = _checksum(wal[:24], order, (0, 0))
    if magic & ~1 != _WAL_MAGIC or sums != (check1, check2):
        return (0, 0), 0
    taken = 0
    size = _FRAME_HEADER.size + page
    for count, start in enumerate(range(_WAL_HEADER.size, len(wal) - size + 1, size), 1):
        _, commit, salt1, salt2, check1, check2 = _FRAME_HEADER.unpack_from(wal, start)
        sums = _checksum(wal[start : start + 8], order, sums)
        sums = _checksum(wal[start + _FRAME_HEADER.size : start + size], order, sums)
        if [salt1, salt2] != salts or sums != (check1, check2):
            break
        if commit:
            taken = count
    return (salts[0], salts[1]), taken


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
