"""The coarse ceilings of a GIN and a GEN: what is above them goes no further."""

from __future__ import annotations

from protego_cli.config.model import Rate
from protego_cli.counters import Counters
from protego_cli.esp.sa import OutboundSa
from protego_cli.net.egress import MuxEgress
from protego_cli.net.ingress import OUTER, MuxIngress
from protego_cli.net.steering import Gpn
from protego_cli.net.udp import Batch
from protego_cli.wire.vxlan import FRAME_LENGTH
from tests.support.datagrams import esp, vxlan
from tests.support.esp_suites import SUITES, key
from tests.support.senders import RecordingSender

GPN = Gpn("gpn-1", ("10.10.0.21", 4500), bytes(32))
PEER, VTEP = ("198.51.100.7", 4500), ("10.20.0.5", 51111)
SPI, OTHER = 0x11223344, 0xAABBCCDD
ACME, GLOBEX = 1001, 1002
SIZE = 1000  # of an inner packet
TEN = Rate(8 * 10 * SIZE, 10 * SIZE)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Gin:
    def __init__(self) -> None:
        self.fabric, self.counters, self.clock = RecordingSender(), Counters(), Clock()
        self.steering = MuxIngress(self.fabric, self.counters, self.clock)
        self.steering.put_gpn(GPN)
        for spi in (SPI, OTHER):
            self.steering.steer(spi, "gpn-1", PEER)

    def passes(self, *packets: bytes, spi: int = SPI, source: tuple[str, int] = PEER) -> list[bytes]:
        self.fabric.sent.clear()
        size = len(packets[0])
        data = memoryview(b"".join(packets))
        assert self.steering.forward(spi, data, size, len(packets), len(packets), source, 0)
        return [
            bytes(sent[0][at : at + sent[1]])
            for sent in self.fabric.sent
            for at in range(0, len(sent[0]), sent[1])
        ]


def packets(count: int, spi: int = SPI, size: int = SIZE + OUTER) -> list[bytes]:
    return [esp(spi, 1 + n, size) for n in range(count)]


def test_a_gin_passes_the_first_packets_of_an_spi_up_to_its_ceiling() -> None:
    gin = Gin()
    gin.steering.limit(SPI, TEN)
    sent = packets(25)
    assert gin.passes(*sent) == sent[:10]
    assert gin.passes(*sent) == []
    assert gin.counters.nonzero() == {"gin_esp_forwarded": 10, "gin_drop_limit": 40}
    assert gin.passes(*packets(25, OTHER), spi=OTHER) == packets(25, OTHER)
    gin.clock.now = 0.5
    assert gin.passes(*sent) == sent[:5]


def test_packets_from_elsewhere_share_the_ceiling() -> None:
    gin = Gin()
    gin.steering.limit(SPI, TEN)
    assert len(gin.passes(*packets(7), source=("203.0.113.66", 4500))) == 7
    assert len(gin.passes(*packets(7))) == 3


def test_a_ceiling_changes_and_goes_with_its_steer() -> None:
    gin = Gin()
    gin.steering.limit(SPI, TEN)
    assert len(gin.passes(*packets(20))) == 10
    gin.steering.steer(SPI, "gpn-1", PEER)
    gin.steering.limit(SPI, Rate(TEN.bits * 2, TEN.burst))
    gin.clock.now = 0.25
    assert len(gin.passes(*packets(20))) == 5
    gin.steering.limit(SPI, None)
    assert len(gin.passes(*packets(20))) == 20
    assert gin.steering.marks([SPI]) == {SPI: 20}


def test_whatever_a_gpn_would_pass_is_below_twice_its_limit_at_the_gin() -> None:
    """The ceiling counts outer bytes, the limit inner ones: small packets of every suite must fit too."""
    for suite in SUITES:
        sa = OutboundSa(1, suite, key(suite, 1), lambda n: bytes(n), local_ts=(), remote_ts=(), lo=1, hi=2)
        for inner in range(28, 1500):
            padding = -(inner + 2) % max(sa.block, 4)
            size = sa.overhead + inner + padding + 2
            assert max(size - OUTER, OUTER) <= 2 * inner, (suite, inner)


class Gen:
    def __init__(self) -> None:
        self.fabric, self.counters, self.clock = RecordingSender(), Counters(), Clock()
        self.steering = MuxEgress(self.fabric, self.counters, lambda *_: None, self.clock)
        self.steering.put_gpn(GPN)
        self.steering.put_tenant(ACME, [VTEP[0]])
        self.steering.put_tenant(GLOBEX, [VTEP[0]])
        self.steering.put_route("acme/hq", ACME, ["10.2.0.0/24"], "gpn-1")
        self.steering.put_route("acme/lab", ACME, ["10.3.0.0/24"], "gpn-1")
        self.steering.put_route("globex/hq", GLOBEX, ["10.2.0.0/24"], "gpn-1")

    def passes(self, destination: str, count: int, vni: int = ACME) -> int:
        self.fabric.sent.clear()
        packet = vxlan(destination, vni, SIZE + FRAME_LENGTH)
        self.steering.forward(Batch(memoryview(packet * count), len(packet), VTEP, 0))
        return sum(len(sent[0]) // sent[1] for sent in self.fabric.sent)


def test_a_gen_holds_a_tunnel_to_its_ceiling_and_no_other() -> None:
    gen = Gen()
    assert gen.passes("10.2.0.9", 20) == 20
    gen.steering.limit("acme/hq", TEN)
    assert [gen.passes("10.2.0.9", 20), gen.passes("10.2.0.10", 20)] == [10, 0]
    assert [gen.passes("10.3.0.9", 20), gen.passes("10.2.0.9", 20, GLOBEX)] == [20, 20]
    assert gen.counters.nonzero() == {"gen_forwarded": 70, "gen_drop_limit": 30}
    gen.clock.now = 0.5
    assert gen.passes("10.2.0.9", 20) == 5
    gen.steering.limit("acme/hq", None)
    assert gen.passes("10.2.0.9", 20) == 20


def test_the_strands_of_a_tunnel_share_its_ceiling() -> None:
    gen = Gen()
    gen.steering.put_route("acme/hq#2", ACME, ["10.4.0.0/24"], "gpn-1")
    gen.steering.limit("acme/hq", TEN)
    assert [gen.passes("10.4.0.9", 7), gen.passes("10.2.0.9", 7)] == [7, 3]


def test_a_gen_holds_a_tenants_tunnels_together_to_theirs() -> None:
    gen = Gen()
    gen.steering.limit(ACME, TEN)
    assert [gen.passes("10.2.0.9", 7), gen.passes("10.3.0.9", 7)] == [7, 3]
    assert gen.passes("10.2.0.9", 20, GLOBEX) == 20
    gen.steering.limit(ACME, Rate(TEN.bits * 2, TEN.burst))
    gen.clock.now = 0.25
    assert gen.passes("10.3.0.9", 7) == 5


def test_a_route_that_flips_leaves_the_ceiling_as_it_is() -> None:
    gen = Gen()
    gen.steering.put_gpn(Gpn("gpn-2", ("10.10.0.22", 4789), bytes(32)))
    gen.steering.limit("acme/hq", TEN)
    assert gen.passes("10.2.0.9", 8) == 8
    gen.steering.put_route("acme/hq", ACME, ["10.2.0.0/24"], "gpn-2")
    assert gen.passes("10.2.0.9", 8) == 2
    assert gen.fabric.sent[0][2] == ("10.10.0.22", 4789)
