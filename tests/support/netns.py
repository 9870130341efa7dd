"""Network namespaces, veth pairs and processes inside them, made and removed by the test that needs them.

Names are short and bear the process id, so that runs side by side never meet; everything is undone on exit,
whatever happened. Nothing outside the namespaces is touched but the default receive buffer, which the
kernel keeps for the whole machine and which is put back.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000


class CommandFailed(Exception):
    """A command in a namespace failed; the text has the command and what it said."""


def run(*command: str, timeout: float = 20, check: bool = True) -> str:
    """Run a command and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise CommandFailed(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


class Namespace:
    """One network namespace; `ip` and `run` act inside it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def command(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str, timeout: float = 20, check: bool = True) -> str:
        return run(*self.command(*command), timeout=timeout, check=check)

    def ip(self, *arguments: str) -> str:
        return run("ip", "-n", self.name, *arguments)

    def popen(self, *command: str, log: Path) -> subprocess.Popen[str]:
        """Start a process inside; its output goes to `log`."""
        with log.open("a") as out:
            return subprocess.Popen(self.command(*command), text=True, stdout=out, stderr=subprocess.STDOUT)

    def udp_drops(self) -> int:
        """Datagrams the kernel of this namespace dropped for want of socket buffer (RcvbufErrors)."""
        names, values = [
            line.split()[1:]
            for line in self.run("cat", "/proc/net/snmp").splitlines()
            if line.startswith("Udp:")
        ]
        counts = dict(zip(names, map(int, values), strict=True))
        return counts["RcvbufErrors"] + counts["SndbufErrors"] + counts["MemErrors"]

    def raw_drops(self) -> int:
        """The same of raw sockets."""
        rows = self.run("cat", "/proc/net/raw").splitlines()[1:]
        return sum(int(row.split()[-1]) for row in rows)

    def device_drops(self) -> int:
        """Packets that interfaces of this namespace dropped, in and out."""
        total = 0
        for line in self.run("cat", "/proc/net/dev").splitlines()[2:]:
            fields = line.split(":", 1)[1].split()
            total += int(fields[3]) + int(fields[11])
        return total


@contextmanager
def inside(space: Namespace) -> Iterator[None]:
    """Sockets this thread opens belong to the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: str) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            if libc.setns(handle, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), path)
        finally:
            os.close(handle)

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(f"/run/netns/{space.name}")
        yield
    finally:
        enter(f"/proc/self/fd/{own}")
        os.close(own)


@contextmanager
def namespaces(*labels: str) -> Iterator[list[Namespace]]:
    """Namespaces named `p<pid>-<label>` with loopback up; removed on exit with all that runs in them."""
    with ExitStack() as stack:
        made = []
        for label in labels:
            name = f"p{os.getpid()}-{label}"
            run("ip", "netns", "add", name)
            stack.callback(_remove, name)
            space = Namespace(name)
            space.ip("link", "set", "lo", "up")
            made.append(space)
        yield made


def _remove(name: str) -> None:
    for pid in run("ip", "netns", "pids", name, check=False).split():
        subprocess.run(["kill", "-9", pid], check=False, capture_output=True)
    run("ip", "netns", "del", name, check=False)


def veth(a: Namespace, a_name: str, a_address: str, b: Namespace, b_name: str, b_address: str) -> None:
    """Join two namespaces by a veth pair with an address (CIDR) on each end."""
    run("ip", "link", "add", a_name, "netns", a.name, "type", "veth", "peer", "name", b_name, "netns", b.name)
    for space, name, address in ((a, a_name, a_address), (b, b_name, b_address)):
        space.ip("addr", "add", address, "dev", name)
        space.ip("link", "set", name, "txqueuelen", "10000", "up")


@contextmanager
def receive_buffers(size: int) -> Iterator[None]:
    """Raise the machine's default and largest socket buffers while peers start, then put them back."""
    paths = [
        Path("/proc/sys/net/core") / name for name in ("rmem_max", "wmem_max", "rmem_default", "wmem_default")
    ]
    before = [path.read_text() for path in paths]
    try:
        for path in paths:
            path.write_text(str(max(size, int(path.read_text()))))
        yield
    finally:
        for path, text in zip(reversed(paths), reversed(before), strict=True):
            path.write_text(text)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 20, every: float = 0.02) -> None:
    """Poll until true; AssertionError names what did not happen."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(every)


def stop(process: subprocess.Popen[str], patience: float = 5) -> int:
    """End a process politely, then not."""
    process.terminate()
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def missing(tools: Sequence[str]) -> list[str]:
    """Those of the tools that this machine lacks."""
    return [
        tool for tool in tools if subprocess.run(["which", tool], capture_output=True, check=False).returncode
    ]
