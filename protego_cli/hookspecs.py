"""The hooks a plugin may implement, as pluggy specifications.

A hook hands out objects when a role starts; none is called per packet. Every hook has a page in
`docs/plugins.md` and a test; `tests/test_hookspecs.py` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:  # the specifications name types of later layers but import none of them
    from protego_cli.control.packing.placement import PackingPolicy
    from protego_cli.control.pools.provision import ProvisionerKind
    from protego_cli.control.state.store import StateStore
    from protego_cli.crypto.algorithms import Algorithm
    from protego_cli.net.steering import SteeringBackend

PROJECT = "protego"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def protego_crypto_suites() -> Sequence[Algorithm]:  # type: ignore[empty-body]  # a hookspec has no body
    """Algorithms for IKE and ESP: ciphers, integrity algorithms, PRFs, key exchange groups.

    Keywords must be unique over all plugins; a proposal in the cluster file names them joined by "-".
    """


@hookspec
def protego_packing_policies() -> Sequence[PackingPolicy]:  # type: ignore[empty-body]  # a hookspec has no body
    """Policies that place tunnels on GPNs and plan moves between them, each under a unique name.

    `cluster.packing` selects the one that places; `protego rebalance --policy` applies any.
    """


@hookspec
def protego_provisioners() -> Sequence[ProvisionerKind]:  # type: ignore[empty-body]  # a hookspec has no body
    """Ways to start and stop a pool's nodes, each under a unique name.

    `provisioner.kind` of a pool selects one; the GMN opens it once for each such pool.
    """


@hookspec
def protego_steering_backends() -> Sequence[SteeringBackend]:  # type: ignore[empty-body]  # a hookspec has no body
    """Ways to pass packets on in a GIN or GEN, each under a unique name (`cluster.ingress` selects one)."""


@hookspec
def protego_state_stores() -> Sequence[StateStore]:  # type: ignore[empty-body]  # a hookspec has no body
    """Where the GMN keeps its state, each under a unique name (`cluster.store` selects one)."""
