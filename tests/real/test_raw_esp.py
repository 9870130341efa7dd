"""ESP without UDP (`encapsulation = "auto"`) with a real strongSwan that can: both ways, moved without loss.

Which form the packets had is told by the peer's kernel, which counts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.test_strongswan import check_moves, migrate_many, without_loss
from tests.support.netns import wait_until
from tests.support.site import Site, site, swanctl_conf

pytestmark = [pytest.mark.root, pytest.mark.strongswan6, pytest.mark.timeout(240)]

AUTO = 'encapsulation = "auto"'
GIN = f'{AUTO}\nreturn = "gin"'
FORMS = """\
table ip forms {
  counter raw_in { }
  counter raw_out { }
  counter udp_in { }
  counter udp_out { }
  chain in {
    type filter hook input priority 0;
    meta l4proto esp counter name raw_in
    udp sport 4500 @th,64,32 != 0 udp length > 12 counter name udp_in
  }
  chain out {
    type filter hook output priority 0;
    meta l4proto esp counter name raw_out
    udp dport 4500 @th,64,32 != 0 udp length > 12 counter name udp_out
  }
}
"""


def forms(place: Site) -> dict[str, int]:
    """How many ESP packets the peer got and sent in either form."""
    listed = json.loads(place.customer.run("nft", "-j", "list", "counters", "table", "ip", "forms"))
    counters = (entry["counter"] for entry in listed["nftables"] if "counter" in entry)
    return {counter["name"]: counter["packets"] for counter in counters}


@contextmanager
def raw_site(
    directory: Path, settings: str = AUTO, *, start: str = "wait", encap: str = "no"
) -> Iterator[Site]:
    """A site with its tunnel up, whose customer could do without UDP."""
    with site(directory, settings=settings, start=start, newer=True) as place:
        (directory / "forms.nft").write_text(FORMS)
        place.customer.run("nft", "-f", str(directory / "forms.nft"))
        place.swan.load(swanctl_conf(encap=encap))
        if start == "wait":
            place.swan.initiate()
        place.wait_tunnel(timeout=30)
        place.ping()
        yield place


def only_raw(place: Site) -> None:
    seen = forms(place)
    assert seen["raw_in"] > 100, seen
    assert seen["raw_out"] > 100, seen
    assert seen["udp_in"] == seen["udp_out"] == 0, seen


def shown(place: Site) -> bool:
    """Whether `protego tunnel show` tells of ESP in UDP."""
    (ike_sa,) = json.loads(place.protego("tunnel", "show", "acme/hq", "--json"))["ike_sas"]
    return bool(ike_sa["encapsulated"])


@pytest.mark.parametrize("settings", [AUTO, GIN], ids=["direct", "through the GIN"])
@pytest.mark.parametrize("start", ["wait", "auto"], ids=["peer dials", "gateway dials"])
def test_raw_esp_migrates_without_loss(tmp_path: Path, settings: str, start: str) -> None:
    with raw_site(tmp_path, settings, start=start) as place:
        check_moves(without_loss(place, lambda: migrate_many(place))["action"])
        wait_until(lambda: len(place.swan.child_spis()) == 1, "the old CHILD_SAs deleted")
        only_raw(place)
        assert not shown(place)
        wait_until(lambda: place.counters("gin-1").get("gin_esp_raw", 0) > 100, "the GIN's count", every=0.2)
        through = place.counters("gin-1").get("gin_esp_to_peer", 0)
        assert (through > 100) is (settings == GIN)
