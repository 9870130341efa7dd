"""The vault: sealed at rest, bound to its cluster and key, one process at a time."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from protego_cli.config.model import Cluster
from protego_cli.control.state import vault
from protego_cli.control.state.vault import Vault, make_master_key, open_vault, unfit
from protego_cli.errors import EnvironmentFault
from protego_cli.plugins.state_stores import Sqlite
from tests.support.stores import MemoryStore


class Shelf(MemoryStore):
    """A store in memory, and its kind."""

    name = "shelf"

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    def open(self, directory: Path) -> Shelf:
        return self

    def close(self) -> None:
        self.closed += 1


def make_cluster(directory: Path, name: str = "demo") -> Cluster:
    cluster = Cluster(
        name=name,
        file=directory / "cluster.toml",
        vips=(),
        pki=directory / "pki",
        state=directory / "state",
        nodes=(),
        tenants=(),
    )
    cluster.pki.mkdir(exist_ok=True)
    make_master_key(cluster.master_key)
    return cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return make_cluster(tmp_path)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def refused(cluster: Cluster, shelf: Shelf) -> str:
    before = dict(shelf.held)
    with pytest.raises(EnvironmentFault) as caught, closing(open_vault(cluster, shelf)) as found:
        dict(found.load())
    assert shelf.held == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill(cluster: Cluster, shelf: Shelf, **values: bytes) -> None:
    with closing(open_vault(cluster, shelf)) as opened:
        opened.commit([(name.encode(), value) for name, value in values.items()])


def test_what_goes_in_comes_out(cluster: Cluster, shelf: Shelf) -> None:
    fill(cluster, shelf, a=b"one", b=b"two")
    with closing(open_vault(cluster, shelf)) as opened:
        opened.commit([(b"b", None), (b"c", b"")])
    assert shelf.closed == 2
    with closing(open_vault(cluster, shelf)) as opened:
        assert dict(opened.load()) == {b"a": b"one", b"c": b""}


def test_nothing_is_readable_and_no_nonce_is_used_twice(cluster: Cluster, shelf: Shelf) -> None:
    prefixes = set()
    for life in range(3):
        with closing(open_vault(cluster, shelf)) as opened:
            for _ in range(5):
                opened.commit([(b"key", b"PLAIN"), (b"other", b"PLAIN")])
                for key in (b"key", b"other"):
                    value = shelf.held[key]
                    assert b"PLAIN" not in value
                    prefixes.add(value[:24])
        assert len(prefixes) == (life + 1) * 10
    assert len({prefix[:16] for prefix in prefixes}) == 3  # a salt for each life


def test_a_copy_of_the_state_begins_under_another_salt(cluster: Cluster, shelf: Shelf) -> None:
    fill(cluster, shelf, a=b"one")
    copy = dict(shelf.held)
    fill(cluster, shelf, a=b"two")
    first = shelf.held[b"a"]
    shelf.held = copy
    fill(cluster, shelf, a=b"three")
    assert shelf.held[b"a"][:16] != first[:16]


@pytest.mark.parametrize("place", [0, 15, 16, 23, 24, -1])
def test_a_changed_value_is_refused(cluster: Cluster, shelf: Shelf, place: int) -> None:
    fill(cluster, shelf, a=b"one")
    value = bytearray(shelf.held[b"a"])
    value[place] ^= 1
    shelf.held[b"a"] = bytes(value)
    assert "the record b'a' is damaged" in refused(cluster, shelf)


def test_a_value_in_another_ones_place_is_refused(cluster: Cluster, shelf: Shelf) -> None:
    fill(cluster, shelf, a=b"one", b=b"two")
    shelf.held[b"a"] = shelf.held[b"b"]
    assert "the record b'a' is damaged" in refused(cluster, shelf)


@pytest.mark.parametrize("value", [b"", b"short", bytes(24), bytes(39)])
def test_a_stump_is_refused(cluster: Cluster, shelf: Shelf, value: bytes) -> None:
    fill(cluster, shelf, a=b"one")
    shelf.held[b"a"] = value
    assert "the record b'a' is damaged" in refused(cluster, shelf)


def test_another_master_key(cluster: Cluster, shelf: Shelf) -> None:
    fill(cluster, shelf, a=b"one")
    cluster.master_key.unlink()
    make_master_key(cluster.master_key)
    said = refused(cluster, shelf)
    assert str(cluster.master_key) in said
    assert "this key does not open" in said
    assert "Restore the key" in said


def test_the_state_of_another_cluster(cluster: Cluster, shelf: Shelf) -> None:
    fill(cluster, shelf, a=b"one")
    other = msgspec.structs.replace(cluster, name="other")
    assert "this is the state of cluster 'demo', not of 'other'" in refused(other, shelf)


def test_a_renamed_state_does_not_open(cluster: Cluster, shelf: Shelf) -> None:
    fill(cluster, shelf, a=b"one")
    shelf.held[vault.META] = shelf.held[vault.META].replace(b'"demo"', b'"other"')
    other = msgspec.structs.replace(cluster, name="other")
    assert "this key does not open" in refused(other, shelf)


def test_a_newer_format(cluster: Cluster, shelf: Shelf) -> None:
    fill(cluster, shelf, a=b"one")
    shelf.held[vault.META] = b'{"format": 2, "all": "different"}'
    assert "written by a newer Protego (format 2, this one knows 1)" in refused(cluster, shelf)


@pytest.mark.parametrize("value", [b"", b"{}", b'{"format": 1}', b"\xff", b'{"format": "1"}'])
def test_a_damaged_head(cluster: Cluster, shelf: Shelf, value: bytes) -> None:
    fill(cluster, shelf, a=b"one")
    shelf.held[vault.META] = value
    assert "the record b'meta' is damaged" in refused(cluster, shelf)


def test_a_state_without_a_head(cluster: Cluster, shelf: Shelf) -> None:
    shelf.held[b"stray"] = b"value"
    assert "names no cluster" in refused(cluster, shelf)


# ---- the directory


def test_modes(cluster: Cluster) -> None:
    with closing(open_vault(cluster, Sqlite())):
        assert stat.S_IMODE(cluster.state.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in cluster.state.iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o750, 0o707, 0o720])
def test_a_directory_open_to_others(cluster: Cluster, shelf: Shelf, mode: int) -> None:
    cluster.state.mkdir()
    cluster.state.chmod(mode)
    assert f"chmod 700 {cluster.state}" in refused(cluster, shelf)


def test_a_directory_that_cannot_be_made(cluster: Cluster, shelf: Shelf) -> None:
    cluster.state.write_text("a file")
    assert "the GMN's state cannot be kept here" in refused(cluster, shelf)


def test_what_keeps_a_gmn_away_is_known_before_it_starts(cluster: Cluster) -> None:
    assert list(unfit(cluster)) == []
    assert not cluster.state.exists()
    cluster.master_key.unlink()
    cluster.state.mkdir()
    cluster.state.chmod(0o750)
    assert [fault.partition(": ")[2][:20] for fault in unfit(cluster)] == [
        "the key of the GMN's", "others can enter thi"
    ]  # fmt: skip
    cluster.state.rmdir()
    cluster.state.write_text("a file")
    below = msgspec.structs.replace(cluster, state=cluster.state / "state")
    for refusing in (cluster, below):
        assert f"{cluster.state} is not writable" in list(unfit(refusing))[1]


def test_a_second_gmn(cluster: Cluster, shelf: Shelf) -> None:
    """In another process: a lock is not shared, and ends with its process."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.test_vault import make_cluster, Shelf, open_vault\n"
        "vault = open_vault(make_cluster(Path(sys.argv[1])), Shelf())\n"
        "print('open', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(cluster.state.parent)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[1]) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert f"another GMN works on this state (process {other.pid})" in refused(cluster, shelf)
        other.kill()
    with closing(open_vault(cluster, shelf)) as opened:
        assert isinstance(opened, Vault)


