"""The epoch: never twice, on the disk before it is used, and clear words when it cannot be had."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from protego_cli.control.epoch import next_epoch
from protego_cli.errors import EnvironmentFault


def test_it_grows_by_one(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    assert [next_epoch(state) for _ in range(3)] == [1, 2, 3]
    assert (state / "epoch").read_text() == "3\n"


def test_modes(tmp_path: Path) -> None:
    state = tmp_path / "state"
    next_epoch(state)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "epoch").stat().st_mode) == 0o600
    assert os.listdir(state) == ["epoch"]


def test_it_is_on_the_disk_before_it_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    next_epoch(tmp_path / "state")
    assert steps == ["fsync file", "replace", "fsync directory"]


def test_an_interrupted_write_costs_nothing(tmp_path: Path) -> None:
    next_epoch(tmp_path)
    (tmp_path / "epoch.new").write_text("half")
    assert next_epoch(tmp_path) == 2


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"x", b"-1", b"1.5", b"1 2", b"\xff", "٣".encode(), b"9" * 40]
)
def test_a_corrupt_file_is_not_guessed_at(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch").write_bytes(content)
    with pytest.raises(EnvironmentFault) as caught:
        next_epoch(tmp_path)
    assert str(tmp_path / "epoch") in str(caught.value)
    assert "a number above every epoch" in str(caught.value)
    assert (tmp_path / "epoch").read_bytes() == content


def test_a_directory_others_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(EnvironmentFault, match="chmod 700"):
        next_epoch(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(EnvironmentFault, match="the epoch cannot be stored"):
        next_epoch(tmp_path / "state")
