"""A real strongSwan 5.9 dials the gateway, or is dialled; its tunnel is moved, rekeyed and broken.

Runs without loss: `tests.support.traffic`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import CommandFailed, wait_until
from tests.support.site import (
    CUSTOMER_INNER,
    CUSTOMER_INNER6,
    GATEWAY_INNER,
    GATEWAY_INNER6,
    GATEWAY_MAC,
    TENANT_INNER,
    TENANT_INNER6,
    VIP,
    LanProgram,
    Site,
    site,
    swanctl_conf,
)
from tests.support.traffic import check_moves, migrate_many, without_loss

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

COLLISIONS = 25 if os.environ.get("PROTEGO_ACCEPTANCE") else 8  # of each kind
BUSY = 3.0  # seconds for strongSwan to begin: it cannot while it waits for an answer, which it does not hear
HURRIED = "\n[ike]\nretransmit_first = 0.2\nretransmit_base = 1.1\nretransmit_tries = 20\n"


def test_peer_initiates_and_migrates_without_loss(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        place.ping()
        check_moves(without_loss(place, lambda: migrate_many(place))["action"])
        wait_until(lambda: len(place.swan.child_spis()) == 1, "the old CHILD_SAs deleted")
        assert place.tunnel()["spi_out"] == place.swan.child_spis()[0]


def test_gateway_initiates_and_migrates_without_loss(tmp_path: Path) -> None:
    with site(tmp_path, start="auto") as place:
        place.swan.load(swanctl_conf())
        place.wait_tunnel(timeout=30)
        place.ping()
        check_moves(without_loss(place, lambda: migrate_many(place))["action"])
        wait_until(lambda: len(place.swan.child_spis()) == 1, "the old CHILD_SAs deleted")


def test_peer_rekeys_under_traffic_without_loss(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()

        def rekey_thrice() -> None:
            for _ in range(3):
                spis = place.swan.child_spis()
                place.swan.rekey_child()
                wait_until(
                    lambda spis=spis: len(now := place.swan.child_spis()) == 1 and now != spis,
                    "a fresh CHILD_SA alone",
                    every=0.1,
                )

        without_loss(place, rekey_thrice)
        wait_until(
            lambda: place.tunnel()["spi_out"] == place.swan.child_spis()[0], "both ends agree", every=0.2
        )


def test_the_gateway_is_found_by_arp_and_neighbour_discovery_alone(tmp_path: Path) -> None:
    """A kernel vxlan device, of which one may have learned that the gateway's MAC is at a GPN, resolves,
    verifies and pings the gateway."""
    with site(tmp_path) as place:
        for address in (GATEWAY_INNER, GATEWAY_INNER6):
            place.tenant.run("ping", "-c", "2", "-i", "0.05", "-W", "2", "-q", address)
            assert f"lladdr {GATEWAY_MAC}" in place.tenant.ip("neigh", "show", address)
        wait_until(
            lambda: place.counters("gen-1").get("gen_answered", 0) >= 6, "two times three answers", every=0.2
        )
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        for gpn in ("10.10.0.11", "10.10.0.12"):  # as a learning device has it after packets of a peer
            place.tenant.run("bridge", "fdb", "replace", GATEWAY_MAC, "dev", "vx0", "dst", gpn)
            for address in (GATEWAY_INNER, GATEWAY_INNER6):
                place.tenant.run(
                    "ip", "neigh", "replace", address, "lladdr", GATEWAY_MAC, "dev", "vx0", "nud", "probe"
                )
                wait_until(
                    lambda address=address: "REACHABLE" in place.tenant.ip("neigh", "show", address),
                    f"{address} answers a unicast probe through {gpn}",
                )
                place.tenant.run("ping", "-c", "2", "-i", "0.05", "-W", "2", "-q", address)
        place.tenant.run("ping", "-c", "1", "-W", "1", "10.1.0.2", check=False)  # nobody's address
        assert "lladdr" not in place.tenant.ip("neigh", "show", "10.1.0.2")


def test_inner_ipv6(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        reflector = LanProgram(place.tenant, "reflect", TENANT_INNER6, "7001")
        pump = LanProgram(place.customer, "pump", CUSTOMER_INNER6, TENANT_INNER6, "7001", "500", "32")
        wait_until(lambda: place.tunnel()["packets_out"] > 200, "IPv6 packets both ways", every=0.2)
        udp = pump.finish()
        reflector.finish()
        assert udp["sent"] > 200
        assert udp["lost"] == udp["corrupted"] == 0, udp


def test_gpn_restart_resumes_within_two_seconds(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        reflector = LanProgram(place.tenant, "reflect", TENANT_INNER, "7001")
        # The window is never the limit here: what is lost while the node is gone would fill it.
        pump = LanProgram(place.customer, "pump", CUSTOMER_INNER, TENANT_INNER, "7001", "500", "100000")
        wait_until(lambda: place.tunnel()["packets_in"] > 200, "traffic", every=0.2)
        node = place.tunnel()["gpn"]
        place.kill(node)
        place.start(node)
        time.sleep(4)  # the measurement's length, not a wait for something: the gap is measured by the pump
        udp = pump.finish()
        reflector.finish()
        assert udp["longest_gap"] < 2, udp
        assert udp["duplicated"] == udp["corrupted"] == 0, udp
        assert udp["received"] > 500, udp
        wait_until(lambda: len(place.swan.child_spis()) == 1, "rekeyed and the old CHILD_SA deleted")


def test_peer_leaves_and_returns(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        for _ in range(2):
            place.swan.initiate()
            place.wait_tunnel("up")
            place.ping()
            place.swan.terminate()
            place.wait_tunnel("down")


def test_the_operator_takes_it_down_and_up(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        place.protego("tunnel", "down", "acme/hq")
        assert place.tunnel()["held"]
        wait_until(lambda: "ESTABLISHED" not in place.swan.sas(), "the peer has let go", every=0.1)
        with pytest.raises(CommandFailed):
            place.swan.initiate()
        assert "N(AUTH_FAILED)" in place.swan.log
        place.kill("gmn-1")
        place.start("gmn-1")
        wait_until(place.nodes_up, "every node up again", every=0.2)
        assert place.tunnel()["held"]
        place.protego("tunnel", "up", "acme/hq")  # we dial
        place.wait_tunnel("up")
        place.ping()
        place.protego("tunnel", "rekey", "acme/hq")
        place.protego("tunnel", "rekey", "acme/hq", "--ike")
        place.ping()
        wait_until(lambda: len(place.swan.child_spis()) == 1, "the old CHILD_SA deleted")


def explanation(place: Site) -> dict[str, Any]:
    """Of the last negotiation, which has failed."""
    document = json.loads(place.protego("explain", "acme/hq", "--json"))
    assert "pre-shared-key" not in json.dumps(document)
    assert not document["found"][0]["ok"]
    return dict(document["found"][0])


@pytest.mark.parametrize(
    ("change", "on_the_wire", "told", "topic", "advice"),
    [
        (
            {"psk": "quite-another-pre-shared-key"},
            *("AUTH_FAILED", "pre-shared key", "pre-shared key", "there: secrets { ike { secret = … } }"),
        ),
        (
            {"ike": "aes128gcm16-prfsha256-x25519"},
            *("NO_PROP", "ENCR aes256gcm16 against aes128gcm16", "IKE cipher"),
            "there: proposals = aes256gcm16-prfsha256-x25519",
        ),
        (
            {"esp": "aes128gcm16"},
            *(
                "NO_PROP",
                "aes256gcm16",
                "ESP cipher",
                "there: esp_proposals = aes256gcm16-x25519,aes256gcm16",
            ),
        ),
        (
            {"local_ts": "10.77.0.0/24"},
            *("TS_UNACCEPT", "10.2.0.0/24", "remote selector", "there: local_ts = 10.2.0.0/24,fd00:2::/64"),
        ),
    ],
    ids=["psk", "ike-proposal", "esp-proposal", "selectors"],
)
def test_mismatch_is_told_on_the_wire_in_the_log_and_in_status(
    tmp_path: Path, change: dict[str, str], on_the_wire: str, told: str, topic: str, advice: str
) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf(**change))
        with pytest.raises(CommandFailed):
            place.swan.initiate()
        assert f"N({on_the_wire})" in place.swan.log
        tunnel = place.tunnel()
        assert tunnel["state"] == "down"
        assert told in tunnel["error"]
        assert "acme/hq" in place.log("gmn-1")
        assert told in place.log("gmn-1")
        explained = explanation(place)
        assert explained["initiator"] == "peer"
        assert topic in [row["topic"] for row in explained["rows"] if row["result"] == "differs"]
        assert advice in explained["advice"]
        # Now we dial: the peer refuses, and what it wants it does not tell.
        with pytest.raises(CommandFailed, match=r"acme/hq is not up: the peer answered"):
            place.protego("tunnel", "up", "acme/hq")
        explained = explanation(place)
        assert explained["initiator"] == "gateway"
        assert advice in explained["advice"]
        # The fault is the only one: with it mended the same peer comes up.
        wait_until(lambda: "ESTABLISHED" not in place.swan.sas(), "no IKE_SA without CHILD_SA", every=0.1)
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()


@pytest.mark.parametrize("learning", [True, False], ids=["learning", "nolearning"])
def test_a_vtep_that_learns_loses_nothing_in_a_migration(tmp_path: Path, learning: bool) -> None:
    """A vxlan device that learns sends to the GPN it heard last, which passes on what it no longer seals."""
    with site(tmp_path) as place:
        if learning:
            place.tenant.run("ip", "link", "set", "vx0", "type", "vxlan", "learning")
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        without_loss(place, lambda: place.migrate(next(n for n in place.gpns if n != place.tunnel()["gpn"])))


def test_a_hundred_thousand_hostile_datagrams_stop_nothing(tmp_path: Path) -> None:
    """Random, truncated and mutated IKE, ESP, tags and VXLAN at every data port, from outside and inside."""
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        tunnel = place.tunnel()
        spi = bytes.fromhex(tunnel["spi_in"])
        script = Path(__file__).parents[1] / "support" / "hostile.py"
        for space in (place.customer, place.gateway):
            targets = [f"{VIP}:500", f"{VIP}:4500"]
            if space is place.gateway:
                targets += ["10.10.0.1:4501", "10.10.0.2:4501", "10.10.0.3:4789", "10.10.0.3:4501"]
                targets += [
                    f"10.10.0.{11 + n}:{port}" for n in range(len(place.gpns)) for port in (4500, 4789)
                ]
            space.run("python3", str(script), "50000", spi.hex(), *targets, timeout=120)
        place.ping()
        status = place.status()
        assert {node["state"] for node in status["nodes"]} == {"up"}
        assert status["tunnels"][0]["state"] == "up"
        counters = {name: count for node in status["nodes"] for name, count in node["counters"].items()}
        for reason in (
            "gin_drop_unknown_spi",
            "gin_drop_tag_outside",
            "gpn_drop_auth",
            "gmn_drop_envelope",
            "ike_drop_malformed",
        ):
            assert counters.get(reason, 0) > 0, (reason, counters)
        assert all("Traceback" not in place.log(node) for node in place.roles)


@pytest.mark.parametrize("what", ["child", "ike"])
def test_rekeys_that_cross_under_traffic_without_loss(tmp_path: Path, what: str) -> None:
    """Ours leaves while strongSwan is deaf, then it is told to rekey, too: they cross, unless it is busy.
    Ours reaches it first when it hears again.
    """
    with site(tmp_path, settings=HURRIED) as place:
        swan = place.swan
        swan.configure(retransmit_timeout=0.8)
        swan.load(swanctl_conf())
        swan.initiate()
        place.wait_tunnel()
        command = ("tunnel", "rekey", "acme/hq", *(["--ike"] if what == "ike" else []))

        def begun() -> int:
            return swan.log.count("generating CREATE_CHILD_SA request")

        def asked(sent: int) -> bool:
            return place.counters("gmn-1")["gmn_ike_out"] > sent

        def fresh(before: tuple[list[str], list[tuple[str, str]]]) -> bool:
            children, ikes = swan.installed_spis(), swan.ike_spis()
            alone = len(children) == len(ikes) == 1 and swan.at_rest()
            return alone and (ikes != before[1] if what == "ike" else children != before[0])

        def cross() -> bool:
            """Once; whether both requests were on their way side by side."""
            before = swan.installed_spis(), swan.ike_spis()
            sent, requests = place.counters("gmn-1")["gmn_ike_out"], begun()
            ours = threading.Thread(target=place.protego, args=command)
            with swan.deaf():
                ours.start()
                wait_until(lambda: asked(sent), "our request", every=0)
                (swan.rekey_ike if what == "ike" else swan.rekey_child)()
                deadline = time.monotonic() + BUSY
                while begun() == requests and time.monotonic() < deadline:
                    time.sleep(0.01)
                crossed = begun() > requests
            ours.join()
            wait_until(lambda: fresh(before), "one of each, and fresh", every=0.1)
            return crossed

        def collide() -> list[bool]:
            crossed: list[bool] = []
            while sum(crossed) < COLLISIONS and len(crossed) < 2 * COLLISIONS:
                crossed.append(cross())
            return crossed

        crossed: list[bool] = without_loss(place, collide)["action"]
        seen = swan.log.count(f"detected {what.upper()}_REKEY collision with {what.upper()}_REKEY")
        print(what, "rekeys crossed:", sum(crossed), "of", len(crossed), "strongSwan says so of", seen)
        assert sum(crossed) == COLLISIONS
        assert seen > 0
        wait_until(lambda: [place.tunnel()["spi_out"]] == swan.installed_spis(), "both ends agree", every=0.2)
        place.ping()
