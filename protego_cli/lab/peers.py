"""`protego lab-peers PLAN`: every on-premises peer, in one process that counts what it sends and receives.

1. Each peer has a socket at an address of its own, port 4500, and dials the VIP's 4500 (RFC 7296 2.23): IKE
   behind a non-ESP marker and ESP share it (RFC 3948 2).
2. Its IKE is Protego's own engine in the initiator's seat; its ESP is `esp/peer.py`.
3. When the gateway rekeys, the new SA is installed before the answer; sealing stays on the old one until a
   packet arrives on the new, or the gateway deletes the old (RFC 7296 2.8). The old inbound SA goes on
   opening what is still on its way for as long as the cluster's own linger.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path as FilePath

import trio

from protego_cli.config.load import load, load_plugins_section
from protego_cli.config.model import Cluster, TunnelConfig
from protego_cli.config.secrets import read_secret
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Registry
from protego_cli.esp.peer import PeerTunnel
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import (
    ChildDeleteOffered,
    ChildEstablished,
    ChildOffered,
    ChildSa,
    Event,
    ExchangeFailed,
    IkeClosed,
    IkeDeleteOffered,
    NegotiationFailed,
    Path,
    Policy,
)
from protego_cli.lab.endpoint import pacer_of, run, transmit
from protego_cli.lab.plan import Plan, Site, read
from protego_cli.lab.protocol import SiteCount, Snapshot
from protego_cli.lab.tally import Tally
from protego_cli.lab.traffic import Direction, Flow, build
from protego_cli.net.gso import segments
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.plugins.manager import load_plugins
from protego_cli.roles.policies import policy_of

PORT = 4500
_NON_ESP = bytes(4)  # RFC 3948 2.2
_KEEPALIVE = b"\xff"  # RFC 3948 2.3
_EPOCH = 1  # a peer lives as long as its process


class Peer:
    """One on-premises gateway with its tunnel."""

    def __init__(
        self, site: Site, config: TunnelConfig, cluster: Cluster, registry: Registry, tally: Tally
    ) -> None:
        self.socket = UdpSocket.bind(site.peer, PORT)
        self.sent = 0
        self.refused = 0
        self.receives = Flow(site.tenant, 0, Direction.OUT)
        self.counters = Counters()
        self._sends = Flow(site.tenant, 0, Direction.IN)
        self.tally = tally
        self._registry = registry
        self._linger = cluster.ike.linger
        self._gateway = (config.vip, PORT)
        self._name = config.id
        self._engine = Engine(
            [peers_policy(config)], registry, cluster.ike, os.urandom, _new_spi, _EPOCH, self.counters
        )
        self._tunnel = PeerTunnel(os.urandom, self.counters)
        self._sealing: int | None = None  # inbound SPI of the SA we seal on
        self._leaving: list[tuple[float, int]] = []  # (when, inbound SPI), oldest first
        self._error: str | None = None

    # ---- what the frame asks

    def connect(self, now: float) -> None:
        self._engine.initiate(self._name, Path(*self.socket.address, *self._gateway), _new_spi(), now)
        self._work(now)

    def rekey(self, now: float) -> None:
        if self._sealing is not None:
            self._engine.rekey_child(self._sealing, _new_spi(), now)
            self._work(now)

    def tick(self, now: float) -> None:
        deadline = self._engine.timer()
        if deadline is not None and deadline <= now:
            self._engine.handle_timer(now)
            self._work(now)
        while self._leaving and self._leaving[0][0] <= now:
            self._tunnel.drop(self._leaving.pop(0)[1])

    def send(self, numbers: range) -> None:
        datagrams = self._tunnel.seal(build(self._sends, number) for number in numbers)
        self.sent += len(numbers)
        self.refused += transmit(self.socket, datagrams, self._gateway)

    def receive(self, batch: Batch, now: float) -> None:
        sealed: list[bytes] = []
        for segment in segments(batch.view, batch.size):
            data = bytes(segment)
            if data[:4] == _NON_ESP:
                self._engine.receive_datagram(data[4:], Path(*self.socket.address, *batch.source), now)
                self._work(now)
            elif data != _KEEPALIVE:
                sealed.append(data)
        if sealed and batch.source != self._gateway:  # direct return comes from the VIP too
            self.tally.misdelivered += len(sealed)
            return
        for packet in self._tunnel.open(sealed, now, batch.tos):
            self.tally.add(self.receives, packet)
        for spi in self._tunnel.take_first():
            self._seal_on(spi)

    def count(self, expected: int = 0) -> SiteCount:
        """`expected`: how many the other end has sent, where that is known."""
        flow = self.tally.flows[self.receives]
        return SiteCount(
            up=self._sealing is not None,
            error=self._error,
            sent=self.sent,
            received=flow.received,
            duplicated=flow.duplicated,
            reordered=flow.reordered,
            gaps=flow.gaps(expected),
        )

    # ---- IKE

    def _work(self, now: float) -> None:
        """Act on the engine's events, then send what it has to say."""
        while (event := self._engine.next_event()) is not None:
            self._act(event, now)
        for datagram in self._engine.datagrams_to_send():
            data = _NON_ESP + datagram.data
            dest = (datagram.path.remote, datagram.path.remote_port)
            self.refused += not self.socket.send(data, len(data), dest)

    def _act(self, event: Event, now: float) -> None:
        match event:
            case ChildEstablished(child=child, replaces=old):
                self._install(child)
                if event.redundant:
                    return
                self._seal_on(child.spi_in)
                if old is not None:
                    self._leaving.append((now + self._linger, old))
                    self._engine.delete_child(old, now)
            case ChildOffered(ticket=ticket, child=child):
                self._install(child)
                self._engine.accept(ticket, now)
            case ChildDeleteOffered(ticket=ticket, spi_in=spi):
                self._leaving.append((now + self._linger, spi))
                if spi == self._sealing:
                    self._seal_elsewhere()
                self._engine.accept(ticket, now)
            case IkeDeleteOffered(ticket=ticket):
                self._engine.accept(ticket, now)
            case IkeClosed(reason=reason):
                self._error, self._sealing = reason, None
            case ExchangeFailed(detail=detail) | NegotiationFailed(detail=detail):
                self._error = detail

    def _install(self, child: ChildSa) -> None:
        self._tunnel.install(
            child.spi_in,
            child.spi_out,
            self._registry.esp_suite(child.encryption, child.integrity, esn=child.esn),
            child.key_in,
            child.key_out,
            child.local_ts,
            child.remote_ts,
        )

    def _seal_on(self, spi: int) -> None:
        """Seal on an SA, unless the gateway has deleted it (its first packet may come that late)."""
        if all(spi != leaving for _, leaving in self._leaving):
            self._tunnel.select(spi)
            self._sealing = spi

    def _seal_elsewhere(self) -> None:
        """The SA we sealed on was deleted: take the newest that was not."""
        self._sealing = None
        for other in reversed(self._tunnel.installed()):
            if self._sealing is None:
                self._seal_on(other)


