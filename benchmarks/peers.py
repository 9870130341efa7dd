"""`python -m benchmarks.peers`: Protego beside strongSwan's ESP in user space, bits for a second of CPU.

1. All gateways come up side by side, each in namespaces of its own (`beds.py`): Protego whose GIN steers,
   Protego whose GIN lets the kernel steer, the least that two Python processes can do, and strongSwan. The
   same peer, Protego's own initiator in this process, brings a tunnel up to each (but the bare one has its SA
   given).
2. A stretch carries the same packets through one of them, in one direction: in segmented sends of runs of one
   size, or one by one, as fast as it goes with at most so many on their way (`--in-flight`), or at an even
   pace at which each packet finds the gateway asleep. All are sealed before; all that come are counted.
3. Its CPU time is the kernel's count for all of the gateway's processes and threads
   (/proc/PID/task/*/schedstat), the kernel's work within their system calls included.
4. The gateways take turns; the result is the median of the rounds.

What a kernel does about a packet that is sent, up to the next socket, it does at the sender's expense. So for
all gateways alike, the way to their first socket (or TUN device) is on the account of this process, and the
way from their last one to the far end on theirs. The rewriting of a kernel that steers is on that first way.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import statistics
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import loads
from benchmarks.beds import HERE, IP_UDP, PORT, THERE, Bed, bare, libipsec, protego
from benchmarks.bench import cpu_seconds, machine
from benchmarks.initiator import NON_ESP, opener, sealer
from benchmarks.loads import Load
from protego_cli.counters import Counters
from protego_cli.esp.packet import trailer, unwrap
from protego_cli.net.udp import Batch
from protego_cli.wire.checksum import checksum
from tests.support.netns import receive_buffers
from tests.support.strongswan import CHARON

INWARD, OUTWARD = "peer to tenant", "tenant to peer"
OURS, KERNEL, BARE, THEIRS = "mux", "nftables", "bare", "libipsec"
"""Gateways; how a GIN steers, where it is ours."""
TARGET_BATCHES, TARGET_SINGLE = 5.0, 1.0
IN_FLIGHT: Final = 1024  # 10 Gbit/s for a millisecond
PACED: Final = 5000  # packets per second
PACED_SECONDS: Final = 0.4  # of a stretch
PATIENCE: Final = 1.0  # seconds without a packet: what is missing then is lost
SETTLE: Final = 0.005  # seconds, for the gateway to fall asleep
BUFFER: Final = 8 << 20
PATTERN: Final = bytes(range(1, 256)) * 6


class Train(NamedTuple):
    """What one send carries."""

    data: bytes
    size: int  # of its first datagram
    sizes: tuple[int, ...]  # of the inner packets


class Stretch(NamedTuple):
    """What one came to."""

    bits: int  # of inner packets that arrived
    packets: int
    lost: int
    cpu: dict[str, float]  # seconds, by process
    seconds: float

    @property
    def per_second(self) -> float:
        return self.bits / sum(self.cpu.values())


class Figure(NamedTuple):
    """A gateway's part of a line."""

    gbits: float  # for a second of CPU
    micros: dict[str, float]  # of CPU for a packet, by process
    pps: float  # by the clock
    lost: int


class Row(NamedTuple):
    """One line of the table."""

    direction: str
    load: str
    size: float
    singly: bool
    gateways: dict[str, Figure]
    ratios: dict[str, float]  # ours, to theirs

    @property
    def target(self) -> float:
        return TARGET_SINGLE if self.singly else TARGET_BATCHES

    @property
    def met(self) -> bool:
        return self.ratios[OURS] >= self.target and not self.gateways[OURS].lost


class Effort(NamedTuple):
    """How much to measure."""

    rounds: int = 5
    packets: int = 12_000  # of a stretch
    in_flight: int = IN_FLIGHT  # packets


QUICK: Final = Effort(1, 500)


class Case(NamedTuple):
    direction: str
    load: Load
    singly: bool
    pps: int | None = None  # as fast as it goes

    @property
    def name(self) -> str:
        return f"{self.direction}, {self.load.name}"


def cases() -> Iterator[Case]:
    for direction in (INWARD, OUTWARD):
        for load in (*map(loads.full, loads.SIZES), loads.imix()):
            yield Case(direction, load, singly=False)
        for load in (*map(loads.single, loads.SIZES), loads.imix_single()):
            yield Case(direction, load, singly=True)
        load = loads.single(max(loads.SIZES))
        yield Case(direction, load._replace(name=f"{load.name}, {PACED:,}/s"), singly=True, pps=PACED)


