"""A gateway and its reference with the same tenants, tunnels and neighbours."""

from __future__ import annotations

from itertools import groupby
from random import Random
from typing import NamedTuple

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import EspSuite, Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.esp.gateway import Gateway, Neighbour
from protego_cli.esp.outbox import Send
from protego_cli.esp.pairs import SaEntry
from protego_cli.esp.tenants import Vtep
from protego_cli.wire.selectors import TrafficSelector
from tests.support.esp_reference import WINDOW, ReferenceGpn, ReferenceSa
from tests.support.esp_suites import key

REGISTRY = Registry(("built-in", algorithm) for algorithm in ALGORITHMS)
GCM = REGISTRY.esp_suite("aes256gcm16", None, esn=False)
GIN = ("10.10.0.2", 4501)
GEN = ("10.10.0.3", 4789)
GIN_KEY, GEN_KEY = bytes(range(32)), bytes(range(32, 64))
GATEWAY_MAC, VTEP_MAC, VTEP2_MAC = bytes.fromhex("025000001001"), b"\x02" * 5 + b"\x05", b"\x02" * 5 + b"\x06"
ACME, BLUE = 1001, 1002
VTEP, VTEP2, BLUE_VTEP = ("10.20.0.5", 4789), ("10.20.0.6", 4790), ("10.20.0.7", 4789)
VIP = "203.0.113.10"
NOW = 1_000_000.0

VTEPS = {
    ACME: [
        ("10.1.0.0/24", VTEP, VTEP_MAC),
        ("10.1.0.128/25", VTEP2, VTEP2_MAC),
        ("fd00:1::/64", VTEP, VTEP_MAC),
    ],
    BLUE: [("10.1.0.0/24", BLUE_VTEP, VTEP_MAC)],
}


def sas(suite: EspSuite = GCM) -> list[ReferenceSa]:
    """Two tunnels of acme, one within the other's prefix; one of blue with the same prefixes."""

    def sa(n: int, tunnel: str, vni: int, local: list[str], remote: list[str], port: int) -> ReferenceSa:
        keys = key(suite, 2 * n), key(suite, 2 * n + 1)
        spis, peer = (0x11111110 + n, 0x21111110 + n), ("198.51.100.7", port)
        return ReferenceSa(tunnel, vni, *spis, *keys, local, remote, peer, VIP, suite=str(suite))

    return [
        sa(1, "acme/hq", ACME, ["10.1.0.0/24", "fd00:1::/64"], ["10.2.0.0/16", "fd00:2::/64"], 4500),
        sa(2, "acme/annex", ACME, ["10.1.0.0/24"], ["10.2.9.0/24"], 61000),
        sa(3, "blue/hq", BLUE, ["10.1.0.0/24"], ["10.2.0.0/16"], 4501),
    ]


def entry(sa: ReferenceSa, suite: EspSuite = GCM) -> SaEntry:
    return SaEntry(
        spi_in=sa.spi_in,
        spi_out=sa.spi_out,
        tunnel=sa.tunnel,
        vni=sa.vni,
        suite=suite,
        key_in=sa.key_in,
        key_out=sa.key_out,
        local_ts=tuple(map(TrafficSelector.from_prefix, sa.local)),
        remote_ts=tuple(map(TrafficSelector.from_prefix, sa.remote)),
        vip=sa.vip,
        peer=sa.peer,
        seal_lo=sa.next_out,
        seal_hi=sa.hi,
        window=WINDOW,
        dscp=sa.dscp,
    )


