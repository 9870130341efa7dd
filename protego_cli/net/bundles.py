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
4. The GPN takes bundles apart before anything else looks at them; only those of its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Protocol

from protego_cli.counters import Counters
from protego_cli.errors import Malformed
from protego_cli.net.batch import Address, Batch, Buffer, new_batch
from protego_cli.net.gso import segments
from protego_cli.net.steering import Sender
from protego_cli.wire.bundle import (
    BATCH_LENGTH,
    LEAST_LENGTH,
    MAX_BATCHES,
    MAX_PACKETS,
    PADDING,
    WORD,
    build,
    could_be,
    parse,
)

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

    __slots__ = ("left", "parts", "shapes", "tos")

    def __init__(self, tos: int, room: int) -> None:
        self.tos = tos
        self.left = room  # for the packets of one more
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

    def over(
        self, handle: Handle, handle_row: Callable[[Sequence[Batch]], bool]
    ) -> Callable[[Sequence[Batch]], None]:
        """What hands the batches of a train to `handle_row`, or one by one to `handle` where that has done
        nothing and returns False; and gathers what they send.
        """

        def handle_train(train: Sequence[Batch]) -> None:
            if len(train) == 1:
                handle(train[0])
                return
            self.send = self._gather
            try:
                if not handle_row(train):
                    for batch in train:
                        handle(batch)
            finally:
                self.send = self._fabric.send
                for dest, bundle in list(self._open.items()):
                    self._close(dest, bundle)

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
        length, bundle = len(data), self._open.get(dest)
        alone = not 0 < length <= MAX_PACKETS * size or source is not None
        if bundle is None or alone or bundle.tos != tos or length > bundle.left:
            if bundle is not None:
                self._close(dest, bundle)
            room = self._rooms.get(dest, 0) - LEAST_LENGTH - PADDING
            if alone or length > room:
                return self._fabric.send(data, size, dest, source=source, tos=tos)
            bundle = self._open[dest] = _Bundle(tos, room)
        bundle.left -= length + BATCH_LENGTH
        bundle.parts.append(data)
        bundle.shapes += (size if size < length else length), length
        if len(bundle.parts) == MAX_BATCHES:
            self._close(dest, bundle)
        return True

    def _close(self, dest: Address, bundle: _Bundle) -> None:
        """Send what waits for this GPN."""
        del self._open[dest]
        parts, shapes, tos = bundle.parts, bundle.shapes, bundle.tos
        if len(parts) == 1:
            sent = self._fabric.send(parts[0], shapes[0], dest, tos=tos)
        else:
            before, behind = build(shapes, sum(shapes[1::2]))
            sent = self._fabric.send_parts((before, *parts, behind), dest, tos=tos)
        if not sent:
            packets = sum(
                [-(-length // size) for size, length in zip(shapes[::2], shapes[1::2], strict=True)]
            )
            self._counters[self._passed] -= packets
            self._counters[self._refused] += packets


def unbundled(
    train: Sequence[Batch], senders: Container[str], counters: Counters, dropped: str
) -> Sequence[Batch]:
    """A train with its bundles taken apart. Those that are malformed, or come from elsewhere than these
    addresses, are counted as `dropped`.
    """
    for place, (view, size, _, _) in enumerate(train):
        perhaps = could_be(size) or (size and could_be(len(view) % size))
        if perhaps and _has_bundles(view, size):
            found = list(train[:place])
            for batch in train[place:]:
                found += _apart(batch, senders, counters, dropped)
            return found
    return train


def _has_bundles(view: memoryview, size: int) -> bool:
    """Whether there may be some: a packet begins with a zero."""
    return 0 in view[::size].tobytes()


def _apart(batch: Batch, senders: Container[str], counters: Counters, dropped: str) -> list[Batch]:
    view, size, source, tos = batch
    if not size or not _has_bundles(view, size):
        return [batch]
    found = []
    for segment in segments(view, size):
        if segment[:4] != WORD:
            found.append(new_batch((segment, len(segment), source, tos)))
            continue
        try:
            parts = parse(segment) if source[0] in senders else []
        except Malformed:
            parts = []
        found += [new_batch((part, each, source, tos)) for part, each in parts]
        counters[dropped] += not parts
    return found
