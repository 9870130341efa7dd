"""A GIN's part of IKE: messages between the VIP's sockets and the GMN, in envelopes.

Peer to GMN: an IKE message (its non-ESP marker removed by `vip.py`) is wrapped with its outer addresses and
sent from the fabric socket.
GMN to peer: an envelope from the GMN's own address and with a good MAC leaves from the VIP's socket that it
names: as it is on the IKE port, behind a non-ESP marker on the NAT traversal port (RFC 3948 2.2), which also
takes the IKE port's place where the node does not listen on that.

What comes from strangers is passed on at a bounded rate (`net/callers.py`), so that a flood of it leaves the
GMN time for the peers that it knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from protego_cli.counters import Counters
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import Malformed
from protego_cli.net.callers import Callers
from protego_cli.net.gso import segments
from protego_cli.net.steering import Sender
from protego_cli.net.udp import Address, Batch
from protego_cli.net.vip import NON_ESP_MARKER
from protego_cli.wire.envelope import Envelope, open_envelope, seal_envelope
from protego_cli.wire.tags import is_tag

_SPI_I: Final = slice(8)
_SPI_R: Final = slice(8, 16)  # of an IKE header; zero in a first message
_NONE: Final = bytes(8)


class VipSocket(Sender, Protocol):
    """The part of a VIP's `UdpSocket` that the relay needs."""

    address: Address


class IkeRelay:
    """Carries IKE between peers and the GMN at `gmn`. `key` is that of the pair, None until known."""

    def __init__(
        self, fabric: Sender, gmn: Address, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.callers = Callers(clock())
        self.key: bytes | None = None
        self._fabric = fabric
        self._gmn = gmn
        self._counters = counters
        self._natt: dict[str, Sender] = {}
        self._ike: dict[Address, Sender] = {}

    def attach(self, natt: Iterable[VipSocket], ike: Iterable[VipSocket]) -> None:
        """The VIPs' sockets, which messages to peers leave from."""
        self._natt = {sock.address[0]: sock for sock in natt}
        self._ike = {sock.address: sock for sock in ike}

    def from_peer(self, local: Address, message: memoryview | bytes, source: Address) -> None:
        if self.key is None:
            self._counters["gin_drop_send"] += 1
            return
        first = bytes(message[_SPI_I]) if message[_SPI_R] == _NONE else None
        if not self.callers.admits(source[0], self._clock(), first):
            self._counters["gin_drop_stranger" if first is None else "gin_drop_first"] += 1
            return
        envelope = seal_envelope(self.key, Envelope(*local, *source, message), hmac_sha256)
        sent = self._fabric.send(envelope, len(envelope), self._gmn)
        self._counters["gin_ike_in" if sent else "gin_drop_send"] += 1

    def from_fabric(self, batch: Batch) -> None:
        """What arrived on the fabric socket and is no tag of a GPN."""
        for segment in segments(batch.view, batch.size):
            if batch.source == self._gmn:
                self._to_peer(segment)
            else:
                self._counters["gin_drop_tag" if is_tag(segment[:4]) else "gin_drop_envelope"] += 1

    def _to_peer(self, datagram: memoryview) -> None:
        if self.key is None:
            self._counters["gin_drop_envelope"] += 1
            return
        try:
            envelope = open_envelope(self.key, datagram, hmac_sha256)
        except Malformed:
            self._counters["gin_drop_envelope"] += 1
            return
        data = envelope.data
        vip = self._ike.get((envelope.local, envelope.local_port))
        if vip is None:
            vip = self._natt.get(envelope.local)
            data = b"".join((NON_ESP_MARKER, data))
        if vip is None:
            self._counters["gin_drop_envelope"] += 1
            return
        if envelope.data[_SPI_R] == _NONE:  # an answer that leaves no state: a cookie, or another group
            self.callers.begin_again(envelope.remote, bytes(envelope.data[_SPI_I]))
        sent = vip.send(data, len(data), (envelope.remote, envelope.remote_port))
        self._counters["gin_ike_out" if sent else "gin_drop_send"] += 1
