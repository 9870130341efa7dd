"""Pools and [elastic] in the cluster file: what they become, every fault at once, and how changes land."""

from __future__ import annotations

from pathlib import Path

import pytest

from protego_cli.config import diff as module
from protego_cli.config.diff import FieldChange, diff
from protego_cli.config.load import load, load_plugins_section
from protego_cli.config.model import Cluster, ElasticConfig, PoolConfig
from protego_cli.errors import ConfigError
from protego_cli.plugins.manager import load_plugins
from protego_cli.roles.clusters import read_cluster
from tests.support.clusters import VALID, write_cluster

POOL = """
[pools.cloud]
addresses = "10.10.1.1-10.10.1.20"
minimum = 1
maximum = 8
capacity = 0.8
launch = "3m"
provisioner = { kind = "command", command = ["/usr/local/bin/cloud"], timeout = 30 }

[elastic]
mode = "on"
interval = "5m"
"""


def cluster(directory: Path, *changes: tuple[str, str]) -> Cluster:
    text = POOL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    file = write_cluster(directory, VALID + text)
    return read_cluster(file, load_plugins(load_plugins_section(file)))


def test_a_pool_is_read(tmp_path: Path) -> None:
    found = cluster(tmp_path)
    (pool,) = found.pools
    assert (pool.name, pool.role, pool.room, pool.minimum, pool.maximum) == ("cloud", "gpn", 20, 1, 8)
    assert (pool.capacity, pool.launch) == (0.8, 180.0)
    assert pool.provisioner.kind == "command"
    assert dict(pool.provisioner.settings) == {"command": ("/usr/local/bin/cloud",), "timeout": 30}
    assert [(node.name, node.address, node.pool) for node in pool.nodes(2)] == [
        ("cloud-1", "10.10.1.1", "cloud"),
        ("cloud-2", "10.10.1.2", "cloud"),
    ]
    assert found.elastic == ElasticConfig(mode="on", interval=300.0)


def test_its_nodes_are_found_but_are_not_nodes_of_the_file(tmp_path: Path) -> None:
    found = cluster(tmp_path)
    assert all(not node.pool for node in found.nodes)
    node = found.node("cloud-20")
    assert node is not None
    assert (node.address, node.capacity, node.role) == ("10.10.1.20", 0.8, "gpn")
    for name in ("cloud-21", "cloud-0", "cloud-01", "cloud", "cloud--1", "cloud-x", "loud-1"):
        assert found.node(name) is None, name


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("minimum = 1", "minimum = 9", r"pools\.cloud\.minimum: expected at most the maximum, 8, got 9"),
        ("maximum = 8", "maximum = 21", r"pools\.cloud\.maximum: expected at most 20"),
        ("maximum = 8", "", r"pools\.cloud\.maximum: is missing"),
        ("10.10.1.1-10.10.1.20", "10.10.1.20-10.10.1.1", r"pools\.cloud\.addresses: expected the first and"),
        ("10.10.1.1-10.10.1.20", "10.10.1.0/24", r"pools\.cloud\.addresses: expected the first and"),
        (
            "10.10.1.1-10.10.1.20",
            "10.10.0.12-10.10.0.30",
            r"pools\.cloud\.ports\.esp: 10\.10\.0\.12 udp/4500",
        ),
        ("10.10.1.1-10.10.1.20", "203.0.113.4-203.0.113.30", "203.0.113.10 is one of cluster.vips"),
        ('kind = "command"', 'kind = "clowd"', r'provisioner\.kind: expected a provisioner: "command"'),
        ('command = ["/usr/local/bin/cloud"], ', "", r"provisioner\.command: is missing: expected a list"),
        ("timeout = 30", "timeout = -1", r"provisioner\.timeout: expected a positive number, got -1"),
        ("timeout = 30", "timeuot = 30", r"provisioner\.timeuot: is not a known key; did you mean timeout\?"),
        ("timeout = 30", "timeout = [1]", r"provisioner\.timeout: expected a text, a number, true, false"),
        ("capacity = 0.8", 'role = "gin"', r"pools\.cloud\.role: expected the role that scales"),
        ("capacity = 0.8", "ports.esp = 4600", r"pools\.cloud\.ports\.esp: expected 4500"),
        ('mode = "on"', 'mode = "yes"', r'elastic\.mode: expected "off", "dry-run", "on"'),
        ('mode = "on"', "low = 0.95", r"elastic\.low: expected at most high, 0\.9, got 0\.95"),
        ('mode = "on"', "hihg = 0.9", r"elastic\.hihg: is not a known key"),
        ("[pools.cloud]", "[pools.gpn]", r"pools\.gpn: one of its nodes would be gpn-1"),
        ("[pools.cloud]", f"[pools.{'c' * 60}]", "leaves room for -1024"),
    ],
)
def test_what_cannot_be(tmp_path: Path, old: str, new: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        cluster(tmp_path, (old, new))


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        cluster(tmp_path, ("minimum = 1", "minimum = 9"), ("timeout = 30", "tiem = 30"), ('"on"', '"up"'))
    assert [problem.key for problem in refused.value.problems] == [
        "pools.cloud.provisioner.tiem",
        "pools.cloud.minimum",
        "elastic.mode",
    ]


@pytest.mark.parametrize(
    ("old", "new", "lands"),
    [
        ("maximum = 8", "maximum = 9", "pool cloud changed now"),
        ("minimum = 1", "minimum = 2", "pool cloud changed now"),
        ("capacity = 0.8", "capacity = 1.0", "pool cloud changed now"),
        ('launch = "3m"', 'launch = "4m"', "pool cloud changed now"),
        ("timeout = 30", "timeout = 40", "pool cloud changed restart gmn-1"),
        ("1.20", "1.21", "pool cloud changed restart gmn-1"),
        ('mode = "on"', 'mode = "off"', "setting elastic.mode changed now"),
        ("[pools.cloud]", "[pools.other]", "pool other added restart gmn-1"),
    ],
)
def test_how_a_change_lands(tmp_path: Path, old: str, new: str, lands: str) -> None:
    changes = diff(cluster(tmp_path), cluster(tmp_path, (old, new)))
    change = changes[0]
    assert " ".join([change.what, change.name, change.kind, change.lands, *change.restart]) == lands
    assert change.note.endswith(".")
    if new == "timeout = 40":
        fields = [
            FieldChange(
                "provisioner", *(f"command command=/usr/local/bin/cloud timeout={n}" for n in (30, 40))
            )
        ]
        assert list(change.fields) == fields


def test_every_field_of_a_pool_has_its_landing() -> None:
    assert set(module.POOL) == set(PoolConfig.__struct_fields__) - {"name"}


def test_a_file_without_plugins_at_hand_is_read_as_well(tmp_path: Path) -> None:
    file = write_cluster(tmp_path, VALID + POOL.replace("timeout", "anything"))
    assert dict(load(file).pools[0].provisioner.settings)["anything"] == 30
