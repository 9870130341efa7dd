"""The `nft` program as a long-lived child, and what only netlink tells quickly.

1. A script goes into a memory file that the child inherits; one line on its standard input includes it. So a
   script of any length is one transaction: the kernel takes all of it or nothing.
2. A line that is no command follows. The child answers in order, so its complaint about that line says that
   the script is done; whatever it said before is why the script failed.
3. Tables with `flags owner` belong to the child's netlink socket: nobody else changes or flushes them, and
   the kernel removes them when the child ends, however it ends. It ends when its standard input closes.

Counters are read by a netlink request of our own: `nft` first lists every element of every map.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
from typing import Final

import trio

SEARCHED: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
TRIAL_TIMEOUT: Final = 10.0  # seconds

_ERROR = re.compile(r"Error: ([^\n]+)")

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER: Final = 12
_GET_OBJECT: Final = 10 << 8 | 19
_NEW_OBJECT: Final = 10 << 8 | 18
_REQUEST: Final = 1
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA = 1, 2, 3, 4
_OBJECT_COUNTER: Final = 1
_COUNTER_PACKETS: Final = 2
_IPV4: Final = 2
_NESTED: Final = 1 << 15

_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct("!BBH")
_ATTRIBUTE = struct.Struct("=HH")


class NftFailed(Exception):
    """`nft` or the kernel refused a script, or the program has gone; the text is what it said."""


def find() -> str | None:
    """Where the program is; `sbin` need not be in the PATH of who runs a node."""
    return shutil.which("nft", path=SEARCHED)


class Nft:
    """One child. `run` it from one task at a time."""

    def __init__(self) -> None:
        """Start it. Raises NftFailed."""
        program = find()
        if program is None:
            raise NftFailed("nft is not installed")
        self._script = open(os.memfd_create("protego-nft"), "w+b", buffering=0)  # noqa: SIM115 - closed below
        try:
            self._child = subprocess.Popen(  # noqa: S603 - what it is told is ours
                [program, "-i"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(self._script.fileno(),),
                start_new_session=True,  # Ctrl-C is for us; then we end the child
            )
        except OSError as error:
            self._script.close()
            raise NftFailed(f"{program} cannot be run: {error.strerror}") from error
        self._said = b""
        self._sent = 0
        for pipe in (self._child.stdin, self._child.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    async def run(self, script: str, patience: float) -> None:
        """Return once the kernel has taken the script, which may take so many seconds. Raises NftFailed; then
        it has taken nothing of it, unless the child is gone or does not answer."""
        self._script.truncate(0)
        os.pwrite(self._script.fileno(), script.encode(), 0)
        self._sent += 1
        end = f"protego-{self._sent}"
        try:
            with trio.fail_after(patience):
                self._say(f'include "/proc/self/fd/{self._script.fileno()}"\n{end}\n'.encode())
                said = await self._until(f"\n{end}\n".encode())
        except trio.TooSlowError:
            raise NftFailed(f"nft has not answered for {patience:g} s") from None
        except OSError as error:
            raise NftFailed(f"nft has ended ({error.strerror})") from None
        complaint, _, _ = said.rpartition("\n")  # the line before the last is about our own
        if complaint:
            raise NftFailed(summary(complaint))

    def close(self) -> None:
        """End the child, whatever it does, and with it its tables."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stderr, self._script):
            if pipe is not None:
                pipe.close()

    def _say(self, line: bytes) -> None:
        if self._child.stdin is None or self._child.stdin.write(line) != len(line):
            raise BlockingIOError(0, "it does not read")

    async def _until(self, end: bytes) -> str:
        """What it says up to this line and the markers below it; without both."""
        pipe = self._child.stderr
        while pipe is not None:
            before, found, after = self._said.partition(end)
            if found and after.endswith(b"^\n"):
                self._said = b""
                return before.decode(errors="replace")
            await trio.lowlevel.wait_readable(pipe)
            more = pipe.read(65536)
            if more == b"":
                break
            self._said += more or b""
        raise BrokenPipeError(0, "its end of the pipe is closed")


def try_out(script: str) -> str | None:
    """Run a script by a child of its own, which takes its tables along; what went wrong, or None."""
    program = find()
    if program is None:
        return "nft is not installed"
    try:
        done = subprocess.run(  # noqa: S603 - as above
            [program, "-f", "-"],
            input=script,
            capture_output=True,
            text=True,
            timeout=TRIAL_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return summary(done.stderr) if done.returncode else None


def summary(said: str) -> str:
    """The first error of what nft says."""
    found = _ERROR.search(said)
    return found[1].removeprefix("Could not process rule: ") if found else " ".join(said.split())


def counted(table: str, counter: str) -> int | None:
    """The packets that a named counter of an `ip` table has counted; None when it cannot be read."""
    attributes = (
        _attribute(_OBJECT_TABLE, table.encode() + b"\0")
        + _attribute(_OBJECT_NAME, counter.encode() + b"\0")
        + _attribute(_OBJECT_TYPE, _OBJECT_COUNTER.to_bytes(4))
    )
    body = _FAMILY.pack(_IPV4, 0, 0) + attributes
    request = _HEADER.pack(_HEADER.size + len(body), _GET_OBJECT, _REQUEST, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.settimeout(1)
            sock.send(request)
            answer = sock.recv(65536)
    except OSError:
        return None
    length, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind != _NEW_OBJECT:
        return None
    found = _attributes(answer[_HEADER.size + _FAMILY.size : length])
    packets = _attributes(found.get(_OBJECT_DATA, b"")).get(_COUNTER_PACKETS)
    return int.from_bytes(packets) if packets else None


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & ~_NESTED] = data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]
    return found
