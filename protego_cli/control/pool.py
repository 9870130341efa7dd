"""The pool of GPNs as its operator handles it: drain, undrain, rebalance, and the jobs that these begin."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from protego_cli.control.drains import Drains
from protego_cli.control.jobs import Jobs
from protego_cli.control.messages import (
    Reply,
)
from protego_cli.control.migration import Migrations
from protego_cli.control.mover import Mover
from protego_cli.control.placement import Packer
from protego_cli.control.pool_messages import (
    Drain,
    GetJob,
    PoolRequest,
    Rebalance,
    StopJob,
    Undrain,
    Undrained,
)
from protego_cli.control.rebalance import Rebalances
from protego_cli.control.sad import Sad


class Pool:
    def __init__(
        self,
        epoch: int,
        sad: Sad,
        migrations: Migrations,
        packers: Mapping[str, Packer],
        tasks: trio.Nursery,
    ) -> None:
        """`packers`: every policy there is, by name. Jobs run in `tasks`."""
        self.jobs = Jobs(epoch, tasks)
        mover = Mover(sad, migrations)
        self.drains = Drains(sad, mover, self.jobs)
        self.rebalances = Rebalances(sad, mover, self.jobs, self.drains, packers)

    async def run(self) -> None:
        """What the pool does by itself, for ever."""
        await self.drains.run()

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
