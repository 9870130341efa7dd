"""The frame of both endpoint processes: sockets that receive at once, a pacer that sends, commands on stdin.

1. One task waits on all sockets at once (one wake-up for many packets leaves the CPU to the cluster), drains
   a bounded number of batches from each that has some, and hands them to their sites.
2. One task gives each site a turn every 10 ms, one after another so that they do not all burst at once, and
   sends what is due: numbers follow from the time since the start, so the rate holds without drift.
3. Commands come on stdin; when it closes the process ends, so it cannot outlive the orchestrator. What has
   arrived by the last of them counts, whether its task has come to it or not.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import trio
from msgspec import structs

from protego_cli.lab.plan import Plan, Replay
from protego_cli.lab.protocol import Command, Snapshot
from protego_cli.lab.traffic import MAX_NUMBER, SMALLEST, size_of
from protego_cli.net.gso import runs
from protego_cli.net.pump import drain
from protego_cli.net.udp import Address, Batch, UdpSocket

TICK = 0.01
_SHORTEST_SLEEP = 0.0004  # seconds; waking up costs a good part of it
_MAX_LINE = 1 << 16
_AT_ONCE = 128  # packets of all flows that one tick may send beyond what the rate asks for


Look = Callable[[Sequence[int]], Snapshot]
"""The counts; with what the other ends have sent, also what is missing of it."""


class SiteEnd(Protocol):
    """One end of one site: a peer or a tenant's VTEP."""

    socket: UdpSocket
    sent: int

    def rekey(self, now: float) -> None:
        """Rekey the SA that seals."""
        ...

    def connect(self, now: float) -> None:
        """Bring the tunnel up, where that is this end's part."""

    def tick(self, now: float) -> None:
        """Called every tick, before anything is sent."""

    def send(self, numbers: range) -> None:
        """Send these numbered packets."""

    def receive(self, batch: Batch, now: float) -> None:
        """Take what has arrived; the batch is valid during the call."""


class Pacer:
    """Which numbers are due: `pps` per flow from the start on.

    `burst` bounds how many become due at once, so that an endpoint that was not scheduled for a while does
    not flood the sockets behind it; what is late follows in the next ticks.
    """

    def __init__(self, pps: int, flows: int) -> None:
        self.pps = pps
        self.burst = max(_AT_ONCE // max(flows, 1), 2 + int(2 * pps * TICK))
        self.began: float | None = None
        self.seconds = 0.0
        self.running = False

    def start(self, now: float) -> None:
        if self.began is None:
            self.began, self.running = now, True

    def due(self, sent: int, now: float, place: int = 0) -> range:
        """The numbers to send now, of the flow at this place, which has sent `sent` so far."""
        if not self.running or self.began is None:
            return range(0)
        self.seconds = now - self.began
        until = min(1 + int(self.seconds * self.pps), sent + self.burst, MAX_NUMBER)
        return range(sent, max(until, sent))


class ReplayPacer(Pacer):
    """As a trace says: bytes per second for each flow in each step. Behind its end nothing more is due."""

    def __init__(self, replay: Replay, flows: int) -> None:
        most = max(map(max, replay.rates), default=0.0)
        super().__init__(1 + round(most / SMALLEST), flows)
        self._step = replay.step
        self._rates = replay.rates
        self._before = [[0.0] * flows]  # bytes of each flow that are due at the beginning of each step
        for rates in replay.rates:
            before = self._before[-1]
            self._before.append([was + rate * replay.step for was, rate in zip(before, rates, strict=True)])
        self._bytes = [0.0] * flows  # of the packets that were handed out

    def due(self, sent: int, now: float, place: int = 0) -> range:
        if not self.running or self.began is None:
            return range(0)
        self.seconds = now - self.began
        wanted, until = self._wanted(place), sent
        while self._bytes[place] < wanted and until < min(sent + self.burst, MAX_NUMBER):
            self._bytes[place] += size_of(until)
            until += 1
        return range(sent, until)

    def _wanted(self, place: int) -> float:
        step = min(int(self.seconds / self._step), len(self._rates))
        rate = self._rates[step][place] if step < len(self._rates) else 0.0
        return self._before[step][place] + rate * (self.seconds - step * self._step)


def pacer_of(plan: Plan) -> Pacer:
    """What paces both endpoints of a run."""
    if plan.elastic is not None:
        return ReplayPacer(plan.elastic.replay, len(plan.sites))
    return Pacer(plan.pps, len(plan.sites))


async def run(ends: Sequence[SiteEnd], pacer: Pacer, look: Look) -> None:
    """Run until stdin closes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_receive, ends)
        nursery.start_soon(_pace, ends, pacer)
        await _serve(ends, pacer, look)
        nursery.cancel_scope.cancel()
    for end in ends:
        end.socket.close()


def transmit(socket: UdpSocket, packets: Sequence[bytes], dest: Address) -> int:
    """Send packets with as few calls as their sizes allow; returns how many the kernel refused."""
    refused = 0
    for start, stop in runs([len(packet) for packet in packets]):
        if not socket.send(b"".join(packets[start:stop]), len(packets[start]), dest):
            refused += stop - start
    return refused


async def _receive(ends: Sequence[SiteEnd]) -> None:
    by_descriptor = {end.socket.fileno(): end for end in ends}
    with select.epoll() as ready:
        for descriptor in by_descriptor:
            ready.register(descriptor, select.EPOLLIN)
        more: set[int] = set()  # not drained: what is left may lie in the socket object, out of epoll's sight
        while True:
            if more:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(ready.fileno())
            now = trio.current_time()
            readable = more.union(descriptor for descriptor, _ in ready.poll(0))
            more = {descriptor for descriptor in readable if _drain(by_descriptor[descriptor], now)}


def _drain(end: SiteEnd, now: float) -> bool:
    """A bounded number of batches; whether there may be more."""
    return drain(end.socket, lambda batch: end.receive(batch, now))


async def _pace(ends: Sequence[SiteEnd], pacer: Pacer) -> None:
    turn = trio.current_time()
    while True:
        for place, end in enumerate(ends):
            now = trio.current_time()
            end.tick(now)
            if numbers := pacer.due(end.sent, now, place):
                end.send(numbers)
            turn = max(turn + TICK / len(ends), now)
            if turn > now + _SHORTEST_SLEEP:  # many ends have their turns together
                await trio.sleep_until(turn)
        await trio.sleep_until(turn)


async def _serve(ends: Sequence[SiteEnd], pacer: Pacer, look: Look) -> None:
    decoder = msgspec.json.Decoder(Command)
    buffer = bytearray()
    stdin = trio.lowlevel.FdStream(sys.stdin.fileno())
    stdout = trio.lowlevel.FdStream(sys.stdout.fileno())
    async for chunk in stdin:
        buffer += chunk
        if len(buffer) > _MAX_LINE:
            raise ValueError("a command line is too long")
        while (end := buffer.find(b"\n")) >= 0:
            command = decoder.decode(buffer[:end])
            del buffer[: end + 1]
            now = trio.current_time()
            if command.do == "connect":
                for site in ends:
                    site.connect(now)
            elif command.do == "rekey":
                for site in ends:
                    site.rekey(now)
            elif command.do == "start":
                pacer.start(now)
            elif command.do == "stop":
                pacer.running = False
            elif command.do == "account":
                for site in ends:
                    while _drain(site, now):
                        pass
            answer = structs.replace(look(command.sent), answers=command.number)
            await stdout.send_all(msgspec.json.encode(answer) + b"\n")
