"""`protego doctor`: every verdict over a machine that is fit but for one thing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protego_cli.config.load import load
from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel import pki
from protego_cli.errors import EnvironmentFault
from protego_cli.roles.doctor import CHECKS, Finding, examine
from protego_cli.roles.machine import Device, Machine, Socket, Way, listeners, local_nodes
from tests.support.clusters import changed, write_cluster

NOW = 1_800_000_000.0
DAY = 86400.0
NFTABLES = changed(
    ('name = "demo"', 'name = "demo"\ningress = "nftables"'),
    ('vips = ["203.0.113.10", "203.0.113.11"]', 'vips = ["203.0.113.10"]'),
)
TUN = NFTABLES.replace(
    'kind = "vxlan"\nvteps = [{ prefix = "10.1.0.0/24", address = "10.20.0.5", mac = "02:00:00:00:00:05" }]',
    'kind = "tun"\ndevice = "acme0"\nnetns = "acme"',
)
SYSCTLS = {
    "net.core.rmem_max": "212992",
    "net.core.wmem_max": "212992",
    "net.ipv4.ip_unprivileged_port_start": "1024",
    "net.ipv4.conf.all.rp_filter": "2",
    "net.ipv4.conf.eth0.rp_filter": "1",
    "net.ipv4.conf.all.arp_ignore": "1",
    "net.ipv4.conf.all.arp_announce": "2",
}
FIT = Machine(
    now=NOW,
    cores=2,
    addresses={
        "127.0.0.1": "lo",
        "203.0.113.10": "lo",
        "10.10.0.1": "eth0",
        "10.10.0.2": "eth0",
        "10.10.0.3": "eth0",
        "10.10.0.11": "eth0",
        "10.10.0.12": "eth0",
    },
    devices={"lo": Device(loopback=True), "eth0": Device(loopback=False)},
    capabilities=frozenset({"NET_ADMIN", "NET_BIND_SERVICE", "SYS_ADMIN"}),
    sysctls=SYSCTLS,
    paths={name: Way(1550, "eth0") for name in ("10.10.0.3", "10.10.0.11", "10.10.0.12", "10.20.0.5")},
    steering={"nftables": None},
    namespaces=frozenset({"acme"}),
    certificates=dict.fromkeys(("gmn-1", "gin-1", "gen-1", "gpn-1", "gpn-2"), (NOW - DAY, NOW + 400 * DAY)),
)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return load(write_cluster(tmp_path, NFTABLES))


def node(cluster: Cluster, name: str) -> Node:
    found = cluster.node(name)
    assert found is not None
    return found


def alone(machine: Machine, *kept: str) -> Machine:
    """The machine with these of its addresses, and the loopback's."""
    here = {a: d for a, d in machine.addresses.items() if d == "lo" or a in kept}
    return replace(machine, addresses=here)


def sysctls(**changes: str) -> dict[str, Any]:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    return {"sysctls": SYSCTLS | {f"net.{name}": value for name, value in names.items()}}


def bad(cluster: Cluster, name: str, machine: Machine) -> list[Finding]:
    found = examine(cluster, [node(cluster, name)], machine)
    assert {finding.node for finding in found} == {name}
    return [finding for finding in found if finding.state != "ok"]


def test_a_fit_machine_has_nothing_wrong(tmp_path: Path) -> None:
    cluster = load(write_cluster(tmp_path, TUN))
    nodes = local_nodes(cluster, FIT.addresses)
    assert [each.name for each in nodes] == ["gmn-1", "gin-1", "gen-1", "gpn-1", "gpn-2"]
    found = examine(cluster, nodes, FIT)
    assert [finding for finding in found if finding.state != "ok"] == []
    looked = {finding.check for finding in found}
    assert looked >= {"address", "files", "ports", "vip", "steering", "tun", "rp_filter", "cores", "fabric"}
    arp = examine(cluster, [node(cluster, "gpn-1")], alone(FIT, "10.10.0.11"))
    assert Finding("gpn-1", "arp", "ok", "no answers for the VIP") in arp


