"""Who starts and stops the nodes of pools: the interface of provisioners.

1. `check` judges a pool's settings while the cluster file is read.
2. The GMN opens a provisioner for each pool when it starts; `run` is its life.
3. `launch` and `retire` ask for a node to be there or not, in any order and as often as it pleases the GMN: a
   node that is there already, or gone, is no error. They return once that is under way. Whether it has come
   to pass is told by the node, which connects, and by `nodes`.

A node that is launched joins with the one-time token that comes with it (`joining.py`), unless it has its
certificate already.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from protego_cli.config.model import Node, PoolConfig, Setting
from protego_cli.errors import ProtegoError


class Place(NamedTuple):
    """What a provisioner works for."""

    pool: PoolConfig
    settings: Mapping[str, Setting]
    cluster_file: Path
    directory: Path  # of its own, in the GMN's state; made when it is needed


class ProvisionFault(ProtegoError):
    """A node could not be started or stopped; the text says why, and what to do."""


class Provisioner(Protocol):
    """An open one. Whatever it raises but ProvisionFault counts as a fault of its plugin."""

    async def run(self) -> None:
        """For as long as the GMN lives: watch over what was started, if there is anything to watch."""
        ...

    async def launch(self, node: Node, token: str) -> None:
        """Have this node run; `token` is for it alone, and a secret."""
        ...

    async def retire(self, node: Node) -> None:
        """Have this node run no more. It carries nothing."""
        ...

    async def nodes(self) -> Mapping[str, str]:
        """The nodes that there are, each with a word or two on how it is."""
        ...


class ProvisionerKind(Protocol):
    """What a plugin hands out."""

    @property
    def name(self) -> str:
        """What `provisioner.kind` selects it by."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether only the node with the highest number can go, as in a StatefulSet."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether a node that is retired stays what it is, and may be launched again without a token."""
        ...

    def check(self, settings: Mapping[str, Setting]) -> Mapping[str, str]:
        """What is wrong with the settings, by key."""
        ...

    def open(self, place: Place) -> Provisioner:
        """Raises EnvironmentFault when this machine lacks what it takes."""
        ...
