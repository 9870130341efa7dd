"""The GPNs as their operator handles them: drain, undrain, rebalance, the jobs that these begin, the
pools."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from protego_cli.config.model import Cluster, PoolConfig
from protego_cli.control.channel.message import Reply
from protego_cli.control.channel.pool_messages import (
    Drain,
    GetJob,
    GetPlan,
    GetPools,
    JoinToken,
    MakeToken,
    PoolNodeStatus,
    PoolRequest,
    Pools,
    PoolStatus,
    Rebalance,
    StopJob,
    Undrain,
    Undrained,
)
from protego_cli.control.packing.drains import Drains
from protego_cli.control.packing.jobs import Jobs
from protego_cli.control.packing.mover import Mover
from protego_cli.control.packing.placement import Packer
from protego_cli.control.packing.rebalance import Rebalances
from protego_cli.control.pools.admissions import LONGEST, Admissions
from protego_cli.control.pools.elastic import Elastic
from protego_cli.control.pools.occupancy import Occupied
from protego_cli.control.pools.roster import Members, Roster
from protego_cli.control.procedures.migration import Migrations
from protego_cli.control.sas.sad import Sad


class GpnOperations:
    def __init__(
        self,
        cluster: Cluster,
        epoch: int,
        sad: Sad,
        migrations: Migrations,
        packers: Mapping[str, Packer],
        tasks: trio.Nursery,
        roster: Roster,
        admissions: Admissions,
    ) -> None:
        """`packers`: every policy there is, by name. Jobs run in `tasks`."""
        self._sad = sad
        self._roster = roster
        self._admissions = admissions
        self.jobs = Jobs(epoch, tasks)
        mover = Mover(sad, migrations)
        self.drains = Drains(sad, mover, self.jobs)
        self.rebalances = Rebalances(sad, mover, self.jobs, self.drains, packers)
        self.elastic = Elastic(cluster, sad, roster, mover, self.jobs, self.drains)

    async def run(self, members: Members) -> None:
        """What goes on by itself, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.drains.run)
            nursery.start_soon(self.elastic.run)
            nursery.start_soon(self._roster.run, members, Occupied(self._sad, self.drains))

    async def answer(self, request: PoolRequest) -> Reply:
        match request:
            case Drain():
                return self.drains.drain(request.node).status()
            case Undrain():
                return Undrained(request.node, self.drains.undrain(request.node))
            case Rebalance():
                return self.rebalances.rebalance(request)
            case GetJob():
                return await self.jobs.find(request.id).news(request.revision, request.wait)
            case StopJob():
                job = self.jobs.find(request.id)
                job.stop()
                return job.status()
            case GetPools():
                return Pools(self.elastic.config.mode, tuple(self._pool(pool) for pool in self._roster.pools))
            case GetPlan():
                return self.elastic.plan()
            case MakeToken():
                return self._token(request)

    def _pool(self, pool: PoolConfig) -> PoolStatus:
        loads = {gpn.name: gpn for gpn in self._sad.seats.gpns()}
        nodes = []
        for life in self._roster.lives.values():
            if life.node.pool == pool.name:
                gpn = loads.get(life.name)
                nodes.append(
                    PoolNodeStatus(
                        name=life.name,
                        state=life.state,
                        since=round(life.since, 3),
                        connected=gpn is not None,
                        tunnels=gpn.tunnels if gpn else 0,
                        load=round(gpn.load, 4) if gpn else 0.0,
                        note=life.problem or life.how,
                    )
                )
        nodes.sort(key=lambda node: pool.number(node.name) or 0)
        return PoolStatus(pool.name, pool.provisioner.kind, pool.minimum, pool.maximum, tuple(nodes))

    def _token(self, request: MakeToken) -> JoinToken:
        valid = min(max(request.valid, 1.0), LONGEST)
        node = self._admissions.node(request.pool, request.node)
        token = self._admissions.issue(node, valid)
        return JoinToken(node.name, token, round(self._sad.events.clock() + valid, 3))