def inner(source: str, destination: str, size: int) -> bytes:
    """A packet that kernels forward and deliver: UDP without checksum (RFC 768) over IPv4."""
    ends = bytes(map(int, f"{source}.{destination}".split(".")))
    head = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0x4000, 64, 17, 0)
    head = head[:10] + checksum(head, ends) + ends
    return head + struct.pack("!HHHH", PORT, PORT, size - 20, 0) + PATTERN[: size - IP_UDP]


class Way:
    """One direction through a gateway."""

    def __init__(self, bed: Bed, direction: str) -> None:
        self._bed = bed
        self._inward = direction == INWARD
        peer, tenant = (bed.initiator.socket, bed.initiator.gateway), (bed.tenant, bed.dest)
        (self._source, self._dest), (self._sink, _) = (peer, tenant) if self._inward else (tenant, peer)
        (child,) = bed.initiator.children.values()
        self._sealer, self._opener = sealer(child), opener(child)

    def trains(self, load: Load, packets: int) -> list[Train]:
        """What the sends of a stretch carry: the load's buffers over and over, each packet sealed anew."""
        (buffers,) = load.stretches
        sends = max(1, packets * len(buffers) // sum(map(len, buffers)))
        return [self._train([packet.size for packet in buffer]) for buffer in islice(cycle(buffers), sends)]

    def _train(self, sizes: Sequence[int]) -> Train:
        rows = [(size, len(list(row))) for size, row in groupby(sizes)]
        parts = [self._packets(size, count) for size, count in rows]
        return Train(b"".join(parts), len(parts[0]) // rows[0][1], tuple(sizes))

    def _packets(self, size: int, count: int) -> bytes:
        if not self._inward:
            return self._bed.wrap(inner(HERE, THERE, size)) * count
        text = inner(THERE, HERE, size) + trailer(size, 4, self._sealer.block)
        return self._sealer.seal([text] * count)

    def check(self, size: int) -> None:
        """Carry one packet. Raises RuntimeError unless it arrives as it was sent."""
        train = self._train([size])
        self._source.send(train.data, train.size, self._dest)
        while select.select([self._sink.fileno()], [], [], PATIENCE)[0]:
            while (batch := self._sink.receive()) is not None:
                if self._arrived(batch) and self._payload(batch.view) == PATTERN[: size - IP_UDP]:
                    return
        raise RuntimeError(f"{self._bed.name}: a packet of {size} bytes did not come through")

    def _payload(self, datagram: memoryview) -> bytes:
        if self._inward:
            return bytes(datagram[self._bed.before :])
        number = int.from_bytes(datagram[4:8])
        opened = self._opener.open((number,), datagram, len(datagram), Counters(), 0.0)
        return bytes(unwrap(opened[0])[1][IP_UDP:]) if opened else b""

    def carry(self, trains: Sequence[Train], in_flight: int, pps: int | None = None) -> Stretch:
        """One stretch, each train as soon as it may be on its way, or so many a second."""
        self._bed.initiator.attend()
        while self._bed.tenant.receive() is not None:
            pass  # late for the stretch before, which has counted it as lost
        send, dest = self._source.send, self._dest
        sizes = [size for train in trains for size in train.sizes]
        before, began = _cpu(self._bed), time.monotonic()
        flying = arrived = 0
        for place, (data, size, packets) in enumerate(trains):
            if pps and (early := began + place / pps - time.monotonic()) > 0:
                time.sleep(early)
            flying += len(packets)
            while flying > in_flight:
                more = self._arrivals()
                arrived += more
                flying = flying - more if more else len(packets)
            send(data, size, dest)
        while arrived < len(sizes) and (more := self._arrivals()):
            arrived += more
        took = time.monotonic() - began
        time.sleep(SETTLE)
        after = _cpu(self._bed)
        return Stretch(
            bits=sum(sizes) * 8 * arrived // len(sizes),
            packets=len(sizes),
            lost=len(sizes) - arrived,
            cpu={name: after[name] - before[name] for name in after},
            seconds=took,
        )

    def _arrivals(self) -> int:
        """How many packets have come, after waiting for some; 0 when none comes any more."""
        while True:
            arrived = 0
            while (batch := self._sink.receive()) is not None:
                arrived += self._arrived(batch)
            if arrived or not select.select([self._sink.fileno()], [], [], PATIENCE)[0]:
                return arrived

    def _arrived(self, batch: Batch) -> int:
        """How many packets of ours a batch has."""
        if batch.view[:4] == NON_ESP:
            self._bed.initiator.hear(batch.view)
            return 0
        if len(batch.view) == 1:  # a keepalive (RFC 3948 2.3)
            return 0
        return -(-len(batch.view) // batch.size)


def _cpu(bed: Bed) -> dict[str, float]:
    return {name: cpu_seconds(pid) for name, pid in bed.processes.items()}


def measure(case: Case, beds: Sequence[Bed], ways: dict[str, dict[str, Way]], effort: Effort) -> Row:
    found: dict[str, list[Stretch]] = {bed.name: [] for bed in beds}
    packets = min(effort.packets, int(case.pps * PACED_SECONDS)) if case.pps else effort.packets
    for _ in range(effort.rounds):
        for bed in beds:
            way = ways[bed.name][case.direction]
            found[bed.name].append(way.carry(way.trains(case.load, packets), effort.in_flight, case.pps))
    return Row(
        direction=case.direction,
        load=case.load.name,
        size=case.load.size,
        singly=case.singly,
        gateways={name: _figure(stretches) for name, stretches in found.items()},
        ratios={name: _ratio(found[name], found[THEIRS]) for name in (OURS, KERNEL, BARE)},
    )


def _ratio(ours: Sequence[Stretch], theirs: Sequence[Stretch]) -> float:
    return statistics.median(
        mine.per_second / other.per_second for mine, other in zip(ours, theirs, strict=True)
    )


def _figure(stretches: Sequence[Stretch]) -> Figure:
    median = statistics.median
    return Figure(
        gbits=median(stretch.per_second for stretch in stretches) / 1e9,
        micros={
            name: median(stretch.cpu[name] / stretch.packets for stretch in stretches) * 1e6
            for name in stretches[0].cpu
        },
        pps=median(stretch.packets / stretch.seconds for stretch in stretches),
        lost=sum(stretch.lost for stretch in stretches),
    )


def run(chosen: Sequence[Case], effort: Effort, console: Console) -> list[Row]:
    """All gateways up, every case, and nothing left of them."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="protego-peers-")))
        stack.enter_context(receive_buffers(BUFFER))
        beds = [stack.enter_context(protego(directory / name, name)) for name in (OURS, KERNEL)]
        beds.append(stack.enter_context(bare(directory / BARE)))
        beds.append(stack.enter_context(libipsec(directory / THEIRS)))
        ways = {bed.name: {way: Way(bed, way) for way in (INWARD, OUTWARD)} for bed in beds}
        for by_direction in ways.values():
            for way in by_direction.values():
                for size in sorted({64, *loads.SIZES, *loads.IMIX}):
                    way.check(size)
        return [
            measure(case, beds, ways, effort)
            for case in track(chosen, "measuring", console=console, disable=not console.is_terminal)
        ]


def table(rows: Sequence[Row]) -> Table:
    made = Table(
        title="µs of CPU for a packet, Gbit for a second of CPU", caption="ratios are those to libipsec"
    )
    for heading in ("direction", "bytes"):
        made.add_column(heading)
    for heading in (
        OURS,
        KERNEL,
        BARE,
        THEIRS,
        *(f"{name}, ratio" for name in (OURS, KERNEL, BARE)),
        "target",
        "lost",
    ):
        made.add_column(heading, justify="right")
    for row in rows:
        colour = "green" if row.met else "red"
        figures = row.gateways.values()
        made.add_row(
            *(row.direction, row.load),
            *(f"{sum(figure.micros.values()):.2f}, {figure.gbits:.2f}" for figure in figures),
            *(
                f"[{colour}]{row.ratios[OURS]:.2f}[/]",
                f"{row.ratios[KERNEL]:.2f}",
                f"{row.ratios[BARE]:.2f}",
                f"≥ {row.target:g}",
            ),
            ", ".join(str(figure.lost) for figure in figures),
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every target was met, or nothing but whether it runs was asked."""
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only lines with this in their name")
    parser.add_argument("--rounds", type=int, default=Effort().rounds, help="take medians of so many")
    parser.add_argument(
        "--in-flight",
        type=int,
        default=IN_FLIGHT,
        metavar="N",
        help="at most so many packets on their way; less than two sends carry is as many as one does",
    )
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    if os.geteuid() or shutil.which(CHARON) is None:
        print("this needs root, for network namespaces, and strongSwan: see .ci/run", file=sys.stderr)
        return 2
    chosen = [case for case in cases() if options.only in case.name]
    if not chosen:
        print(f"no line's name has {options.only!r} in it", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 130)
    effort = QUICK if options.quick else Effort(options.rounds, in_flight=options.in_flight)
    rows = run(chosen, effort, console)
    console.print(table(rows))
    if options.json:
        document = {**machine(), **effort._asdict(), "rows": _plain(rows)}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if options.quick or all(row.met for row in rows) else 1


def _plain(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [
        {
            **row._asdict(),
            "gateways": {name: figure._asdict() for name, figure in row.gateways.items()},
            "target": row.target,
            "met": row.met,
        }
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
