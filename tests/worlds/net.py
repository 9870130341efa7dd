"""A network in memory: datagrams between sockets by address, at times from a seed.

Datagrams of one flow (socket and destination) keep their order, those of different flows do not. On the
Internet, which is between VIPs and peers, they may also be lost, doubled, come late or again much later. A
VIP is every GIN's: a peer's datagrams go to one of them.
"""

from __future__ import annotations

import heapq
import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from types import SimpleNamespace
from unittest import mock

import trio

from protego_cli.counters import Counters
from protego_cli.net import tagging
from protego_cli.net.bundles import unbundled
from protego_cli.net.gso import MAX_SEGMENTS, segments
from protego_cli.net.pump import CatchUp
from protego_cli.net.udp import Address, Batch, Buffer
from protego_cli.roles import gen, gin, gpn
from protego_cli.wire.tags import is_tag

FABRIC = (0.0002, 0.006)  # seconds from node to node
INTERNET = (0.010, 0.029)  # seconds from gateway to peer: three of the least are more than the most
GRID = 0.0002  # times are multiples of it, so that things happen at one instant
REST = 20.0  # between probes of a GIN or GEN, and what they tend: nothing here depends on them
DATA_PORTS = (4500, 4789)
MARKER = bytes(4)  # of IKE (RFC 3948 2.2)


def is_packet(data: bytes, dest: Address) -> bool:
    """Whether a datagram is a packet of a tenant, as ESP or VXLAN; IKE, envelopes and tags are none."""
    return dest[1] in DATA_PORTS and not is_tag(data[:4]) and data[:4] != MARKER


