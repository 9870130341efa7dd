"""Reading the cluster file with what the plugins know: their suites, packing policies and backends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from protego_cli.config.load import CheckProposal, Known, load
from protego_cli.config.model import AUTO, Cluster, Setting
from protego_cli.config.pools import CheckProvisioner
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.proposal import parse_esp, parse_ike
from protego_cli.plugins.manager import Plugins


def read_cluster(path: Path, plugins: Plugins, *, secrets: bool = False) -> Cluster:
    """The cluster of a file; with `secrets`, their files are judged too. Raises ConfigError with every
    problem.
    """
    known = Known(
        check_proposal=proposal_checker(plugins.registry()),
        ingress=[*plugins.steering_backends(), AUTO],
        packing=plugins.packing_policies(),
        store=plugins.state_stores(),
        check_provisioner=provisioner_checker(plugins),
    )
    return load(path, known, secrets=secrets)


def provisioner_checker(plugins: Plugins) -> CheckProvisioner:
    """What `config.load` asks about the provisioner of each pool."""
    kinds = plugins.provisioners()

    def wrong(kind: str, settings: Mapping[str, Setting]) -> Mapping[str, str]:
        if kind in kinds:
            return kinds[kind].kind.check(settings)
        known = ", ".join(f'"{name}"' for name in sorted(kinds))
        return {"kind": f'expected a provisioner: {known}, got "{kind}"'}

    return wrong


def proposal_checker(registry: Registry) -> CheckProposal:
    """What `config.load` asks about each proposal."""

    def wrong(text: str, kind: Literal["ike", "esp"]) -> str | None:
        try:
            if kind == "ike":
                parse_ike(text, registry)
            else:
                parse_esp(text, registry)
        except ValueError as error:
            return str(error)
        return None

    return wrong
