"""GPNs on many cores: one process for each, pinned, each a GPN of its own; a supervisor keeps them running.

1. `here`: the GPNs of the cluster file whose address this machine has, as many as it has cores to give.
2. Each is started as `protego up --name NODE`, pinned to a core of its own, with the supervisor's stderr.
3. One that ends, or cannot be started, is started again, later and later as long as it does not live for
   `SETTLED` seconds. The others are not touched: they share nothing with it. One whose core was taken away
   meanwhile runs where the kernel lets it.
4. When the supervisor is told to end, it ends all, and waits. Each also holds the reading end of a pipe as
   stdin and ends when that closes, so none outlives a supervisor that was killed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import Final, NamedTuple

import trio

from protego_cli.config.model import Cluster, Node
from protego_cli.control.pools.processes import program
from protego_cli.errors import EnvironmentFault, NotFound, UsageError

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 5.0
SETTLED: Final = 10.0  # seconds: one that lived so long did not fail at its start
PATIENCE: Final = 2.0  # seconds to end by itself


class Instance(NamedTuple):
    node: Node
    core: int


def here(cluster: Cluster, group: str | None, count: int | None) -> list[Instance]:
    """The GPNs to run on this machine, each with its core; `count` None: as many as there are cores.

    `group` narrows them to the instances of one entry of the file. Raises NotFound, UsageError or
    EnvironmentFault.
    """
    gpns = [node for node in cluster.nodes_of("gpn") if group is None or group in (node.group, node.name)]
    if not gpns:
        what = "GPN" if group is None else f"GPN {group!r}"
        raise NotFound(f"{cluster.file} has no {what}")
    local = [node for node in gpns if _has(node.address)]
    if not local:
        addresses = ", ".join(node.address for node in gpns)
        raise EnvironmentFault(
            f"no GPN of {cluster.file} is on this machine: it has none of the addresses {addresses}; "
            f"add one with  ip addr add {gpns[0].address}/32 dev lo"
        )
    cores = sorted(os.sched_getaffinity(0))
    if count is None:
        if len(local) < len(cores):
            log.info("cores are idle for want of GPNs cores=%d gpns=%d", len(cores), len(local))
    elif count > len(local):
        raise UsageError(
            f"--instances {count}: this machine has the addresses of {len(local)} GPNs of {cluster.file}; "
            "add GPNs to the file (`instances = N` in a [nodes.NAME] makes several) and their addresses here"
        )
    chosen = local[: len(cores) if count is None else count]
    return [Instance(node, cores[place % len(cores)]) for place, node in enumerate(chosen)]


def _has(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


async def supervise(instances: Sequence[Instance], arguments: Sequence[str]) -> None:
    """Keep all running until cancelled; `arguments` follow `protego up --name NODE`."""
    async with trio.open_nursery() as nursery:
        for instance in instances:
            nursery.start_soon(_keep, instance, arguments)


async def _keep(instance: Instance, arguments: Sequence[str]) -> None:
    name, pause = instance.node.name, FIRST_PAUSE
    while True:
        began = trio.current_time()
        try:
            how = _ending(await _run(instance, arguments))
        except OSError as error:
            how = f"it could not be started: {error}"
        if trio.current_time() - began >= SETTLED:
            pause = FIRST_PAUSE
        log.error("instance ended node=%s reason=%s restart_in=%.1f", name, how, pause)
        await trio.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


async def _run(instance: Instance, arguments: Sequence[str]) -> int:
    """One life of an instance; how it ended."""
    process = await trio.lowlevel.open_process(
        [*program(), "up", "--name", instance.node.name, "--lifeline", *arguments], stdin=subprocess.PIPE
    )
    try:
        _pin(process.pid, instance)
        log.info("instance started node=%s pid=%d core=%d", instance.node.name, process.pid, instance.core)
        return await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


def _pin(pid: int, instance: Instance) -> None:
    try:
        os.sched_setaffinity(pid, {instance.core})
    except OSError as error:
        log.warning(
            "instance not pinned node=%s core=%d reason=%s", instance.node.name, instance.core, error.strerror
        )


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {names.get(-code, -code)}"


async def _end(process: trio.Process) -> None:
    if process.stdin is not None:
        await process.stdin.aclose()
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(PATIENCE):
            await process.wait()
            return
        process.kill()
        await process.wait()
