"""`python -m benchmarks.drain`: how long it takes to empty a GPN under traffic, and what that loses.

1. A cluster as that of `protego local`, with two GPNs: every role, the peers and the tenants are processes of
   their own on loopback addresses. gpn-2 is drained until all tunnels have come up: then gpn-1 has all of
   them.
2. `protego status --json`, timed from outside: the start of the command and its output included.
3. Numbered packets both ways through every tunnel, and amid them `protego drain gpn-1 --json`.
4. Two seconds after the last packet was sent, what has not arrived is lost.

Fails when something was lost, when a tunnel was left, and when a target is missed.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import trio
from rich.console import Console
from rich.table import Table

from protego_cli.config.load import load
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.pool_messages import Drain, GetJob, JobStatus, Undrain
from protego_cli.control.pools.processes import program
from protego_cli.lab import layout
from protego_cli.lab.children import Child
from protego_cli.lab.receipt import Receipt
from protego_cli.lab.run import Run, drops
from protego_cli.lab.schedule import Schedule
from protego_cli.lab.show import Show
from protego_cli.lab.view import Scene

STATUS_TARGET = 1.0  # seconds, with 1,000 tunnels
DRAIN_TARGET = 15.0  # seconds, with 300 tunnels
BEFORE, AFTER = 1.0, 0.5  # seconds of traffic around the drain


class Fault(msgspec.Struct):
    tunnel: str
    reason: str


class Drained(msgspec.Struct):
    """What `protego drain --json` promises."""

    node: str
    moved: int
    failed: list[Fault]
    seconds: float


class DrainRun(Run):
    """Brings all tunnels up on gpn-1 and empties it amid their traffic."""

    patience = 180.0
    drained: Drained
    up_seconds = 0.0
    status_seconds = status_cpu = 0.0
    drain_seconds = 0.0  # of the command

    async def connect(self, peers: Child) -> None:
        began = await ask(self.cluster, Drain("gpn-2"))
        if isinstance(began, JobStatus):
            await ask(self.cluster, GetJob(began.id, began.revision, 5.0))
        start = trio.current_time()
        await super().connect(peers)
        self.up_seconds = trio.current_time() - start
        await ask(self.cluster, Undrain("gpn-2"))
        before = _cpu_of_commands()
        self.status_seconds, _ = await self._command("status", "--json")
        self.status_cpu = _cpu_of_commands() - before

    async def _migrate_all(self, tenants: Child, began: float) -> None:
        await trio.sleep_until(began + BEFORE)
        self.drain_seconds, said = await self._command("drain", "gpn-1", "--json")
        self.drained = msgspec.json.decode(said, type=Drained)
        self._last_move = trio.current_time()

    async def _command(self, *words: str) -> tuple[float, bytes]:
        began = time.monotonic()
        done = await trio.run_process(
            [*program(), *words, "-c", str(self.cluster.file)], capture_stdout=True, check=False
        )
        return time.monotonic() - began, done.stdout


def _cpu_of_commands() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def drain_run(directory: Path, *, tunnels: int, pps: int) -> tuple[DrainRun, Receipt]:
    """Carry it out in a directory; nothing of it is left running."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket for each peer and tenant
    return trio.run(_run, directory, tunnels, pps)


async def _run(directory: Path, tunnels: int, pps: int) -> tuple[DrainRun, Receipt]:
    block, claim = layout.claim()
    with claim:
        plan = layout.plan(directory, block, tenants=tunnels, gpns=2, pps=pps)
        plan_file = layout.write(plan)
        names = tuple(site.tunnel for site in plan.sites)
        show = Show(Scene(names, 0), json=True, headless=True)
        run = DrainRun(load(Path(plan.cluster_file)), plan, Schedule((), 0.0, AFTER), show)
        receipt = await run.go(plan_file)
        for line in drops(run.show.scene.status):
            show.say(line)
        return run, receipt


def main() -> int:
    """0 when nothing was lost and every target was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drain")
    parser.add_argument("--tunnels", type=int, default=300)
    parser.add_argument("--pps", type=int, default=5, help="packets per second, tunnel and direction")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="protego-drain-"))
    try:
        run, receipt = drain_run(directory, tunnels=options.tunnels, pps=options.pps)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    table = Table(title=f"{options.tunnels} tunnels, {receipt.pps} packets per second, tunnel and direction")
    table.add_column("what")
    table.add_column("", justify="right")
    moved = run.drained.moved
    table.add_row("all tunnels up", f"{run.up_seconds:.1f} s")
    table.add_row("protego status --json", f"{run.status_seconds:.2f} s, of CPU {run.status_cpu:.2f} s")
    table.add_row("protego drain gpn-1", f"{run.drain_seconds:.2f} s")
    table.add_row("moved, left", f"{moved}, {len(run.drained.failed)}")
    table.add_row("sent, lost", f"{receipt.sent:,}, {receipt.lost:,}")
    Console().print(table)
    good = moved == options.tunnels and not run.drained.failed and not receipt.faults()
    fast = run.status_seconds < STATUS_TARGET and (options.tunnels > 300 or run.drain_seconds < DRAIN_TARGET)
    return 0 if good and fast else 1


if __name__ == "__main__":
    sys.exit(main())
