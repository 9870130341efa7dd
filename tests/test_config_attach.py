"""TUN attachments in the cluster file: what is read, and each fault by its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from protego_cli.config.load import load
from protego_cli.config.model import TunAttach
from tests.support.clusters import ACME, SECOND_GEN, TUN, problems, write_cluster

BLUE = """
[tenants.blue]
vni = 1002
gateway_mac = "02:50:00:00:10:02"
attach = { kind = "tun", device = "blue0", netns = "acme" }

[tenants.blue.tunnels.hq]
peer = "198.51.100.8"
local_id = "203.0.113.10"
remote_id = "198.51.100.8"
auth = { kind = "psk", file = "secrets/acme-hq.psk" }
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.7.0.0/24"]
"""
HQ = "tenants.acme.tunnels.hq.remote_ts[0]"
BLUE_HQ = "tenants.blue.tunnels.hq.remote_ts[0]"
HOST = ('netns = "acme"\n', "")


def changed(*changes: tuple[str, str]) -> str:
    text = ACME + BLUE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    acme, blue = load(write_cluster(tmp_path, ACME + BLUE)).tenants
    assert acme.attach == TunAttach("acme0", "gen-1", "acme", ("10.1.0.1/24",))
    assert blue.attach == TunAttach("blue0", "gen-1", "acme")
    assert acme.vteps == ()


def test_everything_is_read(tmp_path: Path) -> None:
    attach = """kind = "tun"
device = "acme-0.1_x"
node = "gen-2"
address = ["10.1.0.1/24", "2001:DB8::1/64"]
mtu = 1280
"""
    text = (ACME + SECOND_GEN).replace(TUN, attach)
    assert load(write_cluster(tmp_path, text)).tenants[0].attach == TunAttach(
        "acme-0.1_x", "gen-2", None, ("10.1.0.1/24", "2001:db8::1/64"), 1280
    )


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ([('device = "acme0"\n', "")], "tenants.acme.attach.device", "is missing"),
        ([('"acme0"', '"sixteen-letters-"')], "tenants.acme.attach.device", "1 to 15 letters"),
        ([('"acme0"', '"acme%d"')], "tenants.acme.attach.device", "a name for a network device"),
        ([('"acme0"', '"lo"')], "tenants.acme.attach.device", 'got "lo"'),
        ([('netns = "acme"', 'netns = "../acme"')], "tenants.acme.attach.netns", "a network namespace"),
        ([('"10.1.0.1/24"', '"10.1.0.1"')], "tenants.acme.attach.address[0]", "prefix length"),
        ([('"10.1.0.1/24"', '"224.0.0.1/24"')], "tenants.acme.attach.address[0]", "of one machine"),
        ([('["10.1.0.1/24"]', "[]")], "tenants.acme.attach.address", "an empty list"),
        ([(TUN, TUN + "mtu = 1279\n")], "tenants.acme.attach.mtu", "from 1280 to 9000"),
        ([(TUN, TUN + 'node = "gpn-1"\n')], "tenants.acme.attach.node", 'a GEN: "gen-1", got "gpn-1"'),
        ([(TUN, TUN + "vteps = []\n")], "tenants.acme.attach.vteps", "is not a known key"),
        ([('role = "gen"', 'role = "gin"')], "tenants.acme.attach", 'a node with role = "gen"'),
        ([("vni = 1001", 'vni = 1001\ngateway = ["10.1.0.1"]')], "tenants.acme.gateway", "leave it out"),
        ([('"blue0"', '"acme0"')], "tenants.blue.attach.device", "is the device of tenant acme already"),
        ([('"10.7.0.0/24"', '"10.2.0.128/25"')], BLUE_HQ, "overlaps 10.2.0.0/24 of tenant acme"),
        ([HOST, ('"10.2.0.0/24"', '"0.0.0.0/0"')], HQ, "0.0.0.0/0 holds 10.10.0.1"),
        ([HOST, ('"10.2.0.0/24"', '"203.0.113.0/24"')], HQ, "203.0.113.10, a VIP"),
        ([HOST, ('"10.2.0.0/24"', '"198.51.100.8/32"')], HQ, "the peer of blue/hq"),
    ],
)
def test_a_fault_is_named_by_its_key(
    tmp_path: Path, changes: list[tuple[str, str]], key: str, message: str
) -> None:
    found = problems(tmp_path, changed(*changes))
    assert key in found, found
    assert message in found[key]


@pytest.mark.parametrize(
    "changes",
    [
        [('"10.7.0.0/24"', '"0.0.0.0/0"'), ('blue0", netns = "acme"', 'blue0", netns = "blue"')],
        [('"10.7.0.0/24"', '"10.2.0.0/24"'), ('blue0", netns = "acme"', 'acme0", netns = "blue"')],
        [
            ('"10.7.0.0/24"', '"10.2.0.0/24"'),
            ('"blue0"', '"acme0", node = "gen-2"'),
            ("[tenants.acme]", SECOND_GEN + "[tenants.acme]"),
        ],
    ],
    ids=["default-route", "another-namespace", "another-machine"],
)
def test_what_does_not_collide_is_fine(tmp_path: Path, changes: list[tuple[str, str]]) -> None:
    load(write_cluster(tmp_path, changed(*changes)))


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path, changed(('"acme0"', '"lo"'), ('"10.1.0.1/24"', "7"), ('"10.7.0.0/24"', '"10.2.0.0/23"'))
    )
    assert set(found) == {"tenants.acme.attach.device", "tenants.acme.attach.address[0]", BLUE_HQ}
