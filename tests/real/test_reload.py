"""Reloads under a real strongSwan's traffic: not one packet is lost to them."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import wait_until
from tests.support.site import Site, site
from tests.support.site import swanctl_conf as conf
from tests.support.traffic import without_loss

pytestmark = pytest.mark.root

GPN_3 = '[nodes.gpn-3]\nrole = "gpn"\naddress = "10.10.0.13"\n\n'
PROPOSALS = 'esp = ["aes256gcm16-x25519", "aes256gcm16"]', 'esp = ["aes256gcm16", "aes256gcm16-x25519"]'


def edit(place: Site, old: str, new: str) -> bool:
    """Replace some text of the cluster file, if it is there."""
    text = place.cluster.read_text()
    place.cluster.write_text(text.replace(old, new, 1))
    return old in text


def reloaded(place: Site) -> list[tuple[str, str]]:
    found: dict[str, Any] = json.loads(place.protego("reload", "--json"))
    assert found["applied"]
    return [(change["name"], change["outcome"]) for change in found["changes"]]


def test_a_gpn_is_added_and_takes_the_tunnel(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(conf())
        place.swan.initiate()
        place.wait_tunnel()
        place.ping()
        place.gateway.ip("addr", "add", "10.10.0.13/32", "dev", "lo")

        def add_and_move() -> None:
            if "gpn-3" not in place.roles:
                assert edit(place, "[tenants.acme]", GPN_3 + "[tenants.acme]")
                place.protego("pki", "init")
                before = place.tunnel()["spi_in"]
                assert reloaded(place) == [("gpn-3", "done")]
                assert place.tunnel()["spi_in"] == before
                place.start("gpn-3")
                wait_until(place.nodes_up, "gpn-3 up", every=0.1)
            assert place.migrate("gpn-3")["to"] == "gpn-3"
            assert place.migrate("gpn-1")["to"] == "gpn-1"

        without_loss(place, add_and_move)


def test_new_proposals_rekey_on_sighup(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(conf())
        place.swan.initiate()
        place.wait_tunnel()
        place.ping()

        def hang_up() -> None:
            before = place.tunnel()["spi_in"]
            if not edit(place, *PROPOSALS):
                edit(place, PROPOSALS[1], PROPOSALS[0])
            place.roles["gmn-1"].send_signal(signal.SIGHUP)
            wait_until(lambda: place.tunnel()["spi_in"] != before, "the rekey", every=0.1)

        without_loss(place, hang_up)
        wait_until(lambda: len(place.swan.child_spis()) == 1, "the old CHILD_SA deleted")
        assert place.tunnel()["spi_out"] == place.swan.child_spis()[0]


def test_a_tunnel_that_is_removed_is_closed_at_its_peer(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(conf())
        place.swan.initiate()
        place.wait_tunnel()
        text = place.cluster.read_text()
        place.cluster.write_text(text[: text.index("[tenants.acme.tunnels.hq]")])
        assert reloaded(place) == [("acme/hq", "done")]
        wait_until(lambda: not place.swan.child_spis(), "the CHILD_SA deleted")
        assert place.status()["tunnels"] == []
