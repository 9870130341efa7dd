"""A whole GIN but its control channel, on loopback addresses: peers, a GMN and GPNs around it.

By `mux` it is where the test is, on ports of the kernel's choice, so that tests never collide. By `nftables`
it is in a network namespace of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from unittest.mock import patch

import trio
import trio.testing

from protego_cli.config.model import Cluster, Node, Ports
from protego_cli.control.channel.desired_records import AnyRecord, Neighbour, Steer
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.node_messages import Welcome
from protego_cli.net import nftables
from protego_cli.plugins.steering_backends import Mux, Nftables
from protego_cli.roles.gin import GinPlane
from protego_cli.wire.tags import TagKind
from tests.support.datagrams import Station, counted, station
from tests.support.netns import Namespace, inside, namespaces

ENVELOPE_KEY = bytes(range(32))
TAG_KEY, TAG_KEY2 = bytes(range(32, 64)), bytes(range(64, 96))
SPI, SPI2 = 0xC0FFEE01, 0xC0FFEE02
BACKENDS = {"mux": Mux, "nftables": Nftables}


class World:
    """The GIN and everything it talks to."""

    def __init__(self, backend: str, stack: ExitStack) -> None:
        self.in_kernel = backend == "nftables"
        port = 4500 if self.in_kernel else 0
        self.peer = stack.enter_context(station("127.20.0.7"))
        self.stranger = stack.enter_context(station("127.20.0.8"))
        self.gmn = stack.enter_context(station("127.10.0.1"))
        self.gpn = stack.enter_context(station("127.10.0.21", port))
        self.gpn2 = stack.enter_context(station("127.10.0.22", port))
        gmn = Node("gmn-1", "gmn", self.gmn.address[0], Ports(fabric=self.gmn.address[1]))
        gin = Node("gin-1", "gin", "127.10.0.11", Ports(ike=0, natt=port, fabric=0))
        cluster = Cluster(
            "test", Path("cluster.toml"), ("127.30.0.10",), Path("pki"), Path("state"), (gmn, gin), ()
        )
        self.plane = GinPlane(cluster, gin, BACKENDS[backend](), stack)
        self.vip = self.plane.natt[0].address
        self.fabric = self.plane.fabric.address
        self.plane.welcome(Welcome(1, ENVELOPE_KEY))
        self.plane.put(Neighbour("gpn-1", "gpn", *self.gpn.address, 4789, TAG_KEY))
        self.plane.put(Neighbour("gpn-2", "gpn", *self.gpn2.address, 4789, TAG_KEY2))
        self.plane.put(Steer(SPI, "gpn-1", *self.peer.address))

    async def put(self, record: AnyRecord) -> None:
        self.plane.put(record)
        if (settling := self.plane.settle()) is not None:
            await settling

    async def drop(self, key: Key) -> None:
        self.plane.drop(key)
        if (settling := self.plane.settle()) is not None:
            await settling

    async def counted(self, **expected: int) -> None:
        await counted(self.plane, expected)

    async def hear_at_gpn(self, gpn: Station | None = None) -> bytes:
        """The next packet at a GPN; probes are not packets."""
        while True:
            data, source = await (gpn or self.gpn).hear()
            if source == self.fabric and int.from_bytes(data[:4]) == TagKind.PROBE:
                continue
            assert source == (self.peer.address if self.in_kernel else self.fabric)
            return data


@contextmanager
def gin_world(backend: str) -> Iterator[tuple[World, Namespace | None]]:
    with ExitStack() as stack:
        space = None
        if backend == "nftables":
            (space,) = stack.enter_context(namespaces("gin"))
            stack.enter_context(inside(space))
            stack.enter_context(patch.object(nftables, "PATIENCE", 20.0))  # on a busy machine nft may be slow
        yield World(backend, stack), space


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[None]:
    await world.plane._steering.tend()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.plane.serve, lambda: None)
        yield
        nursery.cancel_scope.cancel()