@dataclass
class Weather:
    """The Internet's; shares of datagrams."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0  # by up to 0.1 s, so behind later ones
    replayed: float = 0.0  # ESP that comes again within 20 s


class Socket:
    """What roles need of a `UdpSocket`. With a `handler` datagrams go there at once."""

    def __init__(self, net: Net, address: Address, handler: Callable[[bytes, Address], None] | None) -> None:
        self.address = address
        self.alive = True
        self.refuses = False
        self._net = net
        self._handler = handler
        self._inbox: deque[tuple[bytes, Address]] = deque()
        self._arrived = trio.Event()

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        if not self.alive or self.refuses:
            return False
        origin = (source, self.address[1]) if source else self.address
        for segment in segments(memoryview(data), size):
            self._net.send(self, bytes(segment), origin, dest)
        return True

    def send_parts(self, parts: Sequence[Buffer], dest: Address, *, tos: int = 0) -> bool:
        data = b"".join(parts)
        return self.send(data, len(data), dest, tos=tos)

    def room(self, dest: Address) -> int:
        return 1472

    def receive(self) -> Batch | None:
        """What waits and is alike, as one batch."""
        if not self._inbox:
            if self._arrived.is_set():  # else somebody may be waiting for it
                self._arrived = trio.Event()
            return None
        data, source = self._inbox.popleft()
        parts, size = [data], len(data)
        while self._inbox and len(parts) < MAX_SEGMENTS and len(parts[-1]) == size:
            more, origin = self._inbox[0]
            if origin != source or not 0 < len(more) <= size:
                break
            parts.append(more)
            self._inbox.popleft()
        return Batch(memoryview(b"".join(parts)), size, source)

    def receive_train(self) -> list[Batch]:
        """All that waits."""
        return list(iter(self.receive, None))

    def fileno(self) -> int:
        return -1

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._inbox:
            await self._arrived.wait()

    def put(self, data: bytes, source: Address) -> None:
        if self._handler is not None:
            self._handler(data, source)
        else:
            self._inbox.append((data, source))
            self._arrived.set()

    def overflow(self) -> int:
        return 0

    def close(self) -> None:
        self.alive = False
        self._net.closed(self)
        for data, _ in self._inbox:
            self._net.perish(data, self.address)
        self._inbox.clear()


class Net:
    """The network; `bind` makes sockets as `UdpSocket.bind` does."""

    def __init__(
        self, seed: int, vips: tuple[str, ...], tap: Callable[[bytes, Address, Address], None]
    ) -> None:
        """`tap` sees what enters the Internet."""
        self.weather = Weather()
        self.outside = set(vips)  # and the peers' addresses
        self.lost = 0  # packets that the Internet lost, or that came to no process
        self.digest = 0  # of what was sent, and when: equal in equal runs
        self._vips = frozenset(vips)
        self._tap = tap
        self._random = Random(seed)
        self._sockets: dict[Address, list[Socket]] = {}
        self._flying: list[tuple[float, int, bytes, Address, Address]] = []
        self._order = itertools.count()
        self._last: dict[tuple[int, Address], float] = {}
        self._sooner = trio.Event()
        self._next = float("inf")

    def bind(
        self,
        address: str,
        port: int,
        *,
        handler: Callable[[bytes, Address], None] | None = None,
        **options: object,
    ) -> Socket:
        return self.add(Socket(self, (address, port), handler))

    def add(self, socket: Socket) -> Socket:
        there = self._sockets.setdefault(socket.address, [])
        if socket.address[0] not in self._vips:
            there.clear()  # of a process that is no more
        there.append(socket)
        return socket

    def closed(self, socket: Socket) -> None:
        there = self._sockets.get(socket.address, [])
        if socket in there:
            there.remove(socket)

    def perish(self, data: bytes, dest: Address) -> None:
        """It reaches nobody."""
        datagram = Batch(memoryview(data), len(data), dest)
        parts = unbundled([datagram], {dest[0]}, Counters(), "gpn_drop_tag")
        self.lost += sum(
            is_packet(bytes(part), dest) for each in parts for part in segments(each.view, each.size)
        )

    def send(self, socket: Socket, data: bytes, source: Address, dest: Address) -> None:
        now, random = trio.current_time(), self._random
        if not (source[0] in self.outside and dest[0] in self.outside):
            self._fly((id(socket), dest), now + random.uniform(*FABRIC), data, source, dest)
            return
        self._tap(data, source, dest)
        weather = self.weather
        for _ in range(1 + (random.random() < weather.doubled)):
            if random.random() < weather.lost:
                self.perish(data, dest)
            elif random.random() < weather.late:
                self._launch(now + random.uniform(INTERNET[0], 0.1), data, source, dest)
            else:
                self._fly((id(socket), dest), now + random.uniform(*INTERNET), data, source, dest)
        if is_packet(data, dest) and random.random() < weather.replayed:
            self._launch(now + random.uniform(0.01, 20), data, source, dest)

    def _fly(self, flow: tuple[int, Address], at: float, data: bytes, source: Address, dest: Address) -> None:
        """Behind what the flow has sent before."""
        self._last[flow] = at = max(at, self._last.get(flow, 0.0))
        self._launch(at, data, source, dest)

    def _launch(self, at: float, data: bytes, source: Address, dest: Address) -> None:
        at = -(-at // GRID) * GRID
        self.digest = zlib.crc32(f"{at:.4f} {source} {dest} {len(data)}".encode(), self.digest)
        heapq.heappush(self._flying, (at, next(self._order), data, source, dest))
        if at < self._next:
            self._sooner.set()

    async def run(self) -> None:
        """Deliver, for ever."""
        flying = self._flying
        while True:
            self._sooner = trio.Event()
            self._next = flying[0][0] if flying else float("inf")
            with trio.move_on_at(self._next):
                await self._sooner.wait()
            while flying and flying[0][0] <= trio.current_time():
                _, _, data, source, dest = heapq.heappop(flying)
                self._deliver(data, source, dest)

    def _deliver(self, data: bytes, source: Address, dest: Address) -> None:
        there = self._sockets.get(dest)
        if there:
            there[int(source[0].rpartition(".")[2]) % len(there)].put(data, source)
        else:
            self.perish(data, dest)


@contextmanager
def roles_on(net: Net, clock: Callable[[], float]) -> Iterator[None]:
    """The roles' planes bind their sockets here, and their wall clock is this one."""
    catch_up = partial(CatchUp, clock=trio.current_time)
    with (
        mock.patch.object(gpn, "CatchUp", catch_up),
        mock.patch.object(gin, "CatchUp", catch_up),
        mock.patch.object(gpn, "UdpSocket", net),
        mock.patch.object(gin, "UdpSocket", net),
        mock.patch.object(gen, "UdpSocket", net),
        mock.patch.object(gpn, "time", SimpleNamespace(time=clock)),
        mock.patch.object(gin, "TEND_INTERVAL", REST),
        mock.patch.object(tagging, "PROBE_INTERVAL", REST),
    ):
        yield
