"""The built-in steering of a GIN, `mux`: ESP from the VIP to the GPN that holds its SPI.

1. One table lookup per run of packets with one SPI (`vip.py` sorts them), or for a row of short batches.
2. The highest sequence number is kept per SPI: the mark below which nothing may be opened after a takeover.
3. Where the SPI has a ceiling, the packets above it are dropped: nobody can tell here whose they are.
4. The run goes on untouched, TOS copied, in one segmented send from the fabric socket: one flow, so that the
   GPN's kernel can merge it again.
5. Packets that come from elsewhere than the peer's known address go in ORIGIN tags with their source, so that
   the GPN can believe the new address once such a packet opens.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from protego_cli.config.model import Rate
from protego_cli.counters import Counters
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.esp.limits import Bucket, admit_below
from protego_cli.net.gso import segments
from protego_cli.net.steering import Gpn, Offered, Sender
from protego_cli.net.udp import Address, Batch
from protego_cli.wire.tags import MAX_RESERVED_SPI, ORIGIN_LENGTH, Tag, TagKind, seal_tag

OUTER: Final = 48  # bytes of a packet that are not counted: about what ESP adds


class _Target:
    """A GPN by name; without address while the desired state does not hold it."""

    __slots__ = ("dest", "key")

    def __init__(self) -> None:
        self.dest: Address | None = None
        self.key = b""


class _Steered:
    """One SPI: where it goes, from whom it comes, how far it got."""

    __slots__ = ("bytes", "limits", "mark", "packets", "peer", "target", "told")

    def __init__(self, target: _Target, peer: Address) -> None:
        self.target = target
        self.peer = peer
        self.mark = 0
        self.limits: tuple[Bucket, ...] = ()
        self.packets = 0  # below its ceiling, whether its GPN can take them or not
        self.bytes = 0
        self.told = True  # nothing has been counted since it was last asked for


class MuxIngress:
    """`steering.Ingress` in user space: every change acts at once."""

    in_kernel = False

    def __init__(
        self, fabric: Sender, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fabric = fabric
        self._counters = counters
        self._clock = clock
        self._targets: dict[str, _Target] = {}
        self._steered: dict[int, _Steered] = {}
        self._active: list[tuple[int, _Steered]] = []  # those of which that is not so

    def put_gpn(self, gpn: Gpn) -> None:
        target = self._targets.setdefault(gpn.name, _Target())
        target.dest, target.key = gpn.address, gpn.tag_key

    def drop_gpn(self, name: str) -> None:
        target = self._targets.pop(name, None)
        if target is not None:
            target.dest, target.key = None, b""
            if any(steered.target is target for steered in self._steered.values()):
                self._targets[name] = target

    def steer(self, spi: int, gpn: str, peer: Address) -> None:
        if spi <= MAX_RESERVED_SPI:
            raise ValueError(f"SPI {spi} is reserved and cannot be steered")
        target = self._targets.setdefault(gpn, _Target())
        steered = self._steered.setdefault(spi, _Steered(target, peer))
        steered.target, steered.peer = target, peer

    def unsteer(self, spi: int) -> None:
        self._steered.pop(spi, None)

    def settle(self) -> Awaitable[None] | None:
        """Nothing is left to do."""
        return None

    async def tend(self) -> None:
        """There is nothing outside."""

    def limit(self, spi: int, ceiling: Rate | None) -> None:
        steered = self._steered[spi]
        if ceiling is None:
            steered.limits = ()
        elif steered.limits:
            steered.limits[0].set(ceiling, self._clock())
        else:
            steered.limits = (Bucket(ceiling),)

    def forward(
        self,
        spi: int,
        data: memoryview | bytes,
        size: int,
        count: int,
        highest: int,
        source: Address,
        tos: int,
    ) -> bool:
        steered = self._steered.get(spi)
        if steered is None or (dest := steered.target.dest) is None:
            return False
        if highest > steered.mark:
            steered.mark = highest
        if steered.limits:
            admitted = admit_below(steered.limits, max(size - OUTER, OUTER), count, self._clock())
            if admitted < count:
                self._counters["gin_drop_limit"] += count - admitted
                data, count = data[: admitted * size], admitted
                if not count:
                    return True
        self._count(spi, steered, count, len(data))
        if source != steered.peer:
            data = _tagged(steered.target.key, data, size, source)
            size += ORIGIN_LENGTH
        sent = self._fabric.send(data, size, dest, tos=tos)
        self._counters["gin_esp_forwarded" if sent else "gin_drop_send"] += count
        return True

    def forward_row(self, spi: int, row: Sequence[Batch], count: int, highest: int) -> bool:
        steered = self._steered.get(spi)
        if steered is None or steered.limits or row[0].source != steered.peer:
            return False
        dest = steered.target.dest
        if dest is None:
            return False
        steered.mark = max(steered.mark, highest)
        self._count(spi, steered, count, sum([len(view) for view, *_ in row]))
        send, refused = self._fabric.send, 0
        for view, size, _, tos in row:
            if not send(view, size, dest, tos=tos):
                refused += -(-len(view) // size)
        self._counters["gin_esp_forwarded"] += count - refused
        self._counters["gin_drop_send"] += refused
        return True

    def _count(self, spi: int, steered: _Steered, packets: int, length: int) -> None:
        steered.packets += packets
        steered.bytes += length
        if steered.told:
            steered.told = False
            self._active.append((spi, steered))

    def marks(self, spis: Iterable[int]) -> dict[int, int]:
        found = {spi: self._steered.get(spi) for spi in spis}
        return {spi: steered.mark if steered else 0 for spi, steered in found.items()}

    def offered(self) -> list[Offered]:
        active, self._active = self._active, []
        for _, each in active:
            each.told = True
        return [Offered(spi, each.packets, each.bytes, OUTER) for spi, each in active]

    def refresh(self) -> None:
        """All is counted already."""

    def close(self) -> None:
        """There is nothing but memory."""


def _tagged(key: bytes, data: memoryview | bytes, size: int, source: Address) -> bytes:
    """Each packet behind an ORIGIN tag; again segments of one size, the last perhaps shorter."""
    address, port = source
    packed = socket.inet_aton(address)
    return b"".join(
        seal_tag(key, Tag(TagKind.ORIGIN, 0, packed, port, bytes(segment)), hmac_sha256)
        for segment in segments(memoryview(data), size)
    )
