"""What the state of the IKE engine costs: `python -m benchmarks.ike_state`.

A gateway's engine with `TUNNELS` tunnels, each with one IKE_SA and one CHILD_SA, and no network between it
and its peers' engine. Memory is what Python allocated, by tracemalloc; the peers' engine is gone by then.
"""

from __future__ import annotations

import itertools
import os
import time
import tracemalloc

from protego_cli.config.model import IkeSettings
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import ChildOffered, Path, Policy
from protego_cli.wire.selectors import TrafficSelector

TUNNELS = 500
GATEWAY = "203.0.113.10"


def address(number: int) -> str:
    return f"198.18.{number >> 8}.{number & 255}"


def policy(number: int, *, gateway: bool) -> Policy:
    ours, theirs = GATEWAY, address(number)
    selectors = [
        (TrafficSelector.from_prefix(prefix),) for prefix in ("10.1.0.0/24", f"10.2.{number & 255}.0/24")
    ]
    if not gateway:
        ours, theirs = theirs, ours
        selectors.reverse()
    return Policy(
        tunnel=f"tenant-{number}/hq",
        remote=theirs,
        local_id=ours,
        remote_id=theirs,
        psk=b"a secret both sides hold",
        local_ts=selectors[0],
        remote_ts=selectors[1],
        ike=("aes256gcm16-prfsha256-x25519",),
        esp=("aes256gcm16-x25519", "aes256gcm16"),
    )


def engine(epoch: int, *, gateway: bool = True) -> Engine:
    spis = itertools.count(0x1000)
    policies = [policy(number, gateway=gateway) for number in range(TUNNELS)]
    registry = Registry(("builtin", algorithm) for algorithm in ALGORITHMS)
    settings = IkeSettings(half_open_max=100_000)
    return Engine(policies, registry, settings, os.urandom, lambda: next(spis), epoch, Counters())


def converse(gateway: Engine, peers: Engine) -> None:
    """Let the datagrams of both go to and fro until neither has any."""
    while True:
        moved = False
        for sender, receiver in ((peers, gateway), (gateway, peers)):
            for path, data in sender.datagrams_to_send():
                moved = True
                back = Path(path.remote, path.remote_port, path.local, path.local_port)
                receiver.receive_datagram(data, back, 0.0)
            while (event := receiver.next_event()) is not None:
                if isinstance(event, ChildOffered):
                    receiver.accept(event.ticket, 0.0)
        if not moved:
            return


def connected() -> Engine:
    gateway, peers = engine(1), engine(1, gateway=False)
    for number in range(TUNNELS):
        peers.initiate(
            f"tenant-{number}/hq", Path(address(number), 500, GATEWAY, 500), 0x100000 + number, 0.0
        )
    converse(gateway, peers)
    return gateway


def main() -> None:
    gateway = connected()
    began = time.perf_counter()
    states = [state for _, state in gateway.changes() if state is not None]
    taken = time.perf_counter() - began
    if len(states) != TUNNELS:
        raise RuntimeError(f"{len(states)} of {TUNNELS} tunnels came up")
    again = engine(2)
    began = time.perf_counter()
    again.restore(states, 0.0)
    restored = time.perf_counter() - began
    another = engine(3)
    tracemalloc.start()
    another.restore(states, 0.0)
    held, _ = tracemalloc.get_traced_memory()
    print(f"one tunnel's state: {sum(map(len, states)) / TUNNELS:.0f} bytes")
    print(f"taken in {taken / TUNNELS * 1e6:.0f} µs, restored in {restored / TUNNELS * 1e6:.0f} µs")
    print(f"memory of one restored IKE_SA with its CHILD_SA: {held / TUNNELS / 1e3:.1f} KB")


if __name__ == "__main__":
    main()
