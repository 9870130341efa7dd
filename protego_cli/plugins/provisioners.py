"""Built-in provisioners: who starts and stops a pool's nodes.

- `local`: GPN processes on the GMN's own machine (`local_processes.py`).
- `command`: the operator's program (`command_provisioner.py`).
- `kubernetes`: a StatefulSet, by the API server (`statefulset.py`); needs httpx.
- `static`: nobody. The operator runs the nodes; the GMN uses them or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from protego_cli.config.model import Node, Setting
from protego_cli.control.pools.provision import Place, Provisioner, ProvisionerKind
from protego_cli.hookspecs import hookimpl
from protego_cli.plugins.settings import faults


class StaticNodes:
    def __init__(self, place: Place) -> None:
        self._pool = place.pool

    async def run(self) -> None:
        await trio.sleep_forever()

    async def launch(self, node: Node, token: str) -> None:
        """It runs, or will when its operator starts it."""

    async def retire(self, node: Node) -> None:
        """It goes on running, unused."""

    async def nodes(self) -> Mapping[str, str]:
        return {node.name: "run by its operator" for node in self._pool.nodes(self._pool.room)}


class Static:
    name = "static"
    ordered = False
    keeps = True

    def check(self, settings: Mapping[str, Setting]) -> Mapping[str, str]:
        return faults(settings, {})

    def open(self, place: Place) -> Provisioner:
        return StaticNodes(place)


class Local:
    name = "local"
    ordered = False
    keeps = False

    def check(self, settings: Mapping[str, Setting]) -> Mapping[str, str]:
        return faults(settings, {"lifeline": bool, "arguments": tuple})

    def open(self, place: Place) -> Provisioner:
        from protego_cli.plugins.local_processes import LocalProcesses

        return LocalProcesses(place)


class Command:
    name = "command"
    ordered = False
    keeps = False

    def check(self, settings: Mapping[str, Setting]) -> Mapping[str, str]:
        return faults(settings, {"command": tuple, "timeout": float}, needed=("command",))

    def open(self, place: Place) -> Provisioner:
        from protego_cli.plugins.command_provisioner import CommandProvisioner

        return CommandProvisioner(place)


class Kubernetes:
    name = "kubernetes"
    ordered = True
    keeps = False

    def check(self, settings: Mapping[str, Setting]) -> Mapping[str, str]:
        keys = ("statefulset", "secret", "namespace", "server", "token_file", "ca_file")
        return faults(settings, dict.fromkeys(keys, str))

    def open(self, place: Place) -> Provisioner:
        from protego_cli.plugins.statefulset import StatefulSet

        return StatefulSet(place)


@hookimpl
def protego_provisioners() -> Sequence[ProvisionerKind]:
    return [Local(), Command(), Kubernetes(), Static()]