@pytest.mark.parametrize(
    ("name", "change", "check", "state", "says", "mend"),
    [
        (
            "gpn-1",
            {"addresses": {"203.0.113.10": "lo"}},
            "address",
            "wrong",
            "10.10.0.11 is not an address of this machine",
            "ip address add 10.10.0.11/32 dev lo",
        ),
        (
            "gpn-1",
            {"addresses": {"10.10.0.11": "eth0"}},
            "vip",
            "wrong",
            "its packets to peers bear it as source",
            "ip address add 203.0.113.10/32 dev lo",
        ),
        (
            "gin-1",
            {"addresses": {"10.10.0.2": "eth0"}},
            "vip",
            "wrong",
            "peers' packets arrive there",
            "ip address add 203.0.113.10/32 dev lo",
        ),
        (
            "gen-1",
            {
                "faults": {
                    "gen-1": ("/p/gen-1.key: others can read this private key; run `chmod 600 /p/gen-1.key`",)
                }
            },
            "files",
            "wrong",
            "/p/gen-1.key: others can read this private key",
            "chmod 600 /p/gen-1.key",
        ),
        (
            "gmn-1",
            {
                "faults": {
                    "gmn-1": ("hq.auth.file: /s/hq.psk does not exist: run `protego psk generate /s/hq.psk`",)
                }
            },
            "files",
            "wrong",
            "hq.psk does not exist",
            "protego psk generate /s/hq.psk",
        ),
        (
            "gmn-1",
            {"certificates": {"gmn-1": (NOW + DAY, NOW + 2 * DAY)}},
            "clock",
            "wrong",
            "valid from 2027-01-16 08:00 UTC on, and the clock says 2027-01-15 08:00 UTC",
            "timedatectl set-ntp true",
        ),
        (
            "gmn-1",
            {"certificates": {"gmn-1": (NOW - DAY, NOW + 9 * DAY)}},
            "files",
            "warning",
            "ends at 2027-01-24",
            None,
        ),
        (
            "gpn-1",
            {"holders": {Socket("udp", "10.10.0.11", 4500): "/usr/sbin/charon"}},
            "ports",
            "wrong",
            "10.10.0.11 UDP port 4500 is held by /usr/sbin/charon",
            "ss -ulnp 'sport = :4500'",
        ),
        (
            "gmn-1",
            {"holders": {Socket("tcp", "10.10.0.1", 7443): "nginx"}},
            "ports",
            "wrong",
            "10.10.0.1 TCP port 7443 is held by nginx",
            "ss -tlnp 'sport = :7443'",
        ),
        (
            "gen-1",
            {"capabilities": frozenset()},
            "buffers",
            "warning",
            "at most 212,992 bytes",
            "sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608",
        ),
        ("gpn-1", {"gro": False}, "offload", "warning", "the kernel lacks UDP_GRO ", None),
        ("gpn-1", {"gro": False, "gso": False}, "offload", "warning", "lacks UDP_GRO and UDP_SEGMENT", None),
        (
            "gpn-1",
            {"paths": {"10.10.0.3": Way(1550, "eth0"), "10.20.0.5": Way(1500, "eth1")}},
            "fabric",
            "warning",
            "eth1 takes 1500 bytes on the way to 10.20.0.5: packets beyond 1450 go in fragments",
            "ip link set eth1 mtu 1550",
        ),
        (
            "gin-1",
            {"paths": {"10.10.0.11": Way(1499, "eth0")}},
            "fabric",
            "warning",
            "eth0 takes 1499 bytes on the way to 10.10.0.11: packets beyond 1499",
            "ip link set eth0 mtu 1500",
        ),
        (
            "gen-1",
            {"paths": {"10.10.0.11": None, "10.10.0.12": None}},
            "fabric",
            "wrong",
            "there is no route to 10.10.0.11 and 1 more: add one",
            None,
        ),
        (
            "gpn-1",
            sysctls(ipv4__conf__all__rp_filter="0"),
            "rp_filter",
            "wrong",
            "is strict on eth0",
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        ),
        (
            "gin-1",
            {"capabilities": frozenset({"NET_ADMIN"})},
            "privilege",
            "wrong",
            "UDP port 500 needs CAP_NET_BIND_SERVICE",
            "sysctl -w net.ipv4.ip_unprivileged_port_start=500",
        ),
        (
            "gin-1",
            {"steering": {"nftables": "the kernel passes no packets on: `sysctl -w net.ipv4.ip_forward=1`"}},
            "steering",
            "wrong",
            "nftables cannot run: the kernel passes no packets on",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        (
            "gin-1",
            {
                "steering": {
                    "nftables": 'nft is not installed: `apt install nftables`, or set ingress = "mux"'
                }
            },
            "steering",
            "wrong",
            "nft is not installed",
            "apt install nftables",
        ),
        (
            "gin-1",
            {"devices": {"eth0": Device(loopback=False, merging=("rx-gro-list",))}},
            "merging",
            "warning",
            "eth0 merges packets (rx-gro-list)",
            "ethtool -K eth0 rx-gro-list off",
        ),
        (
            "gin-1",
            sysctls(ipv4__conf__eth0__send_redirects="1"),
            "redirects",
            "warning",
            "GPNs' addresses on eth0",
            "sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0",
        ),
        (
            "gin-1",
            {"closed": {"ip filter FORWARD": "", "inet f c": "udp dport 4500 accept"}},
            "firewall",
            "warning",
            "the chain ip filter FORWARD drops what it does not name",
            "nft insert rule ip filter FORWARD udp dport 4500 accept",
        ),
        ("gpn-1", {"cores": 1}, "cores", "warning", "2 GPNs are to have 2 cores of 1", None),
    ],
)
def test_what_is_wrong_is_told_with_what_mends_it(
    cluster: Cluster, name: str, change: dict[str, Any], check: str, state: str, says: str, mend: str | None
) -> None:
    found = bad(cluster, name, replace(FIT, **change))
    (finding,) = found if "addresses" not in change else [each for each in found if each.check == check]
    assert (finding.check, finding.state) == (check, state)
    assert says in finding.says
    if mend is not None:
        assert finding.mend == mend


def test_a_certificate_that_is_no_good_goes_before_another_is_made(cluster: Cluster) -> None:
    """`protego pki init` overwrites nothing, so by itself it would mend nothing."""
    pki.init(cluster)
    (cluster.pki / "gpn-2.pem").replace(cluster.pki / "gpn-1.pem")
    with pytest.raises(EnvironmentFault) as caught:
        pki.client_context(cluster, "gpn-1")
    (finding,) = bad(cluster, "gpn-1", replace(FIT, faults={"gpn-1": (str(caught.value),)}))
    leaf = cluster.pki / "gpn-1"
    assert finding.mend == f"rm -f {leaf}.pem {leaf}.key; protego pki init -c {cluster.file}"


def test_a_gpn_needs_no_vip_where_gins_send_for_it(tmp_path: Path) -> None:
    bare = alone(replace(FIT, addresses={"10.10.0.11": "eth0"}), "10.10.0.11")
    direct = load(write_cluster(tmp_path, NFTABLES))
    assert [finding.check for finding in bad(direct, "gpn-1", bare)] == ["vip"]
    through = NFTABLES.replace("[cluster]\n", '[cluster]\nreturn = "gin"\n')
    assert bad(load(write_cluster(tmp_path, through)), "gpn-1", bare) == []


def test_arp_matters_where_no_gin_is(cluster: Cluster) -> None:
    talkative = replace(FIT, **sysctls(ipv4__conf__all__arp_ignore="0"))
    assert bad(cluster, "gpn-1", talkative) == []
    (finding,) = bad(cluster, "gpn-1", alone(talkative, "10.10.0.11"))
    assert (finding.check, finding.state) == ("arp", "warning")
    assert finding.mend == "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2"


def test_with_mux_nobody_asks_for_what_nftables_needs(tmp_path: Path) -> None:
    cluster = load(write_cluster(tmp_path, NFTABLES.replace('"nftables"', '"mux"')))
    strict = replace(
        FIT,
        closed={"ip filter FORWARD": ""},
        devices={"eth0": Device(loopback=False, merging=("rx-gro-list",))},
        **sysctls(ipv4__conf__all__rp_filter="1", ipv4__conf__all__send_redirects="1"),
    )
    assert bad(cluster, "gpn-1", strict) == bad(cluster, "gin-1", strict) == []


def test_auto_only_warns(tmp_path: Path) -> None:
    cluster = load(write_cluster(tmp_path, NFTABLES.replace('"nftables"', '"auto"')))
    (finding,) = bad(cluster, "gin-1", replace(FIT, steering={"nftables": "it is broken: `mend it`"}))
    assert finding == Finding("gin-1", "steering", "warning", "mux, because it is broken", "mend it")


@pytest.mark.parametrize(
    ("change", "says", "mend"),
    [
        (
            {"tun": "/dev/net/tun: No such file or directory"},
            "acme0: /dev/net/tun: No such file",
            "modprobe tun",
        ),
        ({"capabilities": frozenset({"NET_ADMIN"})}, "acme0: needs CAP_SYS_ADMIN", None),
        ({"namespaces": frozenset()}, "there is no network namespace acme", "ip netns add acme"),
    ],
)
def test_a_tun_device_needs_its_things(
    tmp_path: Path, change: dict[str, Any], says: str, mend: str | None
) -> None:
    cluster = load(write_cluster(tmp_path, TUN))
    (finding,) = bad(cluster, "gen-1", replace(FIT, **change))
    assert (finding.check, finding.state, finding.mend) == ("tun", "wrong", mend)
    assert says in finding.says


def test_a_node_that_runs_already_holds_its_ports(cluster: Cluster) -> None:
    held = dict.fromkeys(listeners(cluster, cluster.nodes), "python protego up --name gin-1")
    assert bad(cluster, "gin-1", replace(FIT, holders=held)) == []
    assert Socket("udp", "203.0.113.10", 500) in held
    assert Socket("tcp", "10.10.0.1", 7443) in held


def test_every_role_is_looked_at(cluster: Cluster) -> None:
    assert set(CHECKS) == {each.role for each in cluster.nodes}


# ---- ESP without UDP


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gin-1", "without CAP_NET_RAW all tunnels use UDP"),
        ("gpn-1", "without CAP_NET_RAW ESP without UDP leaves through the GINs"),
    ],
)
def test_raw_sockets_matter_where_some_tunnel_does_without_udp(tmp_path: Path, name: str, says: str) -> None:
    def about(text: str, machine: Machine) -> list[Finding]:
        cluster = load(write_cluster(tmp_path, text))
        found = examine(cluster, [node(cluster, name)], machine)
        return [finding for finding in found if finding.check == "raw ESP"]

    auto = NFTABLES.replace('name = "demo"', 'name = "demo"\nencapsulation = "auto"')
    assert about(NFTABLES, FIT) == []
    (finding,) = about(auto, FIT)
    assert finding.state == "warning"
    assert says in finding.says
    assert finding.mend == f"systemctl edit protego@{name}"
    able = replace(FIT, capabilities=FIT.capabilities | {"NET_RAW"})
    assert about(auto, able) == [Finding(name, "raw ESP", "ok", "may open raw sockets")]
    through = auto.replace('name = "demo"', 'name = "demo"\nreturn = "gin"')
    assert [finding.check for finding in about(through, able)] == ["raw ESP"] * (name == "gin-1")


