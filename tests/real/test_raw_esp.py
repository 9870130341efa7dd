"""ESP without UDP (`encapsulation = "auto"`) with a real strongSwan that can: both ways, moved without loss.

Which form the packets had is told by the peer's kernel, which counts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.netns import wait_until
from tests.support.site import CUSTOMER_INNER, TENANT_INNER, VIP, LanProgram, Site, site, swanctl_conf
from tests.support.traffic import check_moves, migrate_many, without_loss

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


NAT = """\
table ip nat0 {
  chain out {
    type filter hook output priority 10;
    udp sport 500 udp sport set 40500
    udp sport 4500 udp sport set 44500
  }
  chain in {
    type filter hook prerouting priority 0;
    udp dport 40500 udp dport set 500
    udp dport 44500 udp dport set 4500
  }
}
"""


def behind_nat(place: Site) -> None:
    """The peer's packets come from other ports than it sends them from; it can still be dialled."""
    file = place.directory / "nat.nft"
    file.write_text(NAT)
    place.customer.run("nft", "-f", str(file))


@contextmanager
def raw_site(
    directory: Path,
    settings: str = AUTO,
    *,
    start: str = "wait",
    encap: str = "no",
    edge: str | None = None,
    before: Callable[[Site], None] = lambda place: None,
) -> Iterator[Site]:
    """A site with its tunnel up, whose customer could do without UDP. `before`: to be done before that."""
    with site(directory, settings=settings, start=start, edge=edge, newer=True) as place:
        before(place)
        (directory / "forms.nft").write_text(FORMS)
        place.customer.run("nft", "-f", str(directory / "forms.nft"))
        place.swan.load(swanctl_conf(encap=encap))
        if start == "wait":
            place.swan.initiate()
        place.wait_tunnel(timeout=30)
        place.ping()
        yield place


def only(form: str, place: Site, least: int) -> None:
    seen = forms(place)
    counted = {name: count for name, count in seen.items() if name.startswith(form)}
    assert min(counted.values()) > least, seen
    assert sum(counted.values()) == sum(seen.values()), seen


def only_raw(place: Site, least: int = 100) -> None:
    only("raw", place, least)


def only_udp(place: Site, least: int = 100) -> None:
    only("udp", place, least)


def other(place: Site) -> str:
    """The GPN where the tunnel is not."""
    here = place.tunnel()["gpn"]
    return next(name for name in place.gpns if name != here)


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


@pytest.mark.parametrize("what", ["child", "ike"])
def test_the_peer_rekeys_raw_esp_without_loss(tmp_path: Path, what: str) -> None:
    with raw_site(tmp_path) as place:

        def rekey_thrice() -> None:
            for _ in range(3):
                before = place.swan.installed_spis(), place.swan.ike_spis()
                (place.swan.rekey_ike if what == "ike" else place.swan.rekey_child)()
                wait_until(lambda before=before: fresh(place, before), "one of each, and fresh", every=0.1)

        def fresh(place: Site, before: tuple[list[str], list[tuple[str, str]]]) -> bool:
            children, ikes = place.swan.installed_spis(), place.swan.ike_spis()
            changed = ikes != before[1] if what == "ike" else children != before[0]
            return len(children) == len(ikes) == 1 and changed and place.swan.at_rest()

        without_loss(place, rekey_thrice)
        without_loss(place, lambda: place.protego("tunnel", "rekey", "acme/hq"))
        only_raw(place)


def test_a_peer_that_wants_udp_gets_it(tmp_path: Path) -> None:
    with raw_site(tmp_path, encap="yes") as place:
        without_loss(place, lambda: place.migrate(other(place)))
        only_udp(place)
        assert shown(place)


def test_a_nat_between_them_makes_it_udp(tmp_path: Path) -> None:
    """The peer's address stays, its ports do not."""
    with raw_site(tmp_path, before=behind_nat) as place:
        without_loss(place, lambda: place.migrate(other(place)))
        only_udp(place)
        assert shown(place)


