"""An on-premises peer of a local run, against a gateway made of the same engine in the other seat."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as FilePath

import pytest

from protego_cli.config.load import load
from protego_cli.config.model import Cluster
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Registry
from protego_cli.esp.peer import PeerTunnel
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import ChildDeleted, ChildEstablished, ChildOffered, ChildSa, Path, Policy
from protego_cli.lab import layout
from protego_cli.lab.peers import PORT, Peer
from protego_cli.lab.tally import Tally
from protego_cli.lab.traffic import Direction, Flow, Numbered, build, parse
from protego_cli.net.gso import segments
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.plugins.manager import load_plugins
from protego_cli.wire.selectors import TrafficSelector

IN, OUT = Flow(1, 0, Direction.IN), Flow(1, 0, Direction.OUT)
NOW = 100.0


class Gateway:
    """One socket at the VIP, engine and ESP behind it; what it sends it hands to the peer itself."""

    def __init__(self, cluster: Cluster, registry: Registry, peer: Peer) -> None:
        (config,) = cluster.tunnels()
        self.registry, self.peer = registry, peer
        self.socket = UdpSocket.bind(config.vip, PORT)
        self.spis = itertools.count(0x1000)
        self.policy = Policy(
            config.id,
            config.peer,
            config.local_id,
            config.remote_id,
            config.auth.file.read_bytes().strip(),
            tuple(TrafficSelector.from_prefix(prefix) for prefix in config.local_ts),
            tuple(TrafficSelector.from_prefix(prefix) for prefix in config.remote_ts),
            config.ike,
            config.esp,
        )
        self.engine = Engine(
            [self.policy], registry, cluster.ike, os.urandom, self.spis.__next__, 1, Counters()
        )
        self.tunnel = PeerTunnel(os.urandom)
        self.path = Path(config.vip, PORT, *peer.socket.address)
        self.children: list[ChildSa] = []  # as they came up
        self.deleted: list[int] = []
        self.arrived: list[tuple[int, Numbered]] = []  # (SPI, what came under it)

    def settle(self) -> None:
        """Until neither side has anything more to say. Loopback delivers before `sendmsg` returns."""
        while self._receive() or self._work():
            pass

    def _receive(self) -> bool:
        batch = self.socket.receive()
        if batch is None:
            return False
        for segment in segments(batch.view, batch.size):
            data = bytes(segment)
            if data[:4] == bytes(4):
                self.engine.receive_datagram(data[4:], self.path, NOW)
            else:
                for packet in self.tunnel.open([data]):
                    numbered = parse(packet)
                    assert numbered is not None
                    self.arrived.append((int.from_bytes(data[:4], "big"), numbered))
        return True

    def _work(self) -> bool:
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, ChildOffered | ChildEstablished):
                child = event.child
                suite = self.registry.esp_suite(child.encryption, child.integrity, esn=child.esn)
                selectors = child.local_ts, child.remote_ts
                self.tunnel.install(
                    child.spi_in, child.spi_out, suite, child.key_in, child.key_out, *selectors
                )
                self.children.append(child)
            if isinstance(event, ChildOffered):
                self.tunnel.select(event.child.spi_in)
                self.engine.accept(event.ticket, NOW)
            elif isinstance(event, ChildDeleted):
                self.deleted.append(event.spi_in)
        datagrams = self.engine.datagrams_to_send()
        for datagram in datagrams:
            self.give(bytes(4) + datagram.data)
        return bool(datagrams)

    def give(self, data: bytes) -> None:
        self.peer.receive(Batch(memoryview(data), len(data), self.socket.address), NOW)

    def send(self, numbers: range) -> None:
        for datagram in self.tunnel.seal(build(OUT, number) for number in numbers):
            self.give(datagram)

    def rekey(self) -> ChildSa:
        self.engine.rekey_child(self.children[-1].spi_in, next(self.spis), NOW)
        self.settle()
        return self.children[-1]

    def spi_of(self, numbers: range) -> int:
        """The gateway's SPI under which the peer sends these."""
        self.arrived.clear()
        self.peer.send(numbers)
        self.settle()
        assert [numbered for _, numbered in self.arrived] == [Numbered(IN, number) for number in numbers]
        (spi,) = {spi for spi, _ in self.arrived}
        return spi


@pytest.fixture
def gateway(tmp_path: FilePath) -> Iterator[Gateway]:
    block, holder = layout.claim()
    with holder:
        plan = layout.plan(tmp_path, block, tenants=1, gpns=2, pps=200)
        layout.write(plan)
        cluster, registry = load(FilePath(plan.cluster_file)), load_plugins().registry()
        peer = Peer(plan.sites[0], cluster.tunnels()[0], cluster, registry, Tally([OUT]))
        gateway = Gateway(cluster, registry, peer)
        yield gateway
        peer.socket.close()
        gateway.socket.close()


def test_it_dials_in_and_traffic_flows_both_ways(gateway: Gateway) -> None:
    assert not gateway.peer.count().up
    gateway.peer.connect(NOW)
    gateway.settle()
    assert gateway.peer.count().up
    assert gateway.spi_of(range(8)) == gateway.children[0].spi_in
    gateway.send(range(8))
    assert gateway.peer.count().received == 8


def test_after_a_rekey_it_seals_on_the_old_sa_until_the_new_one_carries_a_packet(gateway: Gateway) -> None:
    gateway.peer.connect(NOW)
    gateway.settle()
    old, new = gateway.children[0], gateway.rekey()
    gateway.send(range(1))  # on the old SA still
    assert gateway.spi_of(range(3)) == old.spi_in
    gateway.tunnel.select(new.spi_in)
    gateway.send(range(1, 2))
    assert gateway.spi_of(range(3, 6)) == new.spi_in
    assert gateway.peer.count().received == 2


def test_a_delete_moves_its_sealing_too_and_the_old_sa_opens_a_while_longer(gateway: Gateway) -> None:
    gateway.peer.connect(NOW)
    gateway.settle()
    old, new = gateway.children[0], gateway.rekey()
    gateway.engine.delete_child(old.spi_in, NOW)
    gateway.settle()
    assert gateway.deleted == [old.spi_in]
    assert gateway.spi_of(range(3)) == new.spi_in
    gateway.send(range(2))  # late, on the old SA
    assert gateway.peer.count().received == 2
    assert gateway.spi_of(range(3, 6)) == new.spi_in
    gateway.peer.tick(NOW + 60)
    gateway.send(range(2, 4))
    assert gateway.peer.count().received == 2
    assert gateway.peer.counters["gpn_drop_unknown_spi"] == 2


def test_esp_from_anywhere_but_the_vip_is_misdelivered(gateway: Gateway) -> None:
    gateway.peer.connect(NOW)
    gateway.settle()
    for datagram in gateway.tunnel.seal([build(OUT, 0)]):
        gateway.peer.receive(Batch(memoryview(datagram), len(datagram), ("127.0.0.1", PORT)), NOW)
    assert (gateway.peer.count().received, gateway.peer.tally.misdelivered) == (0, 1)


def test_a_refused_handshake_is_told(gateway: Gateway) -> None:
    gateway.engine.set_policies([replace(gateway.policy, psk=b"another")])
    gateway.peer.connect(NOW)
    gateway.settle()
    assert not gateway.peer.count().up
    assert "AUTHENTICATION_FAILED" in (gateway.peer.count().error or "")