class World(NamedTuple):
    gateway: Gateway
    counters: Counters
    reference: ReferenceGpn

    def sa(self, tunnel: str = "acme/hq") -> ReferenceSa:
        return next(sa for sa in self.reference.sas if sa.tunnel == tunnel)

    def receive_esp(
        self, *packets: bytes, source: tuple[str, int] = GIN, now: float = NOW, tos: int = 0
    ) -> list[Send]:
        """Packets as GRO hands them over: equal sizes side by side, the last perhaps shorter."""
        return [
            send
            for batch, size in batches(packets)
            for send in self.gateway.receive_esp(memoryview(batch), size, source, now, tos)
        ]

    def receive_esp_train(self, *packets: bytes, most: int, tos: int = 0) -> list[Send]:
        """The same gathered from short batches."""
        train = [(memoryview(batch), size, GIN, tos) for batch, size in batches(packets, most)]
        return self.gateway.receive_esp_train(train, NOW)

    def receive_vxlan_train(
        self, *frames: bytes, most: int, source: tuple[str, int] = GEN, tos: int = 0
    ) -> list[Send]:
        """Frames gathered from short batches."""
        train = [(memoryview(batch), size, source, tos) for batch, size in batches(frames, most)]
        return self.gateway.receive_vxlan_train(train, NOW)

    def receive_vxlan(
        self, *frames: bytes, source: tuple[str, int] = GEN, now: float = NOW, tos: int = 0
    ) -> list[Send]:
        return [
            send
            for batch, size in batches(frames)
            for send in self.gateway.receive_vxlan(memoryview(batch), size, source, now, tos)
        ]


def world(
    *,
    rules: bool = True,
    room: int | None = None,
    suite: EspSuite = GCM,
    start: int = 1,
    dscp: int | None = None,
    through_gins: bool = False,
    raw_through_gins: bool = False,
) -> World:
    """`room`: how many numbers each SA may seal under, from `start`; `dscp`: of what it seals."""
    counters = Counters()
    gateway = Gateway(
        counters, Random(1).randbytes, through_gins=through_gins, raw_through_gins=raw_through_gins
    )
    gateway.put_neighbour("gin-1", Neighbour(GIN[0], None, GIN_KEY))
    gateway.put_neighbour("gen-1", Neighbour(GEN[0], GEN, GEN_KEY))
    for vni, vteps in VTEPS.items():
        gateway.put_tenant(vni, GATEWAY_MAC, [Vtep(prefix, *address, mac) for prefix, address, mac in vteps])
    reference = ReferenceGpn(sas(suite), {}, VTEPS, GATEWAY_MAC, [GEN])
    for sa in reference.sas:
        sa.next_out = start
        sa.dscp = dscp
        sa.hi = sa.hi if room is None else sa.next_out + room
        assert gateway.put_sa(entry(sa, suite)) == []
        if rules:
            gateway.put_rule(sa.tunnel, sa.spi_in)
            reference.rules[sa.tunnel] = sa.spi_in
    return World(gateway, counters, reference)


def batches(datagrams: tuple[bytes, ...] | list[bytes], most: int = 64) -> list[tuple[bytes, int]]:
    """Buffers as UDP_GRO makes them of datagrams in a row, at most so many of one size at once."""
    made: list[tuple[bytes, int]] = []
    same = [list(run) for _, run in groupby(datagrams, key=len)]
    runs = [run[at : at + most] for run in same for at in range(0, len(run), most)]
    while runs:
        run = runs.pop(0)
        size = len(run[0])
        if runs and 0 < len(runs[0][0]) < size:
            run.append(runs[0].pop(0))
            if not runs[0]:
                runs.pop(0)
        if size:
            made.append((b"".join(run), size))
        else:
            made += [(b"", 0)] * len(run)
    return made


def datagrams(sends: list[Send]) -> list[tuple[tuple[str, int], bytes]]:
    """(destination, datagram) of everything sent, in order."""
    return [
        (send.way.dest, bytes(send.data[at : at + send.size]))
        for send in sends
        for at in range(0, len(send.data), send.size)
    ]


def marked(sends: list[Send]) -> list[tuple[tuple[str, int], bytes, int]]:
    """The same, and the TOS of each."""
    return [(*sent, send.way.tos) for send in sends for sent in datagrams([send])]
