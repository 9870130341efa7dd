"""The epoch: never twice, stored before it is used, and clear words when it cannot be had."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from protego_cli.control.state.epoch import next_epoch
from protego_cli.errors import EnvironmentFault


class State:
    """The epoch in a GMN's state."""

    def __init__(self, stored: int | None = None) -> None:
        self.stored = stored

    def next(self, directory: Path) -> int:
        return next_epoch(directory, self.stored, self._store)

    def _store(self, epoch: int) -> None:
        self.stored = epoch


def test_it_grows_by_one(tmp_path: Path) -> None:
    state = State()
    assert [state.next(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert (tmp_path / "epoch").read_text() == "3\n"
    assert state.stored == 3


def test_the_file_is_private(tmp_path: Path) -> None:
    State().next(tmp_path)
    assert stat.S_IMODE((tmp_path / "epoch").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["epoch"]


def test_both_are_on_the_disk_before_it_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append("fsync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    next_epoch(tmp_path, None, lambda epoch: steps.append("store"))
    assert steps == ["store", "fsync file", "replace", "fsync directory"]


def test_a_file_that_lags_is_overtaken(tmp_path: Path) -> None:
    """The GMN ended between the two."""
    (tmp_path / "epoch").write_text("4")
    assert State(5).next(tmp_path) == 6


def test_an_old_copy_of_the_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text("6")
    state = State(5)
    with pytest.raises(EnvironmentFault, match=r"old copy.*numbers used since.*move"):
        state.next(tmp_path)
    assert state.stored == 5
    assert (tmp_path / "epoch").read_text() == "6"


def test_without_a_state_the_file_is_the_floor(tmp_path: Path) -> None:
    (tmp_path / "epoch").write_text("41")
    assert State().next(tmp_path) == 42


def test_an_interrupted_write_costs_nothing(tmp_path: Path) -> None:
    state = State()
    state.next(tmp_path)
    (tmp_path / "epoch.new").write_text("half")
    assert state.next(tmp_path) == 2


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"x", b"-1", b"1.5", b"1 2", b"\xff", "٣".encode(), b"9" * 40]
)
def test_a_corrupt_file_is_not_guessed_at(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch").write_bytes(content)
    with pytest.raises(EnvironmentFault) as caught:
        State().next(tmp_path)
    assert str(tmp_path / "epoch") in str(caught.value)
    assert "a number above every epoch" in str(caught.value)
    with pytest.raises(EnvironmentFault, match=r"remove it: the state beside it.*was 7"):
        next_epoch(tmp_path, 7, lambda epoch: None)
    assert (tmp_path / "epoch").read_bytes() == content


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="the epoch cannot be stored"):
        State().next(tmp_path / "nowhere")
