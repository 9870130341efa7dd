"""What a tunnel at ten times its rate limit costs the tunnels beside it: their throughput, and their latency.

A GIN, a GEN and a GPN, each a process with the role's own plane and sockets; one GPN, so one core, holds all
tunnels. Beside them three processes: the neighbours' senders, their receivers, and the flooder, which sends
at ten times its limit in batches and takes what comes of it. Its flood is valid ESP, VXLAN of its tenant, or
forged ESP for its live SPI. It is compared with the same tunnel silent.

1. `filled`: the neighbours keep a fixed number of packets in flight; what arrives by the second is their
   throughput.
2. `paced`: they send single packets with the time in them at a modest, even rate; the 99th percentile of the
   age at which they arrive is the latency.

Short stretches with and without the flood take turns, `ROUNDS` of each; latency and CPU time are medians of
one beside the other. While they are paced, which leaves the machine mostly idle, all processes have
real-time priority where they may (root), so that other work on the machine does not count; throughput has no
such shield. The CPU time of GIN, GEN and GPN is the kernel's count (`bench.cpu_seconds`), in paced stretches:
what the flood takes of a core is what the neighbours lack when the core is full.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, suppress
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Final, NamedTuple

import trio

from benchmarks.bench import cpu_seconds
from protego_cli.config.model import Cluster, Node, Ports, Rate
from protego_cli.control.channel.desired_records import Limit, Neighbour, Route, Rule, Sa, Steer, Tenant, Vtep
from protego_cli.control.sas.limits import GEN_CEILING, GIN_CEILING
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.esp.sa import InboundSa, OutboundSa
from protego_cli.net.gso import segments
from protego_cli.net.udp import UdpSocket
from protego_cli.plugins.steering_backends import Mux
from protego_cli.roles.gen import GenPlane
from protego_cli.roles.gin import GinPlane
from protego_cli.roles.gpn import GpnPlane
from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, FRAME_LENGTH, build_frame_header

IDLE, FILLED, PACING, STOP = range(4)  # what the neighbours do
INWARD, OUTWARD = range(2)
QUIET, VALID, FORGED = range(3)  # what the flooder does

FORK: Final = multiprocessing.get_context("fork")
SUITE: Final = Registry(("bench", algorithm) for algorithm in ALGORITHMS).esp_suite(
    "aes256gcm16", None, esn=False
)
LIMIT: Final = Rate(20_000_000, 125_000)
OVER: Final = 10  # times the limit
NEIGHBOURS: Final = 8
FLOODER: Final = 0  # its place among the tunnels
SIZE: Final = 1400  # of an inner packet
BATCH: Final = 40
IN_FLIGHT: Final = 16 * BATCH
PACED: Final = 2000  # packets per second, all neighbours together
ROUNDS: Final = 15
STRETCH: Final = {FILLED: 0.3, PACING: 0.4}  # seconds
SETTLE: Final = 0.1
SAMPLES: Final = 1 << 16

ADDRESS: Final = {name: f"127.77.0.{host}" for host, name in enumerate(("gin", "gen", "gpn", "gmn"), 11)}
VIP: Final = "127.77.0.10"
PORTS: Final = Ports(ike=0, natt=14500, esp=14500, vxlan=14789, fabric=14501)
PEERS: Final = (("127.77.0.21", 14500), ("127.77.0.22", 14500))  # the flooder, the neighbours
VTEPS: Final = (("127.77.0.31", 14789), ("127.77.0.32", 14789))
LOCAL, REMOTE = (TrafficSelector.from_prefix("10.1.0.0/24"),), (TrafficSelector.from_prefix("10.2.0.0/24"),)
MACS: Final = bytes.fromhex("025000001001"), bytes.fromhex("020000000005")
TAG_KEY: Final = bytes(range(32))


class Shared:
    """What the processes tell one another."""

    def __init__(self) -> None:
        self.ready = FORK.RawValue("I", 0)
        self.mode = FORK.RawValue("I", IDLE)
        self.way = FORK.RawValue("I", INWARD)
        self.flood = FORK.RawValue("I", QUIET)
        self.sent = FORK.RawValue("Q", 0)
        self.received = FORK.RawValue("Q", 0)
        self.flooded = FORK.RawValue("Q", 0)  # packets
        self.passed = FORK.RawValue("Q", 0)  # of them, packets that came through
        self.ages = FORK.RawArray("d", SAMPLES)
        self.aged = FORK.RawValue("I", 0)


class Tunnel:
    """A tunnel of the benchmark by its number: SPIs, keys, VNI."""

    def __init__(self, number: int) -> None:
        self.id = f"t{number}/hq"
        self.vni = 1001 + number
        self.spi_in, self.spi_out = 0xC0FFEE00 + number, 0xC1FFEE00 + number
        self.key_in, self.key_out = (bytes([seed + number]) * SUITE.keymat_length for seed in (1, 101))
        who = 0 if number == FLOODER else 1
        self.peer, self.vtep = PEERS[who], VTEPS[who]

    def sealer(self) -> OutboundSa:
        """The peer's, for packets to the tenant."""
        return OutboundSa(
            self.spi_in, SUITE, self.key_in, os.urandom, local_ts=REMOTE, remote_ts=LOCAL, lo=1, hi=1 << 32
        )

    def opener(self) -> InboundSa:
        """The peer's, for packets from the tenant."""
        return InboundSa(self.spi_out, SUITE, self.key_out, local_ts=REMOTE, remote_ts=LOCAL)

    def frames(self, inner: bytes, count: int) -> bytes:
        return (build_frame_header(self.vni, *MACS, ETHERTYPE_IPV4) + inner) * count


