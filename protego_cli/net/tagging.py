"""The tags that a GIN or GEN exchanges with the GPNs, from the socket its packets leave by.

Probes: five a second to each GPN; it echoes each behind the packets it received before. A GPN is silent
when several probes in a row, the first more than a second old, have no echo: a node that was itself stopped
for a while has sent none, and blames nobody.

Bundled probes: one beside each probe, in a bundle. A GPN that echoes them takes bundles (`bundles.py`).

Barriers: sent behind everything forwarded so far. The echo says that the GPN has sent all of that on. A
barrier or its echo may be lost like any datagram, so the same one is sent again every 20 ms.

Returns: ESP that the kernel steered to the wrong GPN comes back once, for the GIN to steer by its own table.

Only a tag from a GPN's own address with a good MAC counts, an echo only with a nonce that waits for it;
anything else that claims to be a tag is dropped and counted.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator

import trio

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import RandomSource
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import Malformed, Unreachable
from protego_cli.net.bundles import Bundler
from protego_cli.net.gso import segments
from protego_cli.net.steering import Gpn, Sender
from protego_cli.net.udp import Address, Batch
from protego_cli.wire.columns import column
from protego_cli.wire.tags import MAX_RESERVED_SPI, TAG_LENGTH, Tag, TagKind, is_tag, open_tag, seal_tag

PROBE_INTERVAL = 0.2
SILENCE = 1.0  # of a GPN, in seconds
SILENT_PROBES = 4  # without echo, at the least
MAX_PROBES = 16  # whose echo is still recognised
BUNDLED_PROBES = 3  # in a row without echo, and a GPN takes no bundles
BARRIER_RESEND = 0.02
BARRIER_TIMEOUT = 2.0


def _untagged(view: memoryview, size: int) -> bool:
    """Whether certainly none of a batch is a tag. Nearly all that GPNs send is VXLAN, whose flags say so."""
    count = -(-len(view) // size) if size else 0
    if len(view) - (count - 1) * size < 4:
        return False
    firsts: tuple[int, ...] = column(size, count, 4).unpack_from(view)
    return min(firsts) > MAX_RESERVED_SPI


class _Pulse:
    """What is known of one GPN's heartbeat."""

    __slots__ = ("bundled", "gpn", "missed", "probes", "since")

    def __init__(self, gpn: Gpn) -> None:
        self.gpn = gpn
        self.probes: dict[int, float] = {}  # nonce -> time sent, of the latest ones without echo
        self.since: float | None = None  # when the first of the probes without echo was sent
        self.bundled: int | None = None  # nonce of the last bundled probe, until it is echoed
        self.missed = 0  # bundled probes without echo

    def sent(self, nonce: int, now: float) -> None:
        if len(self.probes) >= MAX_PROBES:
            del self.probes[next(iter(self.probes))]
        self.probes[nonce] = now
        if self.since is None:
            self.since = now

    def echoed(self, nonce: int) -> None:
        """An echo also answers the probes before it; one of an unknown nonce answers none."""
        sent = self.probes.get(nonce)
        if sent is not None:
            self.probes = {later: at for later, at in self.probes.items() if at > sent}
            self.since = next(iter(self.probes.values()), None)

    def silent(self, now: float) -> bool:
        return self.since is not None and now - self.since > SILENCE and len(self.probes) >= SILENT_PROBES


