"""What the GMN spends: CPU seconds of its whole process per handshake, rekey and migration, and by the clock.

A real cluster, as `protego local` starts it: every role a process, over real sockets and mTLS, the peers in a
process of their own. CPU time is the kernel's count for the GMN's process, to the nanosecond.

1. All peers dial at once; the GMN's CPU time until every tunnel is up, by their number.
2. All peers rekey their CHILD_SA at once, likewise.
3. Every CHILD_SA is rekeyed by the gateway, then every IKE_SA, then every tunnel migrates, `AT_ONCE` side by
   side, asked for by an operator over one connection; by their number, likewise, and by the clock.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import trio

from benchmarks.bench import cpu_seconds
from protego_cli.config.load import load
from protego_cli.control.channel.client import Ask, converse
from protego_cli.control.channel.message import Request
from protego_cli.control.channel.operator_messages import GetStatus, Migrate, RekeyTunnel, Status
from protego_cli.lab import layout
from protego_cli.lab.children import Child, Children
from protego_cli.lab.run import Run
from protego_cli.lab.schedule import next_gpn, schedule
from protego_cli.lab.show import Show
from protego_cli.lab.view import Scene

TUNNELS = 200
GPNS = 3
AT_ONCE = 8
LOOK = 0.25  # seconds between looks whether all has been done


class Figure(NamedTuple):
    what: str
    number: int
    cpu: float  # seconds of the GMN's process
    clock: float  # seconds that passed

    @property
    def per_cpu_second(self) -> float:
        return self.number / self.cpu


@asynccontextmanager
async def cluster(tunnels: int, gpns: int) -> AsyncIterator[tuple[Run, Child, Child]]:
    """A cluster whose nodes are all up and whose tunnels are not; its run, its GMN, its peers."""
    block, claim = layout.claim()
    with claim, TemporaryDirectory(prefix="protego-bench-") as directory:
        plan = layout.plan(Path(directory), block, tenants=tunnels, gpns=gpns, pps=1)
        plan_file = layout.write(plan)
        timetable = schedule([site.tunnel for site in plan.sites], migrations=0, duration=1, pps=1)
        show = Show(Scene((), 0), json=True, headless=True)
        run = Run(load(Path(plan.cluster_file)), plan, timetable, show)
        async with trio.open_nursery() as nursery:
            children = Children(nursery, plan_file.parent)
            try:
                peers, _ = await run.start(children, plan_file)
                await run.until_nodes_up()
                yield run, children.named("gmn-1"), peers
            finally:
                nursery.cancel_scope.cancel()
                await children.stop()


async def measure(tunnels: int = TUNNELS) -> list[Figure]:
    async with cluster(tunnels, GPNS) as (run, gmn, peers):
        figures = []
        spent, began = cpu_seconds(gmn.pid), time.monotonic()
        await run.connect(peers)
        figures.append(Figure("handshakes", tunnels, cpu_seconds(gmn.pid) - spent, time.monotonic() - began))

        async def talk(ask: Ask) -> None:
            status = await ask(GetStatus())
            if not isinstance(status, Status):
                raise TypeError("the GMN answered GetStatus by something else")
            before = {tunnel.spi_in for tunnel in status.tunnels}
            spent, began = cpu_seconds(gmn.pid), time.monotonic()
            await peers.ask("rekey")
            while True:
                await trio.sleep(LOOK)
                status = await ask(GetStatus())
                if isinstance(status, Status) and not before & {tunnel.spi_in for tunnel in status.tunnels}:
                    break
            figures.append(
                Figure(
                    "child rekeys of the peers",
                    tunnels,
                    cpu_seconds(gmn.pid) - spent,
                    time.monotonic() - began,
                )
            )
            names = [tunnel.id for tunnel in status.tunnels]
            away = {tunnel.id: next_gpn(tunnel.gpn or "", run.plan.gpns) for tunnel in status.tunnels}
            for what, requests in (
                ("child rekeys of ours", [RekeyTunnel(name) for name in names]),
                ("IKE_SA rekeys", [RekeyTunnel(name, ike=True) for name in names]),
                ("migrations", [Migrate(tunnel=name, to=to) for name, to in away.items()]),
            ):
                spent, began = cpu_seconds(gmn.pid), time.monotonic()
                await _all(ask, requests)
                figures.append(Figure(what, tunnels, cpu_seconds(gmn.pid) - spent, time.monotonic() - began))

        await converse(run.cluster, talk)
        return figures


async def _all(ask: Ask, requests: Sequence[Request]) -> None:
    """Over one connection, `AT_ONCE` side by side."""
    limit = trio.CapacityLimiter(AT_ONCE)

    async def one(request: Request) -> None:
        async with limit:
            await ask(request)

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(one, request)


if __name__ == "__main__":
    for figure in trio.run(measure):
        print(
            f"{figure.number} {figure.what}: "
            f"{figure.cpu / figure.number * 1e3:.2f} ms of the GMN's CPU each, "
            f"{figure.per_cpu_second:.0f} per CPU second; {figure.number / figure.clock:.0f} by the clock"
        )
