"""A valid cluster file, and small changes to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from protego_cli.config.load import load
from protego_cli.errors import ConfigError

VALID = """\
[cluster]
name = "demo"
vips = ["203.0.113.10", "203.0.113.11"]

[nodes.gmn-1]
role = "gmn"
address = "10.10.0.1"

[nodes.gin-1]
role = "gin"
address = "10.10.0.2"

[nodes.gen-1]
role = "gen"
address = "10.10.0.3"

[nodes.gpn-1]
role = "gpn"
address = "10.10.0.11"

[nodes.gpn-2]
role = "gpn"
address = "10.10.0.12"

[tenants.acme]
vni = 1001
gateway_mac = "02:50:00:00:10:01"

[tenants.acme.attach]
kind = "vxlan"
vteps = [{ prefix = "10.1.0.0/24", address = "10.20.0.5", mac = "02:00:00:00:00:05" }]

[tenants.acme.tunnels.hq]
peer = "198.51.100.7"
local_id = "203.0.113.10"
remote_id = "198.51.100.7"
auth = { kind = "psk", file = "secrets/acme-hq.psk" }
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.2.0.0/24"]

[tenants.acme.tunnels.branch]
peer = "any"
local_id = "203.0.113.10"
remote_id = "branch.example"
auth = { kind = "psk", file = "secrets/acme-branch.psk" }
local_ts = ["10.1.0.0/25"]
remote_ts = ["10.3.0.0/24"]

[tenants.blue]
vni = 1002
gateway_mac = "02:50:00:00:10:02"

[tenants.blue.attach]
kind = "vxlan"
vteps = [
  { prefix = "10.1.0.0/24", address = "10.20.0.6", mac = "02:00:00:00:00:06" },
  { prefix = "2001:db8:1::/64", address = "10.20.0.6", mac = "02:00:00:00:00:06", port = 4790 },
]
"""
VXLAN = """kind = "vxlan"
vteps = [{ prefix = "10.1.0.0/24", address = "10.20.0.5", mac = "02:00:00:00:00:05" }]
"""
TUN = """kind = "tun"
device = "acme0"
netns = "acme"
address = ["10.1.0.1/24"]
"""
SECOND_GEN = """
[nodes.gen-2]
role = "gen"
address = "10.10.0.4"
"""
ACME = VALID[: VALID.index("[tenants.blue]")].replace(VXLAN, TUN)


def changed(*changes: tuple[str, str]) -> str:
    """VALID with the first occurrence of each text replaced; a text that is not there is a mistake."""
    text = VALID
    for old, new in changes:
        if old not in text:
            raise AssertionError(f"not in the valid file: {old!r}")
        text = text.replace(old, new, 1)
    return text


def write_cluster(directory: Path, text: str = VALID, *, secrets: bool = True) -> Path:
    """The file, and the secrets it names."""
    file = directory / "cluster.toml"
    file.write_text(text)
    if secrets:
        (directory / "secrets").mkdir(exist_ok=True)
        for name in ("acme-hq", "acme-branch"):
            secret = directory / "secrets" / f"{name}.psk"
            secret.touch(mode=0o600)
            secret.write_text("a pre-shared key of good length\n")
    return file


def problems(directory: Path, text: str) -> dict[str, str]:
    """What is wrong with a file, by key."""
    with pytest.raises(ConfigError) as caught:
        load(write_cluster(directory, text))
    return {problem.key: problem.message for problem in caught.value.problems}