TUNNELS: Final = [Tunnel(number) for number in range(1 + NEIGHBOURS)]


def inner(way: int, stamp: float = 0.0) -> bytes:
    ends = bytes((10, 2, 0, 9)), bytes((10, 1, 0, 5))
    source, destination = ends if way == INWARD else ends[::-1]
    head = struct.pack("!BBHHHBBH", 0x45, 0, SIZE, 0, 0, 64, 17, 0) + source + destination
    return head + struct.pack("!HHHHd", 7, 7, SIZE - 20, 0xFFFF, stamp) + bytes(SIZE - 36)


# ---- the gateway's processes


def run_gin(shared: Shared) -> None:
    with ExitStack() as stack:
        nodes = Node("gmn", "gmn", ADDRESS["gmn"], PORTS), Node("gin", "gin", ADDRESS["gin"], PORTS)
        here = Path()
        plane = GinPlane(Cluster("bench", here, (VIP,), here, here, nodes, ()), nodes[1], Mux(), stack)
        plane.put(_neighbour("gpn"))
        for tunnel in TUNNELS:
            limited = tunnel is TUNNELS[FLOODER]
            plane.put(Steer(tunnel.spi_in, "gpn", *tunnel.peer, _ceiling(GIN_CEILING) if limited else None))
        _serve(plane.serve, shared)


def run_gen(shared: Shared) -> None:
    with ExitStack() as stack:
        plane = GenPlane(Node("gen", "gen", ADDRESS["gen"], PORTS), Mux(), stack)
        plane.put(_neighbour("gpn"))
        plane.put(Limit(TUNNELS[FLOODER].id, None, _ceiling(GEN_CEILING)))
        for tunnel in TUNNELS:
            plane.put(_tenant(tunnel))
            plane.put(Route(tunnel.id, tunnel.vni, ("10.2.0.0/24",), "gpn"))
        _serve(plane.serve, shared)


