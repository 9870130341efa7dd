"""Reading the cluster file for a command: with the plugins it names, or, for an operator, without."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from protego_cli.config.load import CheckProposal, check, find, load, load_plugins_section
from protego_cli.config.model import Cluster
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.proposal import parse_esp, parse_ike
from protego_cli.plugins.manager import Plugins, load_plugins


def load_with_plugins(file: Path | None, *, secrets: bool = False) -> tuple[Cluster, Plugins]:
    """The cluster, judged with all plugins at hand; with `secrets`, their files are judged too."""
    path = find(file)
    plugins = load_plugins(load_plugins_section(path))
    judge = check if secrets else load
    cluster = judge(
        path,
        check_proposal=proposal_checker(plugins.registry()),
        ingress=plugins.steering_backends(),
        packing=plugins.packing_policies(),
        store=plugins.state_stores(),
    )
    return cluster, plugins


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
