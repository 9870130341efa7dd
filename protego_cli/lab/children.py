"""The child processes of `protego local`: started side by side, watched, and never left behind.

- Each runs this same program in a session of its own, so that Ctrl-C reaches the orchestrator alone.
- Each holds the reading end of a pipe as stdin and ends when it closes: when the orchestrator dies, whatever
  the reason, its children end too.
- stderr goes to a log file; a child that ends before it was told to fails the run with its last lines.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

from protego_cli.control.pools.processes import program
from protego_cli.errors import ProtegoError
from protego_cli.lab.protocol import Command, Snapshot, Verb

_LAST_LINES = 8
_TAIL_BYTES = 1 << 14
_PATIENCE = 2.0  # seconds a child has to end by itself
_CHUNK = 1 << 16


class ChildDied(ProtegoError):
    """A role or an endpoint ended in the middle of a run."""


class Child:
    """One process of the run."""

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._lock = trio.Lock()
        self._unread = bytearray()
        self._asked = 0  # commands so far
        self._dismissed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, verb: Verb, sent: Sequence[int] = ()) -> Snapshot:
        """Give an endpoint a command and get its counts, as of now. May be cancelled."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ChildDied(f"{self.name} takes no commands")
        async with self._lock:
            self._asked += 1
            try:
                await stdin.send_all(msgspec.json.encode(Command(verb, tuple(sent), self._asked)) + b"\n")
                while True:
                    answer = msgspec.json.decode(await self._line(stdout), type=Snapshot)
                    if answer.answers == self._asked:
                        return answer
            except trio.BrokenResourceError:
                raise self.obituary() from None

    async def _line(self, stdout: trio.abc.ReceiveStream) -> bytes:
        while (end := self._unread.find(b"\n")) < 0:
            chunk = await stdout.receive_some(_CHUNK)
            if not chunk:
                raise self.obituary()
            self._unread += chunk
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    async def watch(self) -> None:
        """Raise when the process ends, unless it was killed here."""
        await self._process.wait()
        if not self._dismissed:
            raise self.obituary()

    def obituary(self) -> ChildDied:
        code = self._process.returncode
        how = "" if code is None else f" by signal {-code}" if code < 0 else f" with exit code {code}"
        said = "\n".join(f"  {line}" for line in self.last_lines())
        return ChildDied(f"{self.name} ended{how} during the run; its last words:\n{said or '  (none)'}")

    def last_lines(self) -> list[str]:
        data = self.log.read_bytes()[-_TAIL_BYTES:]
        return data.decode(errors="replace").splitlines()[-_LAST_LINES:]

    async def kill(self) -> None:
        """SIGKILL, as whatever kills a process would."""
        self._dismissed = True
        self._process.kill()
        await self._process.wait()

    def end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()

    async def let_go(self) -> None:
        """Close its lifeline, which those hold too that it has started."""
        if self._process.stdin is not None:
            await self._process.stdin.aclose()

    async def ended(self) -> None:
        """Wait for the end, and enforce it."""
        with trio.move_on_after(_PATIENCE):
            await self._process.wait()
            return
        self._process.kill()
        await self._process.wait()


class Children:
    """All processes of the run. `nursery` is cancelled by the first that ends by itself."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self._nursery = nursery
        self._directory = directory
        self._children: list[Child] = []

    async def start(self, name: str, arguments: Sequence[str], *, answers: bool = False) -> Child:
        """Start `protego ARGUMENTS…`; `name` is for people and for the log file.

        The stdout of one that `answers` is read by `ask`; of the others it goes to the log too.
        """
        log = self._directory / f"{name}.log"
        with log.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [*program(), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if answers else stderr,
                stderr=stderr,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        self._nursery.start_soon(child.watch)
        return child

    def named(self, name: str) -> Child:
        """The child of that name. Raises KeyError."""
        return {child.name: child for child in self._children}[name]

    async def stop(self) -> None:
        """End every child; returns when all are gone. Not to be cancelled."""
        with trio.CancelScope(shield=True):
            for child in self._children:
                child.end()
                await child.let_go()
            async with trio.open_nursery() as nursery:
                for child in self._children:
                    nursery.start_soon(child.ended)
