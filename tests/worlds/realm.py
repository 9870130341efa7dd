"""A world of `tests/support/gmn_world.py` with packets: planes for nodes, sites for peers, VTEPs, the net."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

import trio
from msgspec import structs

from protego_cli.config.model import Cluster, TenantConfig, TunnelConfig, VtepConfig, VxlanAttach
from protego_cli.ike.events import Path
from tests.support.gmn_cluster import make_cluster, make_tenant
from tests.support.gmn_peer import Peer
from tests.support.gmn_socket import EnvelopeSocket
from tests.support.gmn_world import WALL, World
from tests.support.stores import MortalStore
from tests.worlds.ends import Site, Vtep
from tests.worlds.judge import Judge
from tests.worlds.net import Net, Socket, roles_on
from tests.worlds.nodes import PlaneNodes


class GmnSocket(Socket):
    """Of one life of the GMN; `alive` ends with that."""


class Realm(World):
    gateway_mac = bytes.fromhex("025000001001")
    nodes: PlaneNodes

    def __init__(self, cluster: Cluster, tasks: trio.Nursery, seed: int, store: MortalStore | None) -> None:
        self.judge = Judge()
        self.net = Net(seed, cluster.vips, self.judge.on_internet)
        super().__init__(cluster, tasks, seed, store=store)
        gens = [(node.address, node.ports.vxlan) for node in cluster.nodes_of("gen")]
        self.vteps = {
            tenant.name: Vtep(
                self,
                tenant.name,
                tenant.vni,
                tenant.vteps[0].address,
                self.random.sample(gens, len(gens)),
                self.random.random() < 0.5,
            )
            for tenant in cluster.tenants
        }

    @staticmethod
    def mac(address: str) -> bytes:
        """Of the VTEP there."""
        return bytes((2, 0, *map(int, address.split("."))))

    @property
    def sites(self) -> list[Site]:
        return [peer for peer in self.peers.values() if isinstance(peer, Site)]

    # ---- gmn_world's, with a network

    def make_nodes(self, delay: tuple[float, float]) -> PlaneNodes:
        return PlaneNodes(self.cluster, self.tasks, self.seed, delay)

    def make_socket(self) -> EnvelopeSocket:
        gmn = self.cluster.nodes_of("gmn")[0]
        socket = GmnSocket(self.net, (gmn.address, gmn.ports.fabric), None)
        return self.net.add(socket)  # type: ignore[return-value]

    def make_peer(self, tunnel: TunnelConfig, seed: int) -> Peer:
        return Site(self, tunnel, seed, realm=self)

    def to_gateway(self, peer: Peer, path: Path, data: bytes) -> None:
        assert isinstance(peer, Site)
        peer.tell(path, data)

    def packet(self, spi: int) -> None:
        next(site for site in self.sites if spi in site.seals).send()

    async def up(self, *, by: Literal["peer", "gateway"] = "peer") -> None:
        if by == "gateway":
            self._life.start_soon(self.keeper.run)
        else:
            for site in self.sites:
                site.dial()
        await self.until(lambda: self.is_up() and all(site.opens for site in self.sites))

    async def until(self, condition: Callable[[], object], limit: float = 120.0, every: float = 0.05) -> None:
        await super().until(condition, limit, every)


def tenant(number: int, start: Literal["wait", "auto"] = "wait") -> TenantConfig:
    """All have the same inner addresses, behind VTEPs of their own."""
    address = f"192.0.2.{number + 5}"
    vtep = VtepConfig("10.1.0.0/24", address, Realm.mac(address))
    made = make_tenant(number, start)
    return structs.replace(made, attach=VxlanAttach((vtep,)), gateway_mac=Realm.gateway_mac)


@asynccontextmanager
async def realm(
    seed: int, tenants: int, start: Literal["wait", "auto"], store: MortalStore | None = None
) -> AsyncIterator[Realm]:
    """A gateway whose nodes are up, and peers that have not dialled."""
    cluster = structs.replace(make_cluster(), tenants=tuple(tenant(i, start) for i in range(tenants)))
    async with trio.open_nursery() as tasks:
        found = Realm(cluster, tasks, seed, store)
        with roles_on(found.net, lambda: WALL + trio.current_time()):
            tasks.start_soon(found.net.run)
            tasks.start_soon(found.nodes.report)
            await found.begin()
            await found.start_nodes()
            yield found
            tasks.cancel_scope.cancel()
            for name in list(found.nodes.processes):
                found.nodes.end(name)
