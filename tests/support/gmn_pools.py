"""A simulated GMN whose pool's nodes are started by a provisioner."""

from __future__ import annotations

from pathlib import Path

import trio
from msgspec import structs

from protego_cli.config.model import Cluster
from protego_cli.control.channel import pki
from protego_cli.control.channel.operator_messages import GetEvents
from protego_cli.control.channel.pool_messages import GetPools, PoolNodeStatus, Pools
from tests.support.gmn_cluster import make_cluster
from tests.support.gmn_world import World
from tests.support.pools import CLOUD, FakeProvisioner
from tests.support.stores import MemoryStore


def small(directory: Path, minimum: int = 1, maximum: int = 4, tunnels: int = 2) -> Cluster:
    """A cluster of one fixed GPN and a pool."""
    cluster = make_cluster(tunnels)
    nodes = tuple(node for node in cluster.nodes if node.name not in ("gpn-2", "gpn-3"))
    pool = structs.replace(CLOUD, minimum=minimum, maximum=maximum)
    cluster = structs.replace(cluster, nodes=nodes, pools=(pool,), pki=directory / "pki", state=directory)
    pki.init(cluster)
    return cluster


class Cloud(World):
    """A world whose pool's nodes are started by a provisioner."""

    def __init__(self, cluster: Cluster, tasks: trio.Nursery, store: MemoryStore | None = None) -> None:
        super().__init__(cluster, tasks, 1, store=store)
        self.cloud = FakeProvisioner()
        self.cloud.tasks = tasks
        self.cloud.start, self.cloud.stop = self._start, self._stop
        self.provisioners = self.cloud.opened()

    async def _start(self, name: str) -> None:
        if name in self.nodes.all:
            await self.nodes.start(name)

    async def _stop(self, name: str) -> None:
        if name in self.nodes.all:
            await self.nodes.stop(name)

    async def pool_nodes(self) -> list[PoolNodeStatus]:
        reply = await self.operations.answer(GetPools())
        assert isinstance(reply, Pools)
        return list(reply.pools[0].nodes)

    def states(self) -> dict[str, str]:
        return {life.name: life.state for life in self.roster.lives.values()}

    def told(self) -> list[str]:
        kinds = ("node launched", "launch failed", "node vanished", "node retired", "retiring failed")
        events = self.sad.events.read(GetEvents()).events
        return [f"{event.kind}: {event.node}" for event in events if event.kind in kinds]
