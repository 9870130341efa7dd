"""Short batches on their way from a GIN or GEN to a GPN: several in one datagram (`wire/bundle.py`).

What a kernel charges for a datagram hardly depends on its length, nor on how many a segmented send cuts it
into. So packets of mixed sizes, and those of many senders, which nothing merges, cost many times what full
batches do, and cost it twice: to send here and to receive in the GPN.

1. While a train is handled (`UdpSocket.receive_train`), short batches to one GPN are gathered, as many as
   arrive there in one piece; at its end nothing is left. No packet waits for another that has not come yet,
   and none to a GPN overtakes another.
2. Long batches go as they are, and so do those that find no company.
3. A GPN gets bundles only while it has been found to take them: probes go to it in bundles, too, and it has
   echoed one lately (`tagging.py`). One of an older version never does.
4. The GPN takes bundles apart before anything else looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from protego_cli.counters import Counters
from protego_cli.errors import Malformed
from protego_cli.net.gso import segments
from protego_cli.net.steering import Sender
from protego_cli.net.udp import LONG, Address, Batch, Buffer
from protego_cli.wire.bundle import BATCH_LENGTH, FIXED_LENGTH, PADDING, WORD, build, could_be, parse

MAX_BATCHES = 64  # of a bundle here

Handle = Callable[[Batch], None]


class Fabric(Sender, Protocol):
    """The part of `UdpSocket` that bundles need."""

    def send_parts(self, parts: Sequence[Buffer], dest: Address, *, tos: int = 0) -> bool: ...

    def room(self, dest: Address) -> int: ...


class Send(Protocol):
    def __call__(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool: ...


class _Bundle:
    """Batches for one GPN, with one TOS, that wait for others."""

    __slots__ = ("left", "packets", "parts", "shapes", "tos")

    def __init__(self, tos: int, room: int) -> None:
        self.tos = tos
        self.left = room - FIXED_LENGTH - PADDING
        self.packets = 0
        self.shapes: list[int] = []
        self.parts: list[Buffer] = []


class Bundler:
    """A `Sender` to GPNs from one socket.

    Its `send` is the socket's own but while a train is handled: to be looked up anew for each batch.
    """

    def __init__(self, fabric: Fabric, counters: Counters, passed: str, refused: str) -> None:
        """What steering counts as `passed` when it sends; what is then refused after all is `refused`."""
        self._fabric = fabric
        self.send: Send = fabric.send
        self._counters = counters
        self._passed = passed
        self._refused = refused
        self._rooms: dict[Address, int] = {}  # of GPNs that take bundles
        self._open: dict[Address, _Bundle] = {}

    def over(self, handle: Handle) -> Callable[[Sequence[Batch]], None]:
        """What hands all batches of a train to `handle`, and gathers what that sends."""

        def handle_train(train: Sequence[Batch]) -> None:
            if len(train) == 1:
                handle(train[0])
                return
            self.send = self._gather
            try:
                for batch in train:
                    handle(batch)
            finally:
                self.send = self._fabric.send
                for dest in list(self._open):
                    self._close(dest)

        return handle_train

    def take(self, gpn: Address, takes: bool) -> None:
        """Whether this GPN takes bundles."""
        if not takes:
            self._rooms.pop(gpn, None)
        elif gpn not in self._rooms:
            self._rooms[gpn] = self._fabric.room(gpn)

    def alone(self, gpn: Address, datagram: bytes) -> None:
        """Send one datagram in a bundle, whether the GPN takes them or not."""
        before, behind = build((len(datagram), len(datagram)), len(datagram))
        self._fabric.send_parts((before, datagram, behind), gpn)

    def _gather(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        """Let it wait for others to the same GPN, or send it behind those that wait."""
        room = self._rooms.get(dest)
        if room is None or source is not None:
            self._close(dest)
            return self._fabric.send(data, size, dest, source=source, tos=tos)
        length = len(data)
        bundle = self._open.get(dest)
        if bundle is not None and (bundle.tos != tos or bundle.left < length + BATCH_LENGTH):
            self._close(dest)
            bundle = None
        if length > LONG * size or not length:
            self._close(dest)
            return self._fabric.send(data, size, dest, tos=tos)
        if bundle is None:
            bundle = self._open[dest] = _Bundle(tos, room)
        bundle.left -= length + BATCH_LENGTH
        bundle.packets += -(-length // size)
        bundle.shapes += min(size, length), length
        bundle.parts.append(data)
        if len(bundle.parts) == MAX_BATCHES or bundle.left < 0:
            self._close(dest)
        return True

    def _close(self, dest: Address) -> None:
        """Send what waits for this GPN."""
        bundle = self._open.pop(dest, None)
        if bundle is None:
            return
        if len(bundle.parts) == 1:
            sent = self._fabric.send(bundle.parts[0], bundle.shapes[0], dest, tos=bundle.tos)
        else:
            before, behind = build(bundle.shapes, sum(bundle.shapes[1::2]))
            sent = self._fabric.send_parts((before, *bundle.parts, behind), dest, tos=bundle.tos)
        if not sent:
            self._counters[self._passed] -= bundle.packets
            self._counters[self._refused] += bundle.packets


def unbundled(train: Sequence[Batch], counters: Counters, dropped: str) -> Sequence[Batch]:
    """A train with its bundles taken apart; those that are malformed are counted as `dropped`."""
    for place, (view, size, _, _) in enumerate(train):
        perhaps = could_be(size) or (size and could_be(len(view) % size))
        if perhaps and _has_bundles(view, size):
            return [*train[:place], *_apart(train[place:], counters, dropped)]
    return train


def _has_bundles(view: memoryview, size: int) -> bool:
    """Whether there may be some: a packet begins with a zero."""
    return 0 in view[::size].tobytes()


def _apart(train: Iterable[Batch], counters: Counters, dropped: str) -> Iterator[Batch]:
    for batch in train:
        view, size, source, tos = batch
        if not size or not _has_bundles(view, size):
            yield batch
            continue
        for segment in segments(view, size):
            if segment[:4] != WORD:
                yield Batch(segment, len(segment), source, tos)
                continue
            try:
                yield from [Batch(part, each, source, tos) for part, each in parse(segment)]
            except Malformed:
                counters[dropped] += 1