def peers_policy(config: TunnelConfig) -> Policy:
    """The tunnel as its other end has it."""
    return policy_of(config, read_secret(config.auth.file)).mirrored(config.vip)


def _new_spi() -> int:
    """Values to 255 are reserved (RFC 4303 2.1)."""
    return 256 + secrets.randbelow(2**32 - 256)


def main(path: FilePath) -> None:
    """Run every peer of the plan until stdin closes."""
    trio.run(_run, read(path))


async def _run(plan: Plan) -> None:
    file = FilePath(plan.cluster_file)
    registry = load_plugins(load_plugins_section(file)).registry()
    cluster = load(file)
    configs = {config.id: config for config in cluster.tunnels()}
    tally = Tally(Flow(site.tenant, 0, Direction.OUT) for site in plan.sites)
    peers = [Peer(site, configs[site.tunnel], cluster, registry, tally) for site in plan.sites]
    pacer = pacer_of(plan)

    def look(sent: Sequence[int]) -> Snapshot:
        expected = sent or [0] * len(peers)
        drops = {
            "refused by the kernel": sum(peer.refused for peer in peers),
            "receive buffer full": sum(peer.socket.overflow() for peer in peers),
        }
        for peer in peers:
            for name, count in peer.counters.nonzero().items():
                drops[name] = drops.get(name, 0) + count
        return Snapshot(
            sites=tuple(map(Peer.count, peers, expected)),
            misdelivered=tally.misdelivered,
            corrupted=tally.corrupted + drops.get("gpn_drop_auth", 0),
            seconds=pacer.seconds,
            drops=drops,
        )

    await run(peers, pacer, look)
