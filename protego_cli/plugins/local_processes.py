"""The provisioner `local`: GPN processes on the GMN's own machine, which outlive the GMN.

1. A node is `protego up --name NODE`, in a session of its own, with a file that says which process it is. Its
   token goes through the environment, where no other user sees it.
2. Each is watched by a pidfd, whoever started it: a GMN that starts anew finds the nodes of its earlier life
   by their files, and they have never stopped forwarding.
3. One that ends is started again, later and later as long as it does not live for `SETTLED` seconds.
4. To retire one: SIGTERM, and SIGKILL after `PATIENCE` seconds.

With `lifeline = true` they end when the GMN's stdin closes, as `protego up --lifeline` does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import trio

from protego_cli.config.model import Node
from protego_cli.control.pools.joining import TOKEN_VARIABLE
from protego_cli.control.pools.processes import ProcessId, program
from protego_cli.control.pools.provision import Place, ProvisionFault

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.2
LAST_PAUSE: Final = 10.0
SETTLED: Final = 10.0
PATIENCE: Final = 5.0
MAX_LOG: Final = 16 << 20  # bytes of a node's log, beyond which its next life begins a new one


class _Node:
    """One node that is to run."""

    def __init__(self, name: str, token: str) -> None:
        self.name = name
        self.token = token
        self.process: ProcessId | None = None
        self.how = "starting"
        self.scope = trio.CancelScope()
        self.ended = trio.Event()


class LocalProcesses:
    def __init__(self, place: Place) -> None:
        self._directory = place.directory
        self._lifeline = bool(place.settings.get("lifeline", False))
        more = place.settings.get("arguments", ())
        self._arguments = ["-c", os.fspath(place.cluster_file), *(more if isinstance(more, tuple) else ())]
        self._nodes: dict[str, _Node] = {}
        self._tasks: trio.Nursery | None = None
        self._waiting: list[_Node] = []
        for name in self._filed():
            process = self._read(name)
            if process is not None and process.lives:
                self._nodes[name] = node = _Node(name, "")
                node.process, node.how = process, f"pid {process.pid}"
                self._waiting.append(node)
            else:
                self._file(name).unlink(missing_ok=True)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            for node in self._waiting:
                nursery.start_soon(self._keep, node)
            await trio.sleep_forever()

    async def launch(self, node: Node, token: str) -> None:
        if node.name in self._nodes:
            return
        if self._tasks is None:
            raise ProvisionFault("the provisioner is not running yet")
        kept = _Node(node.name, token)
        self._start(kept)
        self._nodes[node.name] = kept
        self._tasks.start_soon(self._keep, kept)

    async def retire(self, node: Node) -> None:
        kept = self._nodes.get(node.name)
        if kept is None:
            return
        kept.scope.cancel()
        await kept.ended.wait()

    async def nodes(self) -> Mapping[str, str]:
        return {name: node.how for name, node in self._nodes.items()}

    # ---- one node

    async def _keep(self, node: _Node) -> None:
        """Have it run until its scope is cancelled; then end it."""
        pause = FIRST_PAUSE
        try:
            with node.scope:
                while True:
                    began = trio.current_time()
                    await self._end_of(node)
                    if trio.current_time() - began >= SETTLED:
                        pause = FIRST_PAUSE
                    node.process, node.how = None, "ended; starts again"
                    log.error("pool node ended node=%s restart_in=%.1f", node.name, pause)
                    await trio.sleep(pause)
                    pause = min(2 * pause, LAST_PAUSE)
                    try:
                        self._start(node)
                    except ProvisionFault as fault:
                        node.how = str(fault)
        finally:
            if node.scope.cancel_called:
                with trio.CancelScope(shield=True):
                    await self._end(node)
                    self._file(node.name).unlink(missing_ok=True)
                    del self._nodes[node.name]
            node.ended.set()

    def _start(self, node: _Node) -> None:
        command = [*program(), "up", "--name", node.name, "--log-format", "json", *self._arguments]
        environment = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
        if node.token:
            environment[TOKEN_VARIABLE] = node.token
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._log(node.name).open("ab") as log_file, Path(os.devnull).open("rb") as nothing:
                stdin = [] if self._lifeline else [(os.POSIX_SPAWN_DUP2, nothing.fileno(), 0)]
                pid = os.posix_spawn(
                    command[0],
                    [*command, *(["--lifeline"] if self._lifeline else [])],
                    environment,
                    file_actions=[*stdin, *((os.POSIX_SPAWN_DUP2, log_file.fileno(), to) for to in (1, 2))],
                    setsid=True,
                )
        except OSError as error:
            raise ProvisionFault(f"{node.name} cannot be started: {error.strerror}") from error
        node.process = ProcessId.of(pid)
        node.how = f"pid {pid}"
        if node.process is not None:
            self._file(node.name).write_bytes(msgspec.json.encode(node.process))
        log.info("pool node started node=%s pid=%d", node.name, pid)

    async def _end_of(self, node: _Node) -> None:
        """Return when its process has ended, and leave no zombie."""
        if node.process is None:
            return
        descriptor = node.process.open()
        if descriptor is not None:
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        with contextlib.suppress(ChildProcessError):  # an earlier life of this GMN has started it
            os.waitpid(node.process.pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait

    async def _end(self, node: _Node) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if node.process is None or not node.process.lives:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.process.pid, number)
            with trio.move_on_after(PATIENCE):
                await self._end_of(node)
        await self._end_of(node)

    # ---- its files

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _log(self, name: str) -> Path:
        path = self._directory / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > MAX_LOG:
                path.replace(path.with_suffix(".log.1"))
        return path

    def _filed(self) -> list[str]:
        return [path.stem for path in self._directory.glob("*.json")]

    def _read(self, name: str) -> ProcessId | None:
        try:
            return msgspec.json.decode(self._file(name).read_bytes(), type=ProcessId)
        except (OSError, msgspec.DecodeError):
            return None
