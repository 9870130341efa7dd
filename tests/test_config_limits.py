"""`limit` in the cluster file."""

from __future__ import annotations

from pathlib import Path

import pytest

from protego_cli.config.limits import BATCH, spelled
from protego_cli.config.load import load
from protego_cli.config.model import LimitConfig, Rate
from protego_cli.errors import ConfigError
from tests.support.clusters import changed, write_cluster

HQ, ACME = 'peer = "198.51.100.7"', "vni = 1001"
M = 10**6


def read(directory: Path, tunnel: str = "", tenant: str = "") -> tuple[LimitConfig, LimitConfig]:
    text = changed((HQ, f"{HQ}\n{tunnel}"), (ACME, f"{ACME}\n{tenant}"))
    acme = load(write_cluster(directory, text)).tenants[0]
    return acme.tunnels[0].limit, acme.limit


@pytest.mark.parametrize(
    ("spelled", "inward", "outward"),
    [
        ('{ in = "100 Mbit/s", out = "2.5Gbit/s" }', Rate(100 * M, 625_000), Rate(2500 * M, 15_625_000)),
        ('{ in = "100 Mbit/s", burst = "1 MB" }', Rate(100 * M, M), None),
        ('{ out = 1000000, burst = "200 ms" }', None, Rate(M, BATCH)),
        ('{ out = "800 Mbit/s", burst = "1.5s" }', None, Rate(800 * M, 150 * M)),
        ('{ in = "64 kbit/s", out = 64_000.4, burst = 20_000 }', Rate(64_000, 20_000), Rate(64_000, 20_000)),
        ("{}", None, None),
    ],
)
def test_rates_and_bursts_are_read(
    tmp_path: Path, spelled: str, inward: Rate | None, outward: Rate | None
) -> None:
    expected = LimitConfig(inward, outward)
    assert read(tmp_path, f"limit = {spelled}") == (expected, LimitConfig())
    assert read(tmp_path, tenant=f"limit = {spelled}") == (LimitConfig(), expected)


@pytest.mark.parametrize(
    ("spelled", "key", "message"),
    [
        ('{ in = "100 Mbps" }', "limit.in", 'expected a rate such as "100 Mbit/s"'),
        ('{ in = "100" }', "limit.in", 'got "100"'),
        ("{ in = true }", "limit.in", "got true"),
        ("{ in = nan }", "limit.in", "got nan"),
        ("{ out = 0 }", "limit.out", "from 10 kbit/s to 1000 Gbit/s, got 0"),
        ('{ out = "2000 Gbit/s" }', "limit.out", "from 10 kbit/s to 1000 Gbit/s"),
        ('{ in = "1 Mbit/s", burst = "50" }', "limit.burst", 'expected a burst as a time such as "50 ms"'),
        ('{ in = "1 Mbit/s", burst = 14999 }', "limit.burst", "from 15000 to 1000000000, got 14999"),
        ('{ in = "1 Mbit/s", burst = "11 s" }', "limit.burst", "from 1 ms to 10 s"),
        ('{ in = "1 Mbit/s", burst = 0.05 }', "limit.burst", "got 0.05"),
        ('{ burst = "50 ms" }', "limit", "expected in, out or both"),
        ('{ inn = "1 Mbit/s" }', "limit.inn", 'did you mean "in"?'),
        ('"100 Mbit/s"', "limit", "expected a table"),
    ],
)
def test_what_is_wrong_is_said_by_key(tmp_path: Path, spelled: str, key: str, message: str) -> None:
    for place, values in (
        ("tenants.acme.tunnels.hq", {"tunnel": f"limit = {spelled}"}),
        ("tenants.acme", {"tenant": f"limit = {spelled}"}),
    ):
        with pytest.raises(ConfigError) as caught:
            read(tmp_path, **values)
        (problem,) = caught.value.problems
        assert problem.key == f"{place}.{key}"
        assert message in problem.message


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, 'limit = { in = "x", out = "y", burst = "z" }', "limit = { in = -1 }")
    assert [problem.key for problem in caught.value.problems] == [
        "tenants.acme.tunnels.hq.limit.in",
        "tenants.acme.tunnels.hq.limit.out",
        "tenants.acme.tunnels.hq.limit.burst",
        "tenants.acme.limit.in",
    ]


def test_a_tunnel_may_not_have_what_its_tenant_never_lets_it_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(
            tmp_path,
            'limit = { in = "2 Gbit/s", out = "50 Mbit/s" }',
            'limit = { in = "1.5 Gbit/s", out = "60 Mbit/s" }',
        )
    (problem,) = caught.value.problems
    assert problem.key == "tenants.acme.tunnels.hq.limit.in"
    assert problem.message.startswith(
        "2 Gbit/s is above the 1500 Mbit/s that all tunnels of tenant acme have"
    )


@pytest.mark.parametrize(
    ("bits", "text"),
    [(10**9, "1 Gbit/s"), (1500 * M, "1500 Mbit/s"), (64_000, "64 kbit/s"), (64_100, "64.1 kbit/s")],
)
def test_rates_are_spelled_as_they_are_read(bits: int, text: str) -> None:
    assert spelled(bits) == text
