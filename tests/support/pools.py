"""A provisioner in memory, for the worlds of `gmn_world`: it launches their nodes as the test wishes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from protego_cli.config.model import Node, PoolConfig, ProvisionerConfig, Setting
from protego_cli.control.pools.provision import Place, Provisioner, ProvisionFault
from protego_cli.control.pools.roster import Opened

CLOUD = PoolConfig("cloud", "gpn", ("10.0.2.1", "10.0.2.9"), 0, 4, ProvisionerConfig("fake"), launch=20.0)


class FakeProvisioner:
    """`start` and `stop` are what happens to a node's process; `fault` is what each call meets."""

    name = "fake"
    ordered = False
    keeps = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.there: dict[str, str] = {}
        self.fault: Exception | None = None
        self.silent = False  # it launches nodes that never come
        self.delay = 0.5
        self.start: Callable[[str], Awaitable[None]] = self._nothing
        self.stop: Callable[[str], Awaitable[None]] = self._nothing
        self.tasks: trio.Nursery | None = None

    def opened(self) -> dict[str, Opened]:
        return {CLOUD.name: Opened(self, "tests", self)}

    def check(self, settings: Mapping[str, Setting]) -> Mapping[str, str]:
        return {}

    def open(self, place: Place) -> Provisioner:
        return self

    async def run(self) -> None:
        await trio.sleep_forever()

    async def launch(self, node: Node, token: str) -> None:
        self._note(f"launch {node.name}")
        assert token.startswith("protego-join.") or self.keeps
        self.there[node.name] = "running"
        if not self.silent and self.tasks is not None:
            self.tasks.start_soon(self._start, node.name)

    async def _start(self, name: str) -> None:
        await trio.sleep(self.delay)
        if name in self.there:
            await self.start(name)

    async def retire(self, node: Node) -> None:
        self._note(f"retire {node.name}")
        if self.there.pop(node.name, None) is not None:
            await self.stop(node.name)

    async def nodes(self) -> Mapping[str, str]:
        if self.fault is not None:
            raise self.fault
        return self.there

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.fault is not None:
            raise self.fault

    async def _nothing(self, name: str) -> None:
        pass


REFUSES = ProvisionFault("the cloud is full")