def run_gpn(shared: Shared) -> None:
    with ExitStack() as stack:
        registry = Registry(("bench", algorithm) for algorithm in ALGORITHMS)
        plane = GpnPlane(Node("gpn", "gpn", ADDRESS["gpn"], PORTS), registry, stack)
        for name in ("gin", "gen"):
            plane.put(_neighbour(name))
        plane.put(Limit(TUNNELS[FLOODER].id, LIMIT, LIMIT))
        for tunnel in TUNNELS:
            plane.put(_tenant(tunnel))
            plane.put(
                Sa(
                    spi_in=tunnel.spi_in,
                    spi_out=tunnel.spi_out,
                    tunnel=tunnel.id,
                    vni=tunnel.vni,
                    encryption=SUITE.encryption.keyword,
                    key_in=tunnel.key_in,
                    key_out=tunnel.key_out,
                    local_ts=LOCAL,
                    remote_ts=REMOTE,
                    vip=VIP,
                    peer=tunnel.peer[0],
                    peer_port=tunnel.peer[1],
                    seal_lo=1,
                    seal_hi=1 << 31,
                )
            )
            plane.put(Rule(tunnel.id, tunnel.spi_in))
        _serve(plane.serve, shared)


def _serve(serve: Callable[[Callable[..., None]], Awaitable[None]], shared: Shared) -> None:
    shared.ready.value += 1
    trio.run(serve, lambda *_: None)


def _neighbour(name: str) -> Neighbour:
    esp = PORTS.esp if name == "gpn" else 0
    vxlan = PORTS.vxlan if name != "gin" else 0
    return Neighbour(name, name, ADDRESS[name], esp, vxlan, TAG_KEY)  # type: ignore[arg-type]  # a role's name


def _tenant(tunnel: Tunnel) -> Tenant:
    vtep = Vtep("10.1.0.0/24", *tunnel.vtep, MACS[1])
    return Tenant(tunnel.id, tunnel.vni, MACS[0], (vtep,))


def _ceiling(factor: float) -> Rate:
    return Rate(round(LIMIT.bits * factor), round(LIMIT.burst * factor))


# ---- traffic


