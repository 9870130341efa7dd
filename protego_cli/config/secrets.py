"""Secrets: each in a file of its own that nobody but its owner may read.

A pre-shared key is the file's content without surrounding white space. As in strongSwan, `0x` starts a key
in hexadecimal and `0s` one in base64. Nothing here puts a secret, or a part of one, into a message.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import secrets
import stat
import string
from pathlib import Path

from protego_cli.errors import EnvironmentFault, UsageError

logger = logging.getLogger(__name__)

MAX_FILE = 4096  # bytes; a longer file is some other file
SHORT = 16  # bytes; a shorter key can be guessed from a recorded handshake (RFC 7296 5)
GENERATED = 44  # letters and digits: more than 256 bits


def read_secret(path: Path) -> bytes:
    """The secret in a file. Raises EnvironmentFault, which says what to do, when there is none to be had."""
    try:
        # O_NONBLOCK: opening a FIFO by mistake must not wait for a writer
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise EnvironmentFault(f"{path} is not a regular file, so no secret is read from it")
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise EnvironmentFault(f"{path} can be read by others: run `chmod 600 {path}`")
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise EnvironmentFault(f"{path} does not exist: run `protego psk generate {path}`") from None
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE:
        raise EnvironmentFault(f"{path} is longer than {MAX_FILE} bytes, so it is no pre-shared key")
    secret = _decode(path, content.strip())
    if not secret:
        raise EnvironmentFault(
            f"{path} is empty: write the key into it, or remove it and run `protego psk generate {path}`"
        )
    if len(secret) < SHORT:
        logger.warning("short pre-shared key file=%s bytes=%d recommended=%d", path, len(secret), SHORT)
    return secret


def _decode(path: Path, content: bytes) -> bytes:
    try:
        if content.startswith(b"0x"):
            return binascii.unhexlify(content[2:])
        if content.startswith(b"0s"):
            return base64.b64decode(content[2:], validate=True)
    except binascii.Error:
        kind = "hexadecimal" if content.startswith(b"0x") else "base64"
        raise EnvironmentFault(f"{path} starts with {content[:2].decode()} but is not {kind}") from None
    return content


def generate_secret(path: Path) -> None:
    """Write a new pre-shared key of 256 bits, of letters and digits: that fits every vendor's form."""
    secret = secrets.choice(string.ascii_letters)  # no digit: a key that starts with 0x or 0s is encoded
    secret += "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(GENERATED - 1))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True)
        with open(os.open(path, flags, 0o600), "w") as file:
            file.write(secret + "\n")
    except OSError as error:
        if path.exists():
            raise UsageError(f"{path} exists, and a secret is never overwritten: remove it first") from None
        raise EnvironmentFault(f"{path} cannot be written: {error.strerror}") from None
