"""GIN and GEN as `protego up` runs them: the real control channel in front, real sockets behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import trio

from protego_cli.config.model import Cluster, Node, Ports
from protego_cli.control.channel import pki
from protego_cli.control.channel.desired_records import Neighbour, Route, Steer
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import EnvironmentFault
from protego_cli.net.steering import SteeringBackend
from protego_cli.plugins.manager import load_plugins
from protego_cli.plugins.steering_backends import Mux
from protego_cli.roles import gen, gin
from protego_cli.wire.tags import TagKind, is_tag, open_tag, seal_tag
from tests.support.control import make_cluster, running_gmn, until
from tests.support.datagrams import Station, esp, station, vxlan

GIN = Node("gin-1", "gin", "127.77.0.1", Ports(ike=0, natt=45101, fabric=45102))
GEN = Node("gen-1", "gen", "127.77.0.2", Ports(vxlan=45103))
GPN = Node("gpn-1", "gpn", "127.77.0.3", Ports(esp=45104, vxlan=45105))
VIP, VTEP, VNI = "127.77.1.1", "127.2.0.1", 1001
SPI = 0xC0FFEE01
KEY = bytes(range(32))
ROUTE = Route("acme/hq", VNI, ("10.2.0.0/24",), "gpn-1")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = make_cluster(tmp_path)
    cluster = msgspec.structs.replace(made, vips=(VIP,), nodes=(made.nodes[0], GIN, GEN, GPN))
    pki.init(cluster)
    return cluster


@pytest.fixture
def gpn_esp() -> Iterator[Station]:
    with station(GPN.address, GPN.ports.esp) as found:
        yield found


@pytest.fixture
def gpn_vxlan() -> Iterator[Station]:
    with station(GPN.address, GPN.ports.vxlan) as found:
        yield found


async def next_packet(at: Station) -> bytes:
    """The next datagram that is no tag."""
    while is_tag((data := (await at.hear())[0])[:4]):
        pass
    return data


async def test_what_came_before_the_first_sync_is_forwarded(cluster: Cluster, gpn_esp: Station) -> None:
    with station("127.77.0.9") as peer:
        async with running_gmn(cluster) as gmn:
            gmn.fabric.desire("gin-1", [Steer(SPI, "gpn-1", *peer.address)])
            await gmn.nursery.start(gin.run, gmn.cluster, GIN, load_plugins())
            peer.say((VIP, GIN.ports.natt), esp(SPI, 5), esp(SPI, 7))
            assert [await next_packet(gpn_esp), await next_packet(gpn_esp)] == [esp(SPI, 5), esp(SPI, 7)]
            await until(lambda: ("up", "gin-1") in gmn.observer.log)
            assert await gmn.fabric.marks([SPI]) == {SPI: 7}


async def test_a_steered_spi_is_effective_when_applied(cluster: Cluster, gpn_esp: Station) -> None:
    with station("127.77.0.9") as peer:
        async with running_gmn(cluster) as gmn:
            await gmn.nursery.start(gin.run, gmn.cluster, GIN, load_plugins())
            await until(lambda: ("up", "gin-1") in gmn.observer.log)
            await gmn.apply("gin-1", [Steer(SPI, "gpn-1", *peer.address)])
            peer.say((VIP, GIN.ports.natt), esp(SPI, 1))
            assert await next_packet(gpn_esp) == esp(SPI, 1)


async def test_a_route_with_a_barrier(cluster: Cluster, gpn_vxlan: Station) -> None:
    order: list[str] = []
    with station(VTEP) as vtep:
        async with running_gmn(cluster) as gmn:
            await gmn.nursery.start(gen.run, gmn.cluster, GEN, load_plugins())
            await until(lambda: ("up", "gen-1") in gmn.observer.log)
            neighbour = Neighbour("gpn-1", "gpn", GPN.address, GPN.ports.esp, GPN.ports.vxlan, KEY)
            await gmn.apply("gen-1", [neighbour, ROUTE])
            vtep.say((GEN.address, GEN.ports.vxlan), vxlan("10.2.0.9", VNI))
            assert await next_packet(gpn_vxlan) == vxlan("10.2.0.9", VNI)

            async def flip() -> None:
                await gmn.apply("gen-1", [msgspec.structs.replace(ROUTE, prefixes=())], barriers=["gpn-1"])
                order.append("applied")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flip)
                while (data := (await gpn_vxlan.hear())[0])[3] != TagKind.BARRIER:
                    pass
                order.append("echoed")
                echo = open_tag(KEY, data, hmac_sha256).echo()
                gpn_vxlan.say((GEN.address, GEN.ports.vxlan), seal_tag(KEY, echo, hmac_sha256))
    assert order == ["echoed", "applied"]


class Unfit(Mux):
    def unavailable(self, role: Literal["gin", "gen"]) -> str | None:
        return 'this kernel lacks it; use ingress = "mux"'


class UnfitPlugins:
    def steering_backends(self) -> dict[str, SteeringBackend]:
        return {"mux": Unfit()}


@pytest.mark.parametrize(("role", "node"), [(gin, GIN), (gen, GEN)])
async def test_a_backend_that_cannot_run_here_is_told(cluster: Cluster, role: object, node: Node) -> None:
    with pytest.raises(EnvironmentFault, match="steering backend mux: this kernel lacks it"):
        await role.run(cluster, node, UnfitPlugins())  # type: ignore[attr-defined]