class Sender:
    """Sends packets of tunnels to the gateway, either way."""

    def __init__(self, peer: UdpSocket, vtep: UdpSocket) -> None:
        self._peer, self._vtep = peer, vtep
        self._sealers = {tunnel.id: tunnel.sealer() for tunnel in TUNNELS}

    def send(self, way: int, tunnel: Tunnel, count: int, stamp: float = 0.0) -> None:
        if way == INWARD:
            plaintext = inner(way, stamp) + bytes((1, 2, 2, 4))  # trailer: padding, next header
            data = self._sealers[tunnel.id].seal([plaintext] * count)
            self._peer.send(data, len(data) // count, (VIP, PORTS.natt))
        else:
            data = tunnel.frames(inner(way, stamp), count)
            self._vtep.send(data, len(data) // count, (ADDRESS["gen"], PORTS.vxlan))

    def forge(self, tunnel: Tunnel, count: int) -> None:
        """ESP for a live SPI, all of it wrong."""
        sa = self._sealers[tunnel.id]
        size = sa.overhead + SIZE + 4
        first = sa.next
        data = b"".join(
            struct.pack("!II", tunnel.spi_in, first + number) + bytes(size - 8) for number in range(count)
        )
        self._peer.send(data, size, (VIP, PORTS.natt))


def neighbours(shared: Shared, sockets: list[UdpSocket]) -> None:
    sender, turn = Sender(*sockets), 0
    due = time.monotonic()
    while shared.mode.value != STOP:
        mode, way = shared.mode.value, shared.way.value
        tunnel = TUNNELS[1 + turn % NEIGHBOURS]
        now = time.monotonic()
        if mode == FILLED:
            if shared.sent.value - shared.received.value <= IN_FLIGHT - BATCH:
                sender.send(way, tunnel, BATCH)
                shared.sent.value += BATCH
                turn += 1
                due = now
            elif now - due > 0.05:  # some were lost
                shared.sent.value = shared.received.value
            else:
                time.sleep(0.0001)
        elif mode == PACING:
            if now >= due:
                sender.send(way, tunnel, 1, now)
                shared.sent.value += 1
                turn += 1
                due = max(due + 1 / PACED, now - 0.01)
            else:
                time.sleep(min(due - now, 0.001))
        else:
            due = now
            time.sleep(0.001)


def receivers(shared: Shared, sockets: list[UdpSocket]) -> None:
    peer, vtep = sockets
    openers = {tunnel.spi_out: tunnel.opener() for tunnel in TUNNELS}
    dropped = Counters()
    while shared.mode.value != STOP:
        idle = True
        for sock in (vtep, peer):
            while (batch := sock.receive()) is not None:
                idle, now = False, time.monotonic()
                parts = list(segments(batch.view, batch.size))
                if shared.mode.value == PACING:
                    for part in parts:
                        packet = bytes(part[FRAME_LENGTH:])
                        if sock is peer:
                            spi, number = struct.unpack_from("!II", part)
                            (packet,) = openers[spi].open((number,), part, len(part), dropped, 0.0)
                        (stamp,) = struct.unpack_from("!d", packet, 28)
                        if stamp and shared.aged.value < SAMPLES:
                            shared.ages[shared.aged.value] = now - stamp
                            shared.aged.value += 1
                shared.received.value += len(parts)
        if idle:
            time.sleep(0.00005)


def flooder(shared: Shared, sockets: list[UdpSocket]) -> None:
    sender, tunnel = Sender(*sockets), TUNNELS[FLOODER]
    interval = BATCH * SIZE * 8 / (LIMIT.bits * OVER)
    due = time.monotonic()
    while shared.mode.value != STOP:
        now = time.monotonic()
        if shared.flood.value == QUIET:
            due = now
            time.sleep(0.002)
        elif now < due:
            time.sleep(due - now)
        else:
            if shared.flood.value == FORGED:
                sender.forge(tunnel, BATCH)
            else:
                sender.send(shared.way.value, tunnel, BATCH)
            shared.flooded.value += BATCH
            due = max(due + interval, now - 0.1)
        for sock in sockets:
            while (batch := sock.receive()) is not None:
                shared.passed.value += len(list(segments(batch.view, batch.size)))


# ---- measuring


class Window(NamedTuple):
    """One stretch: what came to the neighbours, how old, and what it took."""

    rate: float  # packets per second
    lost: int
    age: float  # 99th percentile, seconds
    cpu: dict[str, float]  # CPU seconds per second by role
    flooded: float  # packets per second
    passed: float


class Figure(NamedTuple):
    flood: str
    throughput: float  # with the flood, of that without
    latency: float
    age: float  # seconds, without
    lost: int  # of the neighbours' paced packets, with the flood
    cpu: dict[str, float]  # what the flood takes of a core
    flooded: float  # bits per second
    passed: float


class Bench:
    def __init__(self, stack: ExitStack) -> None:
        self.shared = Shared()
        self._gateway: dict[str, ForkProcess] = {}
        self._all: list[ForkProcess] = []
        stack.callback(self._stop)

        def bind(address: tuple[str, int]) -> UdpSocket:
            return stack.enter_context(closing(UdpSocket.bind(*address)))

        ends = [[bind(PEERS[who]), bind(VTEPS[who])] for who in (0, 1)]
        for role, run in (("gin", run_gin), ("gen", run_gen), ("gpn", run_gpn)):
            self._gateway[role] = self._start(run, self.shared)
        self._start(flooder, self.shared, ends[0])
        self._start(neighbours, self.shared, ends[1])
        self._start(receivers, self.shared, ends[1])
        limit = time.monotonic() + 10
        while self.shared.ready.value < len(self._gateway):
            if time.monotonic() > limit:
                raise TimeoutError("the gateway's processes did not start")
            time.sleep(0.01)

    def _start(self, run: Callable[..., None], *arguments: object) -> ForkProcess:
        process = FORK.Process(target=run, args=arguments, daemon=True)
        process.start()
        self._all.append(process)
        return process

    def _stop(self) -> None:
        self.shared.mode.value = STOP
        for process in self._all:
            process.terminate()
            process.join()

    def _prefer(self, preferred: bool) -> None:
        policy, priority = (os.SCHED_RR, 1) if preferred else (os.SCHED_OTHER, 0)
        with suppress(PermissionError):
            for pid in (os.getpid(), *(process.pid for process in self._all)):
                if pid is not None:
                    os.sched_setscheduler(pid, policy, os.sched_param(priority))

    def cpu(self) -> dict[str, float]:
        return {role: cpu_seconds(process.pid) for role, process in self._gateway.items() if process.pid}

    def window(self, mode: int, way: int, flood: int) -> Window:
        shared = self.shared
        outstanding = shared.sent.value - shared.received.value
        self._prefer(mode == PACING)
        shared.way.value, shared.flood.value, shared.mode.value = way, flood, mode
        time.sleep(SETTLE)
        shared.aged.value = 0
        before = shared.received.value, shared.flooded.value, shared.passed.value
        cpu, began = self.cpu(), time.monotonic()
        time.sleep(STRETCH[mode])
        took, after = time.monotonic() - began, self.cpu()
        counts = shared.received.value, shared.flooded.value, shared.passed.value
        rate, flooded, passed = ((now - then) / took for now, then in zip(counts, before, strict=True))
        ages = sorted(shared.ages[: shared.aged.value])
        shared.mode.value, shared.flood.value = IDLE, QUIET
        time.sleep(SETTLE)  # what is on its way arrives
        lost = shared.sent.value - shared.received.value - outstanding
        if mode == FILLED:
            shared.sent.value = shared.received.value
        return Window(
            rate=rate,
            lost=lost,
            age=ages[len(ages) * 99 // 100] if ages else 0.0,
            cpu={role: (after[role] - cpu[role]) / took for role in cpu},
            flooded=flooded,
            passed=passed,
        )


FLOODS: Final = {
    "peer to tenant, valid": (INWARD, VALID),
    "tenant to peer": (OUTWARD, VALID),
    "peer to tenant, forged": (INWARD, FORGED),
}


def measure(rounds: int = ROUNDS) -> Iterator[Figure]:
    """A figure for each kind of flood."""
    with ExitStack() as stack:
        bench = Bench(stack)
        for way in (INWARD, OUTWARD):
            bench.window(FILLED, way, QUIET)  # warm up
        for name, (way, flood) in FLOODS.items():
            yield _figure(bench, name, way, flood, rounds)


def _figure(bench: Bench, name: str, way: int, flood: int, rounds: int) -> Figure:
    full: list[tuple[Window, Window]] = []
    paced: list[tuple[Window, Window]] = []
    for turn in range(rounds):
        for mode, found in ((FILLED, full), (PACING, paced)):
            first = bench.window(mode, way, flood if turn % 2 else QUIET)
            second = bench.window(mode, way, QUIET if turn % 2 else flood)
            found.append((second, first) if turn % 2 else (first, second))
    packet = 8 * SIZE
    flooded = [window for _, window in paced]
    return Figure(
        flood=name,
        throughput=sum(with_it.rate for _, with_it in full) / sum(without.rate for without, _ in full),
        latency=statistics.median(with_it.age / without.age for without, with_it in paced),
        age=statistics.median(without.age for without, _ in paced),
        lost=max(0, sum(window.lost for window in flooded)),
        cpu={
            role: statistics.median(with_it.cpu[role] - without.cpu[role] for without, with_it in paced)
            for role in ("gin", "gen", "gpn")
        },
        flooded=statistics.median(window.flooded for window in flooded) * packet,
        passed=statistics.median(window.passed for window in flooded) * packet,
    )


def main() -> None:
    for figure in measure():
        cores = ", ".join(f"{role.upper()} {share:+.1%}" for role, share in figure.cpu.items())
        print(
            f"{figure.flood}: {figure.flooded / 1e6:.0f} Mbit/s sent, {figure.passed / 1e6:.1f} passed; "
            f"neighbours' throughput {figure.throughput - 1:+.1%}, p99 latency {figure.latency - 1:+.1%} "
            f"of {figure.age * 1e3:.2f} ms, {figure.lost} lost; of a core: {cores}",
            flush=True,
        )


if __name__ == "__main__":
    main()
