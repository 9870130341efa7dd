"""A strongSwan peer, a GIN on a machine of its own that steers by each of the backends, two GPNs behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.netns import Namespace, wait_until
from tests.support.site import CUSTOMER_INNER, TENANT_INNER, VIP, Site, site, swanctl_conf
from tests.support.traffic import without_loss

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

BOTH = pytest.mark.parametrize("backend", ["mux", "nftables"])
TABLE = "table ip protego.site.gin-1"
NAT = """\
table ip nat0 {{
  chain out {{ type filter hook output priority 0; udp sport 4500 udp sport set {port}; }}
  chain in {{ type filter hook prerouting priority 0; udp dport {{ 60001, 60002 }} udp dport set 4500; }}
}}
"""
STRAY = """\
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(5):
    sock.sendto(bytes.fromhex("7777777700000001") + bytes(92), (sys.argv[1], 4500))
"""


def behind_nat(space: Namespace, port: int, directory: Path) -> None:
    """Let the peer's packets leave from another port from now on, as a NAT that lost its state does."""
    file = directory / f"nat-{port}.nft"
    file.write_text("table ip nat0\ndelete table ip nat0\n" + NAT.format(port=port))
    space.run("nft", "-f", str(file))


def reassembled(space: Namespace) -> int:
    """Datagrams that the kernel has put together from fragments."""
    names, values = [
        line.split()[1:] for line in space.run("cat", "/proc/net/snmp").splitlines() if line[:3] == "Ip:"
    ]
    return int(dict(zip(names, values, strict=True))["ReasmOKs"])


def has_table(edge: Namespace) -> bool:
    return TABLE in edge.run("nft", "list", "tables")


def ports(place: Site) -> set[int]:
    """Of the peer, where the gateway sends ESP and IKE."""
    shown = json.loads(place.protego("tunnel", "show", "acme/hq", "--json"))
    return {int(sa["peer"].rpartition(":")[2]) for sa in (*shown["child_sas"], *shown["ike_sas"])}


def carries(place: Site, size: int = 56) -> None:
    """Wait until packets come through both ways."""
    ask = ("ping", "-c", "1", "-W", "1", "-s", str(size), "-I", CUSTOMER_INNER, TENANT_INNER)
    wait_until(lambda: " 1 received" in place.customer.run(*ask, check=False), "an answer", every=0.1)


def other(place: Site) -> str:
    return next(name for name in place.gpns if name != place.tunnel()["gpn"])


@BOTH
def test_a_peer_is_served(tmp_path: Path, backend: str) -> None:
    """Moved under traffic without loss, followed by its port, in fragments, beside strays, after the end of a
    GPN and of the GIN."""
    with site(tmp_path, edge=backend) as place:
        edge = place.edge
        assert edge is not None
        behind_nat(place.customer, 60001, tmp_path)
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        carries(place)
        wait_until(lambda: has_table(edge) == (backend == "nftables"), "the kernel steers, or not")
        assert ports(place) == {60001}

        def move_and_rekey() -> None:
            for _ in range(3):
                place.migrate(other(place))
            place.swan.rekey_child()

        seen = without_loss(place, move_and_rekey)
        wait_until(lambda: len(place.swan.child_spis()) == 1, "the old CHILD_SAs deleted", every=0.1)
        forwarded = place.counters("gin-1")["gin_esp_forwarded"]
        assert forwarded >= seen["udp"]["sent"] / 64  # the kernel counts what it had merged once
        kernel = re.findall(r"packets (\d+)", edge.run("nft", "list", "counters"))
        assert [int(packets) >= 0.9 * forwarded for packets in kernel] == [True] * (backend == "nftables")

        behind_nat(place.customer, 60002, tmp_path)
        carries(place)
        wait_until(lambda: ports(place) == {60002}, "the peer is followed", every=0.1)

        before = reassembled(edge)
        place.customer.ip("link", "set", "in", "mtu", "600")
        carries(place, size=1200)
        assert reassembled(edge) > before
        place.customer.ip("link", "set", "in", "mtu", "1500")

        place.customer.run("python3", "-c", STRAY, VIP)
        wait_until(
            lambda: place.counters("gin-1").get("gin_drop_unknown_spi", 0) == 5, "strays counted", every=0.1
        )
        place.swan.terminate()
        place.wait_tunnel("down")
        place.swan.initiate()
        place.wait_tunnel()

        gpn = place.tunnel()["gpn"]
        place.kill(gpn)
        place.start(gpn)
        wait_until(lambda: "node restarted" in place.protego("events", "--node", gpn), "noticed", every=0.1)
        carries(place)
        assert ("marks missing" in place.protego("events", "-n", "1000")) == (backend == "nftables")

        place.kill("gin-1")
        wait_until(lambda: edge.run("nft", "list", "tables") == "", "no table is left")
        place.start("gin-1")
        carries(place)
        wait_until(lambda: has_table(edge) == (backend == "nftables"), "the kernel steers, or not")
        gin = place.roles.pop("gin-1")
        gin.terminate()
        assert gin.wait() == 0
        assert edge.run("nft", "list", "ruleset") == ""
        assert all("Traceback" not in place.log(node) for node in (*place.roles, "gin-1"))
