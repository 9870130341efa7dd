"""A peer that dials a gateway: Protego's own IKE engine in the initiator's seat, on a socket of its own.

IKE goes behind a non-ESP marker on the socket that ESP uses, too (RFC 3948 2). Whoever receives on the socket
hands over what bears the marker; `dial` and `attend` receive by themselves. When the gateway rekeys, the new
CHILD_SA is accepted at once, and whoever seals finds it in `children`; the old one may be deleted any time.
"""

from __future__ import annotations

import os
import secrets
import select
import time

from protego_cli.config.model import IkeSettings
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite, Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.esp.sa import InboundSa, OutboundSa
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import (
    ChildDeleteOffered,
    ChildEstablished,
    ChildOffered,
    ChildSa,
    ExchangeFailed,
    IkeClosed,
    IkeDeleteOffered,
    NegotiationFailed,
    Path,
    Policy,
)
from protego_cli.net.gso import segments
from protego_cli.net.udp import Address, UdpSocket

NON_ESP = bytes(4)
PATIENCE = 10.0  # seconds for a handshake
REGISTRY = Registry(("bench", algorithm) for algorithm in ALGORITHMS)


class Initiator:
    """One peer with its tunnel."""

    def __init__(self, sock: UdpSocket, gateway: Address, policy: Policy) -> None:
        self.socket = sock
        self.gateway = gateway
        self.children: dict[int, ChildSa] = {}  # by inbound SPI, the oldest first
        self._tunnel = policy.tunnel
        self._engine = Engine([policy], REGISTRY, IkeSettings(), os.urandom, _new_spi, 1, Counters())

    def dial(self) -> ChildSa:
        """Bring the tunnel up. Raises RuntimeError when it does not come up."""
        path = Path(*self.socket.address, *self.gateway)
        self._engine.initiate(self._tunnel, path, _new_spi(), time.monotonic())
        self._work()
        deadline = time.monotonic() + PATIENCE
        while not self.children:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.gateway[0]} brought no tunnel up within {PATIENCE:g} s")
            select.select([self.socket.fileno()], [], [], 0.05)
            self.attend()
        return next(iter(self.children.values()))

    def attend(self) -> None:
        """Take what waits in the socket, ESP included, and do what is due."""
        while (batch := self.socket.receive()) is not None:
            for segment in segments(batch.view, batch.size):
                self.hear(segment)
        self.tick()

    def hear(self, datagram: memoryview) -> None:
        """Take what may be IKE."""
        if datagram[:4] == NON_ESP:
            path = Path(*self.socket.address, *self.gateway)
            self._engine.receive_datagram(bytes(datagram[4:]), path, time.monotonic())
            self._work()

    def tick(self) -> None:
        """Do what is due; to be called now and then."""
        deadline, now = self._engine.timer(), time.monotonic()
        if deadline is not None and deadline <= now:
            self._engine.handle_timer(now)
            self._work()

    def _work(self) -> None:
        now = time.monotonic()
        while (event := self._engine.next_event()) is not None:
            match event:
                case ChildEstablished(child=child):
                    self.children[child.spi_in] = child
                case ChildOffered(ticket=ticket, child=child):
                    self.children[child.spi_in] = child
                    self._engine.accept(ticket, now)
                case ChildDeleteOffered(ticket=ticket, spi_in=spi):
                    self.children.pop(spi, None)
                    self._engine.accept(ticket, now)
                case IkeDeleteOffered(ticket=ticket):
                    self._engine.accept(ticket, now)
                case IkeClosed(reason=why) | ExchangeFailed(detail=why) | NegotiationFailed(detail=why):
                    raise RuntimeError(f"IKE with {self.gateway[0]}: {why}")
        for datagram in self._engine.datagrams_to_send():
            data = NON_ESP + datagram.data
            self.socket.send(data, len(data), (datagram.path.remote, datagram.path.remote_port))


class Agreed:
    """The same where both ends were told of a CHILD_SA, and nobody speaks IKE."""

    def __init__(self, sock: UdpSocket, gateway: Address, child: ChildSa) -> None:
        self.socket = sock
        self.gateway = gateway
        self.children = {child.spi_in: child}

    def attend(self) -> None:
        while self.socket.receive() is not None:
            pass

    def hear(self, datagram: memoryview) -> None:
        """There is nothing that could be IKE."""


def suite(child: ChildSa) -> EspSuite:
    return REGISTRY.esp_suite(child.encryption, child.integrity, esn=child.esn)


def sealer(child: ChildSa) -> OutboundSa:
    """The peer's half that seals."""
    return OutboundSa(
        *(child.spi_out, suite(child), child.key_out, os.urandom),
        local_ts=child.local_ts,
        remote_ts=child.remote_ts,
        lo=1,
        hi=1 << 32,
    )


def opener(child: ChildSa) -> InboundSa:
    """The peer's half that opens."""
    return InboundSa(
        child.spi_in, suite(child), child.key_in, local_ts=child.local_ts, remote_ts=child.remote_ts
    )


def _new_spi() -> int:
    """Values to 255 are reserved (RFC 4303 2.1)."""
    return 256 + secrets.randbelow(2**32 - 256)
