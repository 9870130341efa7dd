"""A machine, here a network namespace, that is set up by nothing but what `protego doctor` says."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.clusters import changed, write_cluster
from tests.support.netns import Namespace, namespaces, veth, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NODES = ("gmn-1", "gin-1", "gen-1", "gpn-1")
CLUSTER = changed(
    ('name = "demo"', 'name = "clinic"\ningress = "nftables"'),
    ('[nodes.gpn-2]\nrole = "gpn"\naddress = "10.10.0.12"\n', ""),
)


def doctor(space: Namespace, file: Path, *node: str) -> list[dict[str, Any]]:
    """What it finds for a node, or for those of the machine; the exit code fits."""
    command = [sys.executable, "-m", "protego_cli", "doctor", "-c", str(file), "--json"]
    command += ["--node", *node] if node else []
    told = space.run("sh", "-c", f"{shlex.join(command)}; echo $?")
    findings, code = told.strip().rsplit("\n", 1)
    found = list(json.loads(findings))
    assert code == ("1" if any(each["state"] == "wrong" for each in found) else "0")
    return found


def faults(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in found if each["state"] != "ok"]


def test_its_commands_alone_make_a_machine_fit(tmp_path: Path) -> None:
    file = write_cluster(tmp_path, CLUSTER)
    with namespaces("clinic", "lan") as (space, lan):
        veth(space, "eth0", "10.20.0.1/24", lan, "eth0", "10.20.0.5/24")
        space.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.all.rp_filter=1")
        space.run(
            "nft", "add table ip f; add chain ip f c { type filter hook forward priority 0; policy drop; }"
        )
        space.run("ethtool", "-K", "eth0", "rx-udp-gro-forwarding", "on")
        first = [each for node in NODES for each in doctor(space, file, node)]
        wrong = {each["check"] for each in first if each["state"] == "wrong"}
        assert wrong == {"address", "files", "vip", "steering", "rp_filter", "fabric"}
        warned = {each["check"] for each in first if each["state"] == "warning"}
        assert warned == {"merging", "redirects", "fabric", "firewall"}
        seen: set[str] = set()
        found = faults(first)
        while fresh := sorted({each["mend"] for each in found} - seen - {None}):
            for mend in fresh:
                space.run("sh", "-c", mend.replace("protego ", f"{sys.executable} -m protego_cli "))
            seen.update(fresh)
            found = faults(doctor(space, file))  # what is behind a fault shows when that is mended
        assert found == []
        assert {each["node"] for each in doctor(space, file)} == set(NODES)
        assert {"sysctl -w net.ipv4.ip_forward=1", "ip link set eth0 mtu 1550"} <= seen

        log = tmp_path / "gin-1.log"
        gin = space.popen(
            sys.executable, "-m", "protego_cli", "up", "--name", "gin-1", "-c", str(file), log=log
        )
        try:
            wait_until(lambda: "UNCONN" in space.run("ss", "-Hulnp", "sport = :4500"), "the GIN bound")
            assert faults(doctor(space, file)) == [], "it may run already"
        finally:
            gin.terminate()
            gin.wait()
        assert '"backend": "nftables"' in log.read_text()