# ---- the master key


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state.key"
    assert make_master_key(path)
    key = path.read_text()
    assert len(bytes.fromhex(key)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not make_master_key(path)
    assert path.read_text() == key


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "0" * 63])
def test_what_is_no_key(cluster: Cluster, shelf: Shelf, text: str) -> None:
    cluster.master_key.write_text(text)
    assert "this is not the key of a state" in refused(cluster, shelf)


def test_a_missing_key(cluster: Cluster, shelf: Shelf) -> None:
    cluster.master_key.unlink()
    said = refused(cluster, shelf)
    assert "is missing; restore it" in said
    assert "protego pki init" in said
    assert not cluster.master_key.exists()


def test_a_key_that_others_can_read(cluster: Cluster, shelf: Shelf) -> None:
    cluster.master_key.chmod(0o640)
    assert f"chmod 600 {cluster.master_key}" in refused(cluster, shelf)


def test_a_key_that_is_a_directory(cluster: Cluster, shelf: Shelf) -> None:
    cluster.master_key.unlink()
    cluster.master_key.mkdir(mode=0o700)
    assert "cannot read the key of the GMN's state: Is a directory" in refused(cluster, shelf)


def test_a_key_beside_the_state(cluster: Cluster, shelf: Shelf) -> None:
    beside = msgspec.structs.replace(cluster, state_key=cluster.state / "state.key")
    assert "must not lie beside it" in refused(beside, shelf)


def test_no_key_shows(cluster: Cluster, shelf: Shelf) -> None:
    key = cluster.master_key.read_text().strip()
    with closing(open_vault(cluster, shelf)) as opened:
        assert key not in repr(opened)
    cluster.master_key.write_text(key[:-2])
    assert key[:8] not in refused(cluster, shelf)
    os.truncate(cluster.master_key, 0)