def test_esp_without_udp_is_longer_in_the_fabric(tmp_path: Path) -> None:
    text = NFTABLES.replace('name = "demo"', 'name = "demo"\nencapsulation = "auto"')
    cluster = load(write_cluster(tmp_path, text))
    machine = replace(FIT, paths={"10.10.0.11": Way(1500, "eth0")})
    found = {finding.check: finding for finding in bad(cluster, "gin-1", machine)}
    assert "packets beyond 1492" in found["fabric"].says
    assert found["fabric"].mend == "ip link set eth0 mtu 1508"


# ---- the command


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "protego_cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_tells_and_exits_1(tmp_path: Path) -> None:
    file = str(write_cluster(tmp_path))
    done = doctor("-c", file, "--node", "gpn-1", "--json")
    assert done.returncode == 1, done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert found["address"]["state"] == "wrong"
    assert found["files"]["mend"] == f"protego pki init -c {file}"
    assert "cores" in found
    told = doctor("-c", file, "--node", "gpn-1")
    assert told.returncode == 1
    assert "To mend it:\n    ip address add 10.10.0.11/32 dev lo\n" in told.stdout


def test_nodes_that_are_not_here_or_nowhere(tmp_path: Path) -> None:
    file = str(write_cluster(tmp_path))
    none = doctor("-c", file)
    assert (none.returncode, none.stdout) == (4, "")
    assert "no node of" in none.stderr
    assert "--node" in none.stderr
    unknown = doctor("-c", file, "--node", "gpn-9")
    assert unknown.returncode == 4
    assert "has no node 'gpn-9'" in unknown.stderr
