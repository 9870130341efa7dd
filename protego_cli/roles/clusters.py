"""Reading the cluster file with what the plugins know: their suites, packing policies and backends."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from protego_cli.config.load import CheckProposal, check, load
from protego_cli.config.model import AUTO, Cluster
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.proposal import parse_esp, parse_ike
from protego_cli.plugins.manager import Plugins


def read_cluster(path: Path, plugins: Plugins, *, secrets: bool = False) -> Cluster:
    """The cluster of a file; with `secrets`, their files are judged too. Raises ConfigError with every
    problem.
    """
    judge = check if secrets else load
    return judge(
        path,
        check_proposal=proposal_checker(plugins.registry()),
        ingress=[*plugins.steering_backends(), AUTO],
        packing=plugins.packing_policies(),
        store=plugins.state_stores(),
    )


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