class TagLink:
    """Probes and barriers between one socket and the GPNs."""

    def __init__(
        self,
        fabric: Sender,
        counters: Counters,
        dropped: str,
        returned: Callable[[bytes, Address, int], None] | None = None,
        *,
        bundler: Bundler | None = None,
        random: RandomSource = os.urandom,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """`dropped`: the counter of tags that are malformed, forged or foreign; `returned` takes the packet,
        outer source and TOS of a RETURN, where there may be any; `bundler` learns which GPNs take bundles.
        """
        self._fabric = fabric
        self._counters = counters
        self._dropped = dropped
        self._returned = returned
        self._bundler = bundler
        self._random = random
        self._clock = clock
        self._pulses: dict[str, _Pulse] = {}
        self._sources: dict[Address, _Pulse] = {}
        self._barriers: dict[tuple[str, int], trio.Event] = {}

    def put_gpn(self, gpn: Gpn) -> None:
        known = self._pulses.get(gpn.name)
        if known is None or known.gpn != gpn:
            self.drop_gpn(gpn.name)
            self._pulses[gpn.name] = self._sources[gpn.address] = _Pulse(gpn)

    def drop_gpn(self, name: str) -> None:
        pulse = self._pulses.pop(name, None)
        if pulse is not None and self._sources.get(pulse.gpn.address) is pulse:
            del self._sources[pulse.gpn.address]
            if self._bundler is not None:
                self._bundler.take(pulse.gpn.address, False)

    def concerns(self, batch: Batch) -> bool:
        """Whether there may be tags in a batch: it comes from a GPN."""
        return batch.source in self._sources

    def take(self, batch: Batch) -> Iterable[Batch]:
        """Handle the tags in a batch and give back the rest."""
        pulse = self._sources.get(batch.source)
        if pulse is None or _untagged(batch.view, batch.size):
            return (batch,)
        return self._sort(pulse, batch)

    def _sort(self, pulse: _Pulse, batch: Batch) -> Iterator[Batch]:
        for segment in segments(batch.view, batch.size):
            if is_tag(segment[:4]):
                self._echo(pulse, segment, batch.tos)
            else:
                yield Batch(segment, len(segment), batch.source, batch.tos)

    def silent(self) -> tuple[str, ...]:
        """The GPNs that do not echo."""
        now = self._clock()
        return tuple(name for name, pulse in self._pulses.items() if pulse.silent(now))

    async def probe(self, noticed: Callable[[], None]) -> None:
        """Probe every GPN, for ever; `noticed` is called when one has fallen silent or come back."""
        before = self.silent()
        while True:
            for pulse in self._pulses.values():
                self._send_probe(pulse)
            await trio.sleep(PROBE_INTERVAL)
            silent = self.silent()
            if silent != before:
                noticed()
            before = silent

    def barrier(self, name: str) -> Awaitable[None]:
        """Send a barrier; over once the GPN has sent on all that was forwarded to it before this call. Raises
        Unreachable.
        """
        pulse = self._pulses.get(name)
        if pulse is None:
            raise Unreachable(f"no barrier to {name}: this node does not know that GPN")
        nonce = self._nonce()
        datagram = seal_tag(pulse.gpn.tag_key, Tag(TagKind.BARRIER, nonce), hmac_sha256)
        self._barriers[name, nonce] = trio.Event()
        self._fabric.send(datagram, TAG_LENGTH, pulse.gpn.address)
        return self._echoed(pulse.gpn, nonce, datagram)

    async def _echoed(self, gpn: Gpn, nonce: int, datagram: bytes) -> None:
        echoed = self._barriers[gpn.name, nonce]
        try:
            with trio.move_on_after(BARRIER_TIMEOUT):
                while True:
                    with trio.move_on_after(BARRIER_RESEND):
                        await echoed.wait()
                        return
                    self._fabric.send(datagram, TAG_LENGTH, gpn.address)
        finally:
            del self._barriers[gpn.name, nonce]
        raise Unreachable(f"{gpn.name} did not echo a barrier within {BARRIER_TIMEOUT:g} s")

    def _send_probe(self, pulse: _Pulse) -> None:
        nonce = self._nonce()
        pulse.sent(nonce, self._clock())
        datagram = seal_tag(pulse.gpn.tag_key, Tag(TagKind.PROBE, nonce), hmac_sha256)
        self._fabric.send(datagram, TAG_LENGTH, pulse.gpn.address)
        if self._bundler is not None:
            self._send_bundled(self._bundler, pulse)

    def _send_bundled(self, bundler: Bundler, pulse: _Pulse) -> None:
        if pulse.bundled is not None:
            pulse.missed += 1
            if pulse.missed >= BUNDLED_PROBES:
                bundler.take(pulse.gpn.address, False)
        pulse.bundled = self._nonce()
        probe = seal_tag(pulse.gpn.tag_key, Tag(TagKind.PROBE, pulse.bundled), hmac_sha256)
        bundler.alone(pulse.gpn.address, probe)

    def _echo(self, pulse: _Pulse, datagram: memoryview, tos: int) -> None:
        try:
            tag = open_tag(pulse.gpn.tag_key, datagram, hmac_sha256)
        except Malformed:
            self._counters[self._dropped] += 1
            return
        if tag.kind is TagKind.PROBE_ECHO:
            if self._bundler is not None and tag.nonce == pulse.bundled:
                pulse.bundled, pulse.missed = None, 0
                self._bundler.take(pulse.gpn.address, True)
            pulse.echoed(tag.nonce)
        elif tag.kind is TagKind.BARRIER_ECHO:
            # A barrier that was sent twice is echoed twice: the second echo finds nobody, which is no fault.
            waiting = self._barriers.get((pulse.gpn.name, tag.nonce))
            if waiting is not None:
                waiting.set()
        elif tag.kind is TagKind.RETURN and self._returned is not None and len(tag.address) == 4:
            self._returned(tag.packet, (socket.inet_ntoa(tag.address), tag.port), tos)
        else:
            self._counters[self._dropped] += 1

    def _nonce(self) -> int:
        return int.from_bytes(self._random(8))
