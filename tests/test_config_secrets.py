"""Secrets: what a file may hold, who may read it, and that no message repeats any of it."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from protego_cli.config.secrets import generate_secret, read_secret
from protego_cli.errors import EnvironmentFault, Exit, UsageError


def secret_file(directory: Path, content: bytes, mode: int = 0o600) -> Path:
    file = directory / "tunnel.psk"
    file.write_bytes(content)
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"correct horse battery staple", b"correct horse battery staple"),
        (b"  correct horse battery staple\r\n", b"correct horse battery staple"),
        (b"0x00112233445566778899aabbccddeeff\n", bytes.fromhex("00112233445566778899aabbccddeeff")),
        (b"0sAAECAwQFBgcICQoLDA0ODw==\n", bytes(range(16))),
        ("schlüssel-schlüssel".encode(), "schlüssel-schlüssel".encode()),
    ],
)
def test_forms_of_a_key(tmp_path: Path, content: bytes, secret: bytes) -> None:
    assert read_secret(secret_file(tmp_path, content)) == secret


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"", 0o600, "is empty"),
        (b" \n", 0o600, "is empty"),
        (b"0x", 0o600, "is empty"),
        (b"0xhunter2hunter2", 0o600, "not hexadecimal"),
        (b"0shunter2!hunter2", 0o600, "not base64"),
        (b"hunter2" * 1000, 0o600, "longer than 4096 bytes"),
        (b"hunter2hunter2hunter2", 0o640, "chmod 600"),
        (b"hunter2hunter2hunter2", 0o604, "chmod 600"),
        (b"hunter2hunter2hunter2", 0o620, "chmod 600"),
    ],
    ids=["nothing", "blank", "bare 0x", "no hex", "no base64", "long", "group", "others", "writable"],
)
def test_what_is_refused(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    with pytest.raises(EnvironmentFault, match=message) as caught:
        read_secret(secret_file(tmp_path, content, mode))
    assert caught.value.exit_code is Exit.ENVIRONMENT
    assert "hunter" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="psk generate"):
        read_secret(tmp_path / "none.psk")
    with pytest.raises(EnvironmentFault):
        read_secret(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(EnvironmentFault, match="not a regular file"):
        read_secret(tmp_path / "fifo")


def test_a_short_key_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_secret(secret_file(tmp_path, b"hunter2")) == b"hunter2"
    assert "short pre-shared key" in caplog.text
    assert "hunter2" not in caplog.text


def test_generate_writes_a_private_file_once(tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "hq.psk"
    generate_secret(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    secret = read_secret(file)
    assert len(secret) == 44
    assert secret.isalnum()
    assert secret[:1].isalpha()
    with pytest.raises(UsageError, match="never overwritten"):
        generate_secret(file)
    assert read_secret(file) == secret
    generate_secret(tmp_path / "other.psk")
    assert read_secret(tmp_path / "other.psk") != secret


def test_generate_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        generate_secret(tmp_path / "file" / "hq.psk")
