"""`python -m benchmarks.migration`: throughput through migrations, and what a second GPN costs.

A cluster as that of `protego local`, every role a process, all of it on loopback; both ends are `ends.py`.

1. One tunnel carries a steady load, well below what the machine can, in trains so short that 10 ms have 25 of
   them, both ways, and migrates back and forth. What arrives at either end is counted by the time at which it
   arrived, in bins of 10 ms; so is what was sent. A bin's share is what arrived of the median, or of what was
   sent where that was less: then the machine had no time for the sender. The bins that a migration touches,
   from 10 ms before it to 100 ms after, are held beside the others of the same run.
2. Several tunnels carry a load in longer trains, in turns with all of them on one GPN and with half of them
   on a second: CPU time of all of the gateway's processes per packet, the one beside the other.

All that carries packets has real-time priority where it may (root), as if it had a core of its own; the GMN
and all else have what is left.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import trio
from rich.console import Console
from rich.table import Table

from benchmarks.bench import cpu_seconds, machine
from benchmarks.ends import DIAL, IDLE, SEND, Ends, Log
from protego_cli.config.load import load
from protego_cli.control.channel.client import Ask, converse
from protego_cli.control.channel.operator_messages import GetStatus, Migrate, Migrated, Status
from protego_cli.lab import layout
from protego_cli.lab.children import Children
from protego_cli.lab.peers import peers_policy
from protego_cli.lab.run import Run
from protego_cli.lab.schedule import Schedule
from protego_cli.lab.show import Show
from protego_cli.lab.view import Scene

DIRECTIONS: Final = ("peer to tenant", "tenant to peer")
GPNS: Final = ("gpn-1", "gpn-2")
TUNNELS: Final = 8
BIN: Final = 10_000_000  # nanoseconds
BEFORE, AFTER = BIN, 10 * BIN
TARGET_BIN, TARGET_CPU = 0.9, 1.05
SETTLE: Final = 0.2  # seconds
PATIENCE: Final = 20.0


class Load(NamedTuple):
    train: int  # packets
    interval: float  # seconds, in each direction
    tunnels: int


STEADY: Final = Load(12, 0.0004, 1)  # 340 Mbit/s each way
HEAVY: Final = Load(40, 0.0004, TUNNELS)  # 1.1 Gbit/s each way


class Effort(NamedTuple):
    migrations: int = 20
    pause: float = 0.25  # seconds between migrations
    rounds: int = 10  # of one GPN and of two
    stretch: float = 0.4  # seconds of each


QUICK: Final = Effort(2, 0.1, 1, 0.1)


class Span(NamedTuple):
    """A part of the run, in nanoseconds since 1970."""

    begin: int
    end: int


class Outcome(NamedTuple):
    """One run, before it is looked at."""

    steady: Span
    migrations: list[Span]
    one: list[float]  # CPU seconds per packet, stretch by stretch
    two: list[float]


class Through(NamedTuple):
    """Throughput of one direction in bins, as shares of the median."""

    direction: str
    sent: list[float]
    came: list[float]
    touched: list[bool]  # by a migration
    lost: int

    def shares(self, touched: bool) -> list[float]:
        """Of what could have come, what came, in the bins that a migration touches, or in the others."""
        rows = zip(self.sent, self.came, self.touched, strict=True)
        return [came / min(sent, 1.0) if sent else 1.0 for sent, came, mark in rows if mark is touched]

    @property
    def met(self) -> bool:
        return not self.lost and min(self.shares(touched=True)) >= TARGET_BIN


class Measured(NamedTuple):
    through: list[Through]
    migrations: list[tuple[float, float]]  # begin and end, in seconds of the steady part
    one: float  # µs of CPU per packet
    two: float
    ratio: float

    @property
    def met(self) -> bool:
        return self.ratio <= TARGET_CPU and all(through.met for through in self.through)


class Gateway(Run):
    """The cluster of a run, its tunnels between the ends."""

    ends: Ends
    effort: Effort
    pids: dict[str, int]

    async def measure(self) -> Outcome:
        async with trio.open_nursery() as nursery:
            children = Children(nursery, Path(self.plan.cluster_file).parent)
            try:
                await self.start_nodes(children)
                self.pids = {node.name: children.named(node.name).pid for node in self.cluster.nodes}
                await self.until_nodes_up()
                await self._until_tunnels_up()
                return await self._measure()
            finally:
                nursery.cancel_scope.cancel()
                await children.stop()

    async def _until_tunnels_up(self) -> None:
        self.ends.mode.value = DIAL
        with trio.fail_after(PATIENCE):
            while True:
                status = await self._status()
                if status and all(tunnel.state == "up" for tunnel in status.tunnels):
                    return
                await trio.sleep(SETTLE)

    async def _measure(self) -> Outcome:
        found: list[Outcome] = []

        async def talk(ask: Ask) -> None:
            await self._move(ask, self.tunnels, GPNS[0])
            self._prefer()
            steady, migrations = await self._back_and_forth(ask)
            one, two = await self._compare(ask)
            found.append(Outcome(steady, migrations, one, two))

        await converse(self.cluster, talk)
        return found[0]

    async def _back_and_forth(self, ask: Ask) -> tuple[Span, list[Span]]:
        """The steady load, and one tunnel back and forth under it."""
        self._load(STEADY)
        await trio.sleep(2 * SETTLE)
        begin, spans = time.time_ns(), []
        await trio.sleep(2 * self.effort.pause)
        for turn in range(self.effort.migrations):
            began = time.time_ns()
            await self._move(ask, self.tunnels[:1], GPNS[1 - turn % 2])
            spans.append(Span(began, time.time_ns()))
            await trio.sleep(self.effort.pause)
        steady = Span(begin, time.time_ns())
        await self._idle()
        return steady, spans

    async def _compare(self, ask: Ask) -> tuple[list[float], list[float]]:
        costs: tuple[list[float], list[float]] = [], []
        half = self.tunnels[: len(self.tunnels) // 2]
        for _ in range(self.effort.rounds):
            for gpn, found in zip(GPNS, costs, strict=True):
                await self._move(ask, half, gpn)
                self._load(HEAVY)
                await trio.sleep(SETTLE)
                before, sent = self._cpu(), self.ends.sent.value
                await trio.sleep(self.effort.stretch)
                after, until = self._cpu(), self.ends.sent.value
                found.append((after - before) / (until - sent))
                await self._idle()
        return costs

    async def _move(self, ask: Ask, tunnels: Sequence[str], gpn: str) -> None:
        """Those that are not there."""
        status = await ask(GetStatus())
        if not isinstance(status, Status):
            raise TypeError("the GMN answered GetStatus by something else")
        for tunnel in status.tunnels:
            if tunnel.id in tunnels and tunnel.gpn != gpn:
                reply = await ask(Migrate(tunnel=tunnel.id, to=gpn))
                if not isinstance(reply, Migrated):
                    raise TypeError(f"{tunnel.id} did not migrate: {reply}")

    def _load(self, load: Load) -> None:
        ends = self.ends
        ends.train.value, ends.interval.value, ends.tunnels.value = load
        ends.mode.value = SEND

    async def _idle(self) -> None:
        self.ends.mode.value = IDLE
        await trio.sleep(SETTLE)

    def _cpu(self) -> float:
        return sum(map(cpu_seconds, self.pids.values()))

    def _prefer(self) -> None:
        """All that carries packets before all that does not."""
        with suppress(PermissionError):
            for pid in (*self.ends.pids, *(pid for name, pid in self.pids.items() if name != "gmn-1")):
                os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))


def run(effort: Effort) -> Measured:
    """Everything up, measured, and gone."""
    block, claim = layout.claim()
    with ExitStack() as stack:
        stack.enter_context(claim)
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="protego-migration-")))
        plan = layout.plan(directory, block, tenants=TUNNELS, gpns=len(GPNS), pps=1)
        layout.write(plan)
        cluster = load(Path(plan.cluster_file))
        policies = {config.id: peers_policy(config) for config in cluster.tunnels()}
        ends = Ends(stack, plan, [policies[site.tunnel] for site in plan.sites])

        async def measure() -> Outcome:
            show = Show(Scene((), 0), json=True, headless=True)
            gateway = Gateway(cluster, plan, Schedule((), 0.0, 0.0), show)
            gateway.ends, gateway.effort = ends, effort
            return await gateway.measure()

        outcome = trio.run(measure)
        return evaluate(outcome, **ends.logs())


def evaluate(outcome: Outcome, sent: Sequence[Log], came: Sequence[Log]) -> Measured:
    begin, end = outcome.steady
    count = (end - begin) // BIN
    touched = [False] * count
    for began, ended in outcome.migrations:
        first, last = (began - BEFORE - begin) // BIN, (ended + AFTER - begin) // BIN
        touched[first : last + 1] = [True] * len(touched[first : last + 1])
    through = []
    for name, left, arrived in zip(DIRECTIONS, sent, came, strict=True):
        bins = arrived.bins(begin, BIN, count)
        median = statistics.median(bins)
        through.append(
            Through(
                direction=name,
                sent=[packets / median for packets in left.bins(begin, BIN, count)],
                came=[packets / median for packets in bins],
                touched=touched,
                lost=left.total() - arrived.total(),
            )
        )
    return Measured(
        through=through,
        migrations=[((began - begin) / 1e9, (ended - begin) / 1e9) for began, ended in outcome.migrations],
        one=statistics.median(outcome.one) * 1e6,
        two=statistics.median(outcome.two) * 1e6,
        ratio=statistics.median(two / one for one, two in zip(outcome.one, outcome.two, strict=True)),
    )


def table(measured: Measured) -> Table:
    took = statistics.median(ended - began for began, ended in measured.migrations)
    count = len(measured.migrations)
    made = Table(title=f"Throughput in bins of 10 ms, {count} migrations of {took * 1e3:.0f} ms")
    for heading in ("direction", "bins", "worst", "below 90 %", "lost"):
        made.add_column(heading, justify="left" if heading == "direction" else "right")
    for through in measured.through:
        colour = "green" if through.met else "red"
        for touched, name in ((True, "at migrations"), (False, "between")):
            shares = through.shares(touched)
            below = sum(share < TARGET_BIN for share in shares)
            made.add_row(
                f"{through.direction}, {name}",
                str(len(shares)),
                f"[{colour}]{min(shares):.0%}[/]" if touched else f"{min(shares):.0%}",
                str(below),
                str(through.lost) if touched else "",
            )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every target was met, or nothing but whether it runs was asked."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.migration", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--migrations", type=int, default=Effort().migrations)
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    measured = run(QUICK if options.quick else Effort(options.migrations))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(measured))
    colour = "green" if measured.ratio <= TARGET_CPU else "red"
    console.print(
        f"CPU per packet: {measured.one:.2f} µs with one GPN, {measured.two:.2f} with two; "
        f"[{colour}]{measured.ratio:.3f}[/] times (target ≤ {TARGET_CPU})"
    )
    if options.json:
        through = [row._asdict() for row in measured.through]
        document = {**machine(), "bin": BIN / 1e9, **measured._asdict(), "through": through}
        options.json.write_text(json.dumps(document) + "\n")
    return 0 if options.quick or measured.met else 1


if __name__ == "__main__":
    sys.exit(main())