def test_ends_that_judge_differently_understand_one_another(tmp_path: Path) -> None:
    """Such a NAT only the one who dials can see: what he sends is right by what he knows, and is taken."""
    with raw_site(tmp_path, start="auto", before=behind_nat) as place:
        without_loss(place, lambda: place.migrate(other(place)))
        seen = forms(place)
        assert min(seen["udp_in"], seen["raw_out"]) > 100, seen
        assert seen["raw_in"] == seen["udp_out"] == 0, seen
        assert shown(place)


def test_a_gpn_that_starts_anew_goes_on(tmp_path: Path) -> None:
    with raw_site(tmp_path) as place:
        reflector = LanProgram(place.tenant, "reflect", TENANT_INNER, "7001")
        pump = LanProgram(place.customer, "pump", CUSTOMER_INNER, TENANT_INNER, "7001", "500", "100000")
        wait_until(lambda: place.tunnel()["packets_in"] > 200, "traffic", every=0.2)
        node, spis = place.tunnel()["gpn"], place.swan.installed_spis()
        place.kill(node)
        place.start(node)
        wait_until(lambda: place.swan.installed_spis() not in ([], spis), "rekeyed", every=0.1)
        passed = place.tunnel()["packets_in"]
        wait_until(lambda: place.tunnel()["packets_in"] > passed + 500, "traffic on the new SA", every=0.2)
        udp = pump.finish()
        reflector.finish()
        assert udp["longest_gap"] < 2, udp
        assert udp["duplicated"] == udp["corrupted"] == 0, udp
        only_raw(place)


def test_gpns_without_the_capability_send_through_the_gin(tmp_path: Path) -> None:
    with raw_site(tmp_path) as place:
        for gpn in place.gpns:
            place.kill(gpn)
            place.start(gpn, without="net_raw")
        wait_until(place.nodes_up, "the GPNs up again", every=0.2)
        wait_until(
            lambda: len(place.swan.installed_spis()) == 1 and place.swan.at_rest(), "rekeyed", every=0.2
        )
        assert "CAP_NET_RAW" in place.log("gpn-1")
        place.ping()
        without_loss(place, lambda: place.migrate(other(place)))
        only_raw(place)
        assert place.counters("gin-1").get("gin_esp_to_peer", 0) > 100


def test_while_a_gin_has_not_the_capability_it_is_udp(tmp_path: Path) -> None:
    with raw_site(tmp_path) as place:
        place.kill("gin-1")
        place.start("gin-1", without="net_raw")
        wait_until(lambda: "raw ESP missing" in place.protego("events"), "that it is told", every=0.2)
        assert "CAP_NET_RAW" in place.log("gin-1")
        assert not shown(place), "what was agreed on stands"
        place.swan.terminate()
        place.wait_tunnel("down")
        before = forms(place)
        place.swan.initiate()
        place.wait_tunnel()
        place.ping()
        assert shown(place)
        after = forms(place)
        assert after["udp_in"] > before["udp_in"], after
        assert (after["raw_in"], after["raw_out"]) == (before["raw_in"], before["raw_out"])


def test_beside_a_kernel_that_steers_it_goes_through_the_process(tmp_path: Path) -> None:
    with raw_site(tmp_path, edge="nftables") as place:
        without_loss(place, lambda: [place.migrate(other(place)) for _ in range(3)])
        only_raw(place)
        wait_until(lambda: place.counters("gin-1").get("gin_esp_raw", 0) > 100, "the GIN's count", every=0.2)


def test_a_hundred_thousand_hostile_packets_stop_nothing(tmp_path: Path) -> None:
    with raw_site(tmp_path) as place:
        spi = place.tunnel()["spi_in"]
        script = Path(__file__).parents[1] / "support" / "hostile.py"
        place.customer.run("python3", str(script), "100000", spi, VIP, timeout=120)
        place.ping()
        status = place.status()
        assert {node["state"] for node in status["nodes"]} == {"up"}
        counters = {name: count for node in status["nodes"] for name, count in node["counters"].items()}
        for reason in ("gin_drop_short", "gin_drop_unknown_spi", "gin_drop_tag_outside", "gpn_drop_auth"):
            assert counters.get(reason, 0) > 0, (reason, counters)
        assert all("Traceback" not in place.log(node) for node in place.roles)
        only_raw(place, least=10)
