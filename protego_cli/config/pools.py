"""`[pools.NAME]` and `[elastic]` of the cluster file: nodes that come and go, and when they do.

What a provisioner's settings may be, its plugin knows; the caller brings its verdict (`CheckProvisioner`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, cast

from protego_cli.config import values
from protego_cli.config.fields import Table, join
from protego_cli.config.limits import rate
from protego_cli.config.model import (
    Cluster,
    ElasticConfig,
    Node,
    PoolConfig,
    Ports,
    ProvisionerConfig,
    Setting,
)
from protego_cli.errors import Problem

MAX_NODES: Final = 1024

CheckProvisioner = Callable[[str, Mapping[str, Setting]], Mapping[str, str]]
"""What is wrong with the settings of a provisioner of this kind, by key; under "kind": there is none."""


def read_pools(
    collection: Table, ports: Callable[[Table], Ports], check: CheckProvisioner | None
) -> tuple[PoolConfig, ...]:
    """All pools of the table."""
    return tuple(_pool(name, table, ports, check) for name, table in collection.named())


def _pool(
    name: str, table: Table, ports: Callable[[Table], Ports], check: CheckProvisioner | None
) -> PoolConfig:
    count = values.integer(0, MAX_NODES)
    table.check_name(name)
    table.check_room(name, MAX_NODES)
    nowhere = "0.0.0.1", "0.255.255.255"
    table.take("role", values.choice(["gpn"], what="the role that scales"), "gpn")
    pool = PoolConfig(
        name=name,
        role="gpn",
        addresses=table.need(
            "addresses", values.address_range, nowhere, example='a range such as "10.10.1.1-10.10.1.64"'
        ),
        minimum=table.take("minimum", count, 0),
        maximum=table.need("maximum", count, 0, example=f"a whole number from 0 to {MAX_NODES}"),
        provisioner=_provisioner(
            table.table("provisioner", needed='a table such as { kind = "local" }'),
            "provisioner" in table,
            check,
        ),
        ports=ports(table.table("ports")),
        capacity=table.take("capacity", values.number(0.01, 1024), 1.0),
        bandwidth=table.take("bandwidth", rate, 0),
        launch=table.take("launch", values.duration(1, 86400), 120.0),
    )
    table.done()
    if pool.minimum > pool.maximum:
        table.problem("minimum", f"expected at most the maximum, {pool.maximum}, got {pool.minimum}")
    if pool.maximum > pool.room:
        table.problem("maximum", f"expected at most {pool.room}, as many as there are addresses in the range")
    return pool


def _provisioner(table: Table, there: bool, check: CheckProvisioner | None) -> ProvisionerConfig:
    if not there:
        return ProvisionerConfig("")
    kind = table.need("kind", values.name, "", example='a provisioner such as "local"')
    settings = table.rest(values.setting)
    if kind and check is not None:
        for name, wrong in check(kind, settings).items():
            table.problem(name, wrong)
    return ProvisionerConfig(kind, tuple(sorted(settings.items())))


def read_elastic(table: Table) -> ElasticConfig:
    default = ElasticConfig()
    mode: str = table.take("mode", values.choice(["off", "dry-run", "on"]), "off")
    elastic = ElasticConfig(
        mode=cast('Literal["off", "dry-run", "on"]', mode),
        interval=table.take("interval", values.duration(1, 86400), default.interval),
        high=table.take("high", values.number(0.1, 1), default.high),
        low=table.take("low", values.number(0.05, 1), default.low),
        hold=table.take("hold", values.duration(0, 86400), default.hold),
        moves_per_hour=table.take("moves_per_hour", values.integer(1, 3600), default.moves_per_hour),
        at_once=table.take("at_once", values.integer(1, 32), default.at_once),
        window=table.take("window", values.number(1, 600), default.window),
    )
    table.done()
    if elastic.low > elastic.high:
        table.problem("low", f"expected at most high, {elastic.high:g}, got {elastic.low:g}")
    return elastic


def pool_nodes(cluster: Cluster) -> list[Node]:
    """Every node that any pool may have."""
    return [node for pool in cluster.pools for node in pool.nodes()]


def check_pools(cluster: Cluster) -> Iterator[Problem]:
    """What pools and nodes say of one another, but for their ports."""
    names = {node.name: node.name for node in cluster.nodes}
    for pool in cluster.pools:
        key = join("pools", pool.name)
        for node in pool.nodes():
            if node.name in names:
                yield Problem(key, f"one of its nodes would be {node.name}, which is another node's name")
            if node.address in cluster.vips:
                yield Problem(f"{key}.addresses", f"{node.address} is one of cluster.vips")
