"""`protego local`: a whole cluster on this machine, under load, migrating; its receipt says what was lost.

1. Lay the cluster out on loopback addresses in a temporary directory.
2. Start every role as `protego up` and the two endpoint processes, side by side; wait until the control node
   reports every node up.
3. Let the peers dial in; wait until every tunnel is up; start the traffic.
4. Migrate by the schedule, as an operator would, over the control port.
5. Stop sending, wait two seconds, take the endpoints' last counts, and print the receipt.

Ctrl-C ends step 4 early and goes on with 5; a second one ends at once.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from protego_cli.config.load import load
from protego_cli.errors import INTERRUPTED, Exit, ProtegoError, UsageError
from protego_cli.lab import layout
from protego_cli.lab.receipt import Receipt
from protego_cli.lab.run import Interrupted, Run, drops
from protego_cli.lab.schedule import schedule
from protego_cli.lab.show import Show
from protego_cli.lab.view import Scene, receipt_table

if TYPE_CHECKING:
    from protego_cli.lab.elastic import ElasticOptions, ElasticReceipt

MAX_PPS = 20_000


class Failed(ProtegoError):
    """The run was counted, and it is not what it should be."""


class Options(msgspec.Struct, frozen=True):
    """What the user may choose; `check` says what makes no sense."""

    duration: float
    tenants: int
    gpns: int
    migrations: int
    pps: int

    def check(self) -> None:
        for name, value, low, high in (
            ("--duration", self.duration, 1, 86_400),
            ("--tenants", self.tenants, 1, layout.MAX_TENANTS),
            ("--gpns", self.gpns, 2 if self.migrations else 1, layout.MAX_GPNS),
            ("--migrations", self.migrations, 0, 1_000_000),
            ("--pps", self.pps, 1, MAX_PPS),
        ):
            if not low <= value <= high:
                why = " (a migration needs two)" if name == "--gpns" and low == 2 else ""
                raise UsageError(f"{name} {value}: expected {low} to {high}{why}")


def run_local(
    *, json: bool, headless: bool, duration: float, tenants: int, gpns: int, migrations: int, pps: int
) -> int:
    """Carry out a run; returns the exit code. Raises ProtegoError when it failed."""
    options = Options(duration=duration, tenants=tenants, gpns=gpns, migrations=migrations, pps=pps)
    options.check()
    return _to_its_end(_local, options, json, headless)


def run_local_elastic(
    *,
    json: bool,
    headless: bool,
    trace: Path | None,
    policy: str,
    interval: float,
    capacity: float,
    duration: float | None,
) -> int:
    """Replay a trace; returns the exit code. Raises ProtegoError when it failed."""
    from protego_cli.lab.elastic import ElasticOptions

    options = ElasticOptions(trace, policy, interval, capacity, duration)
    return _to_its_end(_elastic, options, json, headless)


def _to_its_end(run: Callable[..., Awaitable[int]], *arguments: object) -> int:
    try:
        return trio.run(run, *arguments)
    except Interrupted:
        return INTERRUPTED


async def _elastic(options: ElasticOptions, json: bool, headless: bool) -> int:
    from protego_cli.lab.elastic import elastic_table, prepare, run_elastic

    trace, _ = prepare(options)
    scene = Scene(tuple(f"t{i}/hq" for i in range(1, len(trace.tunnels) + 1)), 0)
    show = Show(scene, json=json, headless=headless)
    with _scratch(show) as directory:
        failure: ProtegoError | None = None
        try:
            receipt = await run_elastic(options, directory, show)
        except* ProtegoError as group:
            failure = _first(group)
        if failure is not None:
            raise failure
        show.console.print(receipt_table(receipt.packets, plain=headless))
        show.console.print(elastic_table(receipt))
        if json:
            _print_json(receipt)
        _judge(receipt.packets, scene, directory)
    return Exit.OK


async def _local(options: Options, json: bool, headless: bool) -> int:
    scene = Scene(tuple(f"t{i}/hq" for i in range(1, options.tenants + 1)), options.migrations)
    show = Show(scene, json=json, headless=headless)
    with _scratch(show) as directory:
        receipt = await _run(options, directory, show)
        show.console.print(receipt_table(receipt, plain=headless))
        if json:
            _print_json(receipt)
        _judge(receipt, scene, directory)
    return Exit.OK


def _print_json(receipt: Receipt | ElasticReceipt) -> None:
    sys.stdout.write(msgspec.json.encode(receipt).decode() + "\n")
    sys.stdout.flush()


@contextmanager
def _scratch(show: Show) -> Iterator[Path]:
    """A directory for the run. It goes with the run, unless the run failed: then its logs say why."""
    directory = Path(tempfile.mkdtemp(prefix="protego-local-"))
    try:
        yield directory
    finally:
        fault = sys.exception()
        if isinstance(fault, Exception) and not isinstance(fault, Interrupted):  # nor for want of a reader
            show.say(f"logs and cluster file are kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


async def _run(options: Options, directory: Path, show: Show) -> Receipt:
    block, claim = layout.claim()
    with claim, show.running():
        plan = layout.plan(directory, block, tenants=options.tenants, gpns=options.gpns, pps=options.pps)
        plan_file = layout.write(plan)
        tunnels = [site.tunnel for site in plan.sites]
        timetable = schedule(
            tunnels, migrations=options.migrations, duration=options.duration, pps=options.pps
        )
        run = Run(load(Path(plan.cluster_file)), plan, timetable, show)
        failure: ProtegoError
        try:
            return await run.go(plan_file)
        except* ProtegoError as group:
            failure = _first(group)
        raise failure


def _first(group: BaseExceptionGroup[ProtegoError]) -> ProtegoError:
    """What happened first, out of what the nurseries bundled."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ProtegoError):
        return error
    return ProtegoError(str(error))


def _judge(receipt: Receipt, scene: Scene, directory: Path) -> None:
    """Raises Failed for a run that is not what it should be, and leaves all that is known beside its logs."""
    if faults := receipt.faults():
        said = "\n".join((f"the run failed: {'; '.join(faults)}", *_diagnosis(scene)))
        (directory / "failure.txt").write_text(said + "\n")
        (directory / "receipt.json").write_bytes(msgspec.json.encode(receipt))
        raise Failed(said)


def _diagnosis(scene: Scene) -> list[str]:
    """Which packets are missing, and where packets went by each process's own count."""
    found = drops(scene.status)
    for name, here, there in (
        ("peers", scene.peers, scene.tenants),
        ("tenants", scene.tenants, scene.peers),
    ):
        if here is None or there is None:
            continue
        found += [f"{name}: {reason}={count}" for reason, count in here.drops.items() if count]
        for tunnel, got, sent in zip(scene.tunnels, here.sites, there.sites, strict=True):
            numbers = ", ".join(f"{first:,} to {last:,}" for first, last in got.gaps)
            if numbers:
                found.append(f"{name}: {tunnel} never got {numbers} of {sent.sent:,}")
    return [f"  {line}" for line in found]
