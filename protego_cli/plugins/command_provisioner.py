"""The provisioner `command`: the operator's own program starts and stops the nodes.

    COMMAND… launch NODE    with a JSON object on stdin: pool, node, address, cluster_file, token
    COMMAND… retire NODE    the same, without a token
    COMMAND… list           prints the nodes that there are, one a line, each perhaps with a word on how it is

Exit code 0: done, or under way. Any other: not done, and the last line of stderr says why. One that takes
longer than `timeout` seconds is killed with all that it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Final

import msgspec
import trio

from protego_cli.config.model import Node
from protego_cli.control.pools.provision import Place, ProvisionFault

TIMEOUT: Final = 60.0
DRAIN: Final = 0.5  # seconds for the last of its output
MAX_OUTPUT: Final = 1 << 20
SHOWN: Final = 300  # characters of what it said
_CHUNK: Final = 1 << 16


class CommandProvisioner:
    def __init__(self, place: Place) -> None:
        command, timeout = place.settings["command"], place.settings.get("timeout", TIMEOUT)
        self._command = list(command) if isinstance(command, tuple) else [str(command)]
        self._timeout = float(timeout) if isinstance(timeout, int | float) else TIMEOUT
        self._pool = place.pool.name
        self._cluster_file = os.fspath(place.cluster_file)

    async def run(self) -> None:
        await trio.sleep_forever()

    async def launch(self, node: Node, token: str) -> None:
        await self._call("launch", node, {"token": token})

    async def retire(self, node: Node) -> None:
        await self._call("retire", node, {})

    async def nodes(self) -> Mapping[str, str]:
        printed = await self._run(["list"], b"")
        lines = [line.split(maxsplit=1) for line in printed.decode(errors="replace").splitlines()]
        return {name: " ".join(how).strip()[:SHOWN] for name, *how in filter(None, lines)}

    async def _call(self, verb: str, node: Node, more: Mapping[str, str]) -> None:
        told = {
            "pool": self._pool,
            "node": node.name,
            "address": node.address,
            "cluster_file": self._cluster_file,
            **more,
        }
        await self._run([verb, node.name], msgspec.json.encode(told) + b"\n")

    async def _run(self, arguments: list[str], told: bytes) -> bytes:
        """What it prints. Raises ProvisionFault."""
        what = " ".join([self._command[0], *arguments])
        try:
            process = await trio.lowlevel.open_process(
                [*self._command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise ProvisionFault(f"{what}: cannot be run: {error.strerror}") from error
        printed, said = bytearray(), bytearray()
        try:
            with trio.move_on_after(self._timeout) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_feed, process, told)
                    nursery.start_soon(_read, process.stdout, printed)
                    nursery.start_soon(_read, process.stderr, said)
                    await process.wait()
                    # What it has started may hold on to its output for ever.
                    nursery.cancel_scope.deadline = trio.current_time() + DRAIN
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None or scope.cancelled_caught:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        await trio.aclose_forcefully(stream)
        if scope.cancelled_caught:
            raise ProvisionFault(f"{what}: was killed after {self._timeout:g} s")
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ProvisionFault(f"{what}: exit code {process.returncode}: {lines[-1][:SHOWN]}")
        return bytes(printed)


async def _feed(process: trio.Process, told: bytes) -> None:
    if process.stdin is None:
        return
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it does not read it
        await process.stdin.send_all(told)
    await process.stdin.aclose()


async def _read(stream: trio.abc.ReceiveStream | None, into: bytearray) -> None:
    """All that comes, of which the beginning is kept."""
    while stream is not None and (chunk := await stream.receive_some(_CHUNK)):
        into += chunk[: max(0, MAX_OUTPUT - len(into))]
