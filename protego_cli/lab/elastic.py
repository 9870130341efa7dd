"""`protego local --elastic`: a trace through a cluster whose GPNs come and go by themselves, beside the
simulator.

1. The trace becomes packets (`replay.py`); the cluster file has a pool by the provisioner `local`, and
   [elastic].
2. The run is that of `protego local`, without migrations by an operator: the elastic controller moves,
   launches and retires. How many GPNs there are is looked at four times a second.
3. The receipt counts every packet, and sets the mean number of GPNs beside the simulator's for the same
   trace, by the same policy object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import trio
from rich.table import Table

from protego_cli.config.load import load
from protego_cli.config.model import Cluster
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.operator_messages import Events, GetEvents
from protego_cli.control.channel.pool_messages import GetPools, Pools
from protego_cli.errors import ProtegoError, UsageError
from protego_cli.lab import layout, replay
from protego_cli.lab.children import Child
from protego_cli.lab.plan import Elastic, Plan
from protego_cli.lab.receipt import MigrationTimes, Receipt, percentile
from protego_cli.lab.run import Run
from protego_cli.lab.schedule import Schedule
from protego_cli.lab.show import Show
from protego_cli.plugins.manager import load_plugins
from protego_cli.sim.engine import Setting, simulate
from protego_cli.sim.reading import read
from protego_cli.sim.trace import Trace

LOOK: Final = 0.25
WARM: Final = 3.0  # seconds of the first step before the replay is looked at: loads have to be measured


class ElasticOptions(msgspec.Struct, frozen=True):
    trace: Path | None = None
    policy: str = "protego"
    interval: float = 180.0  # of the trace's seconds
    capacity: float = 1000.0  # Mbit/s of a GPN of the trace
    duration: float | None = None  # seconds here


class ElasticReceipt(msgspec.Struct, frozen=True):
    """`protego local --elastic --json`: a contract.

    `mean_gpns` counts those that carry tunnels, as the simulator does; `mean_running` all that run.
    """

    trace: str
    policy: str
    steps: int
    mean_gpns: float
    mean_running: float
    simulated_gpns: float
    difference: float  # mean_gpns / simulated_gpns - 1
    most_gpns: int
    launched: int
    retired: int
    failed_moves: int
    packets: Receipt


class ElasticRun(Run):
    """A run whose GPNs come and go."""

    def __init__(self, cluster: Cluster, plan: Plan, show: Show, seconds: float) -> None:
        super().__init__(cluster, plan, Schedule((), seconds, 0.0), show)
        self.used: list[int] = []
        self.running: list[int] = []
        self.happened: Counter[str] = Counter()  # events, by their kinds
        self.times: list[float] = []  # of migrations, in milliseconds

    async def until_nodes_up(self) -> None:
        fixed = {node.name for node in self.cluster.nodes}
        with trio.move_on_after(self.patience):
            while True:
                status = await self._status()
                up = {node.name: node.role for node in status.nodes if node.state == "up"} if status else {}
                if fixed <= up.keys() and "gpn" in up.values():
                    self.show.say("every node is up")
                    return
                await trio.sleep(LOOK)
        raise ProtegoError(
            f"not up within {self.patience:.0f} s: the fixed nodes and a first GPN of the pool"
        )

    async def _drive(self, watchers: trio.Nursery, tenants: Child, began: float) -> None:
        self.show.say(f"a minute of the trace passes in a second; it ends after {self.timetable.ends:.0f} s")
        watchers.start_soon(self._watch_gpns, began)
        await self._pause_until(began + self.timetable.ends)

    async def _receipt(self, counted: Receipt) -> Receipt:
        await self._count_events()
        times = sorted(self.times)
        return msgspec.structs.replace(
            counted,
            migrations=len(times),
            migration_ms=MigrationTimes(*(percentile(times, percent) for percent in (50, 99, 100))),
        )

    async def _watch_gpns(self, began: float) -> None:
        await trio.sleep_until(began + WARM)
        while True:
            reply = await ask(self.cluster, GetPools())
            if isinstance(reply, Pools):
                nodes = reply.pools[0].nodes
                self.used.append(sum(1 for node in nodes if node.tunnels))
                self.running.append(len(nodes))
            await trio.sleep(LOOK)

    async def _count_events(self) -> None:
        after = 0
        while True:
            reply = await ask(self.cluster, GetEvents(after=after))
            if not isinstance(reply, Events) or not reply.events:
                return
            for event in reply.events:
                self.happened[event.kind] += 1
                if event.kind == "migration failed":
                    self.show.say(f"{event.tunnel} was not moved to {event.node}: {event.reason}")
                if event.kind == "migrated":
                    self.times.append(float(event.details["total_ms"]))
            after = reply.last


def prepare(options: ElasticOptions) -> tuple[Trace, Elastic]:
    """The trace, and what the run is told of it. Raises UsageError."""
    plugins = load_plugins()
    if options.policy not in plugins.packing_policies():
        known = ", ".join(sorted(plugins.packing_policies()))
        raise UsageError(f"--policy {options.policy}: no such packing policy; known: {known}")
    if options.duration is not None and not 1 <= options.duration <= 86_400:
        raise UsageError(f"--duration {options.duration:g}: expected 1 to 86400")
    if not options.capacity > 0:
        raise UsageError(f"--capacity {options.capacity:g}: expected more than 0 Mbit/s")
    trace = replay.cut(replay.sample() if options.trace is None else read(options.trace), options.duration)
    if len(trace.tunnels) > layout.MAX_TENANTS:
        raise UsageError(f"{trace.name} has {len(trace.tunnels)} tunnels: at most {layout.MAX_TENANTS} here")
    Setting(options.interval, options.capacity).every(trace)
    steps = replay.replay(trace, options.capacity)
    if steps.seconds <= WARM:
        raise UsageError(
            f"{trace.name}: it passes in {steps.seconds:g} s here, of which the first {WARM:g} do not count: "
            "replay more of it"
        )
    return trace, Elastic(options.policy, options.interval / replay.SPEED, replay.BANDWIDTH, steps)


async def run_elastic(options: ElasticOptions, directory: Path, show: Show) -> ElasticReceipt:
    trace, elastic = prepare(options)
    block, claim = layout.claim()
    with claim, show.running():
        plan = layout.plan(
            directory, block, tenants=len(trace.tunnels), gpns=replay.MOST_GPNS, pps=1, elastic=elastic
        )
        plan_file = layout.write(plan)
        run = ElasticRun(load(Path(plan.cluster_file)), plan, show, elastic.replay.seconds)
        receipt = await run.go(plan_file)
    packer = load_plugins().packing_policies()[options.policy]
    simulated = simulate(trace, packer, Setting(options.interval, options.capacity))
    skipped = int(WARM / elastic.replay.step)
    expected = float(simulated.gpns[skipped:].mean())
    mean = _mean(run.used)
    return ElasticReceipt(
        trace=trace.name,
        policy=options.policy,
        steps=trace.steps,
        mean_gpns=round(mean, 3),
        mean_running=round(_mean(run.running), 3),
        simulated_gpns=round(expected, 3),
        difference=round(mean / expected - 1, 4),
        most_gpns=max(run.running, default=0),
        launched=run.happened["node launched"],
        retired=run.happened["node retired"],
        failed_moves=run.happened["migration failed"],
        packets=receipt,
    )


def _mean(counts: Sequence[int]) -> float:
    return sum(counts) / len(counts) if counts else 0.0


def elastic_table(receipt: ElasticReceipt) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("trace", f"{receipt.trace}, {receipt.steps} steps, policy {receipt.policy}"),
        ("GPNs that carry tunnels, mean", f"{receipt.mean_gpns:.2f}"),
        ("by the simulator", f"{receipt.simulated_gpns:.2f} ({receipt.difference:+.1%} here)"),
        ("GPNs that run, mean and most", f"{receipt.mean_running:.2f}, {receipt.most_gpns}"),
        ("launched, retired", f"{receipt.launched}, {receipt.retired}"),
        ("moves that failed", f"{receipt.failed_moves}"),
    ):
        table.add_row(name, value)
    return table
