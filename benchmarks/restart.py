"""What a restart of the GMN costs: `python -m benchmarks.restart [--tunnels N]`.

A real cluster, as in `benchmarks.control`. The GMN is killed (SIGKILL) with every tunnel up, and started:

1. How long until IKE is answered: a new peer asks every 20 ms, through the GIN, from the moment of the start.
2. How long until every node is back and every tunnel up, as an operator sees it.
3. What the GMN's process has resident before its first tunnel, with all, and after the restart.

And what a commit of the journal costs beside a bare fsync of the bytes that it appends, in one process.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from benchmarks.control import cluster
from protego_cli.config.model import Cluster
from protego_cli.control.channel.client import ask
from protego_cli.control.channel.operator_messages import GetStatus, Status
from protego_cli.control.pools.processes import program
from protego_cli.control.state.sqlite import SqliteStore
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.errors import Unreachable
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import Path as IkePath
from protego_cli.roles.policies import policy_of

TUNNELS = 1000
GPNS = 2
COMMITS = 400
_MARKER = bytes(4)  # before IKE on port 4500 (RFC 3948)


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def first_message(cluster: Cluster) -> bytes:
    """An IKE_SA_INIT request that the gateway answers."""
    tunnel = cluster.tunnels()[0]
    registry = Registry(("builtin", algorithm) for algorithm in ALGORITHMS)
    policy = policy_of(tunnel, b"of no use before IKE_AUTH")
    engine = Engine([policy], registry, cluster.ike, os.urandom, lambda: 0x1000, 1, Counters())
    engine.initiate(tunnel.id, IkePath("192.0.2.1", 4500, tunnel.vip, 4500), 0x1000, 0.0)
    return _MARKER + engine.datagrams_to_send()[0].data


async def until_answered(cluster: Cluster) -> None:
    message, natt = first_message(cluster), cluster.nodes_of("gin")[0].ports.natt
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        while True:
            await asking.sendto(message, (cluster.vips[0], natt))
            with trio.move_on_after(0.02):
                await asking.recv(2048)
                return


async def until_whole(cluster: Cluster) -> None:
    while True:
        try:
            status = await ask(cluster, GetStatus())
        except Unreachable:
            status = None
        if (
            isinstance(status, Status)
            and all(node.state == "up" for node in status.nodes)
            and all(tunnel.state == "up" for tunnel in status.tunnels)
        ):
            return
        await trio.sleep(0.05)


async def measure(tunnels: int) -> None:
    async with cluster(tunnels, GPNS) as (run, gmn, peers):
        empty = resident(gmn.pid)
        await run.connect(peers)
        full = resident(gmn.pid)
        await gmn.kill()
        began = time.monotonic()
        command = [*program(), "up", "--name", "gmn-1", "-c", str(run.cluster.file)]
        again = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
        try:
            await until_answered(run.cluster)
            answered = time.monotonic() - began
            await until_whole(run.cluster)
            whole = time.monotonic() - began
            restored = resident(again.pid)
        finally:
            again.terminate()
            await again.wait()
    print(f"{tunnels} tunnels: IKE answered after {answered:.2f} s, nodes and tunnels up in {whole:.2f} s")
    for what, size in (("with its tunnels", full), ("after the restart", restored)):
        print(f"memory {what}: {(size - empty) / tunnels / 1024:.1f} KiB per tunnel, {size >> 20} MiB in all")


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def commits() -> None:
    with TemporaryDirectory(prefix="protego-bench-", dir=Path.cwd()) as directory:
        store = SqliteStore(Path(directory))
        wal = Path(directory) / "state.db-wal"
        descriptor = os.open(Path(directory) / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for records in (1, 2, 20, 200):
            times: list[tuple[float, float]] = []
            for i in range(COMMITS):  # in turns, so that both meet the same machine
                values = [(b"%d" % ((i * 7 + j) % 2000), os.urandom(1000)) for j in range(records)]
                before = wal.stat().st_size if wal.exists() else 0
                stored = seconds(partial(store.commit, values))
                block = os.urandom(max(wal.stat().st_size - before, 0))
                if block:  # it did not empty its WAL
                    times.append((stored, seconds(partial(synced, descriptor, block))))
            stored, bare = (statistics.median(column) for column in zip(*times, strict=True))
            print(
                f"commit of {records} records of 1,000 bytes: {stored * 1e3:.2f} ms; bare write and fsync of "
                f"the bytes it appends: {bare * 1e3:.2f} ms; ratio {stored / bare:.2f}"
            )
        store.close()
        os.close(descriptor)


def synced(descriptor: int, block: bytes) -> None:
    os.write(descriptor, block)
    os.fsync(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a restart of the GMN costs.")
    parser.add_argument("--tunnels", type=int, default=TUNNELS)
    commits()
    trio.run(measure, parser.parse_args().tunnels)


if __name__ == "__main__":
    main()
