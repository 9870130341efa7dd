"""The IKE engine against a real strongSwan: handshakes, rekeys, collisions, refusals, from either side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protego_cli.ike.events import (
    Alive,
    ChildDeleted,
    ChildEstablished,
    ExchangeFailed,
    IkeClosed,
    IkeEstablished,
    IkeRekeyed,
    NegotiationFailed,
)
from protego_cli.ike.transitions import State
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.selectors import TrafficSelector
from tests.support.ike_live import LiveSite, live_site
from tests.support.ike_pairs import GATEWAY_POLICY, SPI, TUNNEL, crowd
from tests.support.netns import namespaces, veth, wait_until
from tests.support.network import DEFAULTS
from tests.support.site import PEER, PSK, VIP, swanctl_conf
from tests.support.strongswan import StrongSwan, strongswan

pytestmark = pytest.mark.root

POLICY = replace(GATEWAY_POLICY, psk=PSK.encode())
WIDE = {"local_ts": "10.2.0.0/24", "remote_ts": "10.1.0.0/16"}  # to be narrowed
NEW_SPI, NEWER_SPI = 0x22222222, 0x33333333


@contextmanager
def meeting(
    directory: Path, policy: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **conf: str
) -> Iterator[tuple[LiveSite, StrongSwan]]:
    """The engine and a strongSwan that knows it."""
    ours = [replace(POLICY, **(policy or {}))]
    with namespaces("gw", "cu") as (gateway, customer):
        veth(gateway, "wan", "198.51.100.1/24", customer, "wan", f"{PEER}/24")
        gateway.ip("addr", "add", f"{VIP}/32", "dev", "lo")
        customer.ip("route", "add", f"{VIP}/32", "via", "198.51.100.1")
        customer.ip("addr", "add", "10.2.0.1/32", "dev", "lo")
        with (
            strongswan(customer, directory) as swan,
            live_site(gateway, VIP, ours, msgspec.structs.replace(DEFAULTS, **(settings or {}))) as site,
        ):
            swan.load(swanctl_conf(**WIDE | conf))
            yield site, swan


def finish(site: LiveSite, token: int) -> Any:
    """Serve until the token has its outcome."""
    site.run(
        lambda: isinstance(
            site.outcome(token), ChildEstablished | ChildDeleted | IkeRekeyed | Alive | ExchangeFailed
        ),
        "outcome of our exchange",
    )
    return site.outcome(token)


def same_child(site: LiveSite, swan: StrongSwan) -> bool:
    return f"{site.child.spi_out:08x}" in swan.child_spis() and f"{site.child.spi_in:08x}" in swan.sas()


def test_strongswan_dials_and_both_sides_rekey(tmp_path: Path) -> None:
    with meeting(tmp_path) as (site, swan):
        assert not site.during(swan.initiate)
        assert same_child(site, swan)
        assert site.child.local_ts == (TrafficSelector.from_prefix("10.1.0.0/24"),)
        first = site.child.spi_in

        assert not site.during(swan.rekey_child)
        site.run(lambda: len(site.children) == 1 and first not in site.children, "rekey by strongSwan")
        assert site.child.suite == "aes256gcm16-x25519"
        assert same_child(site, swan)

        old = site.child.spi_in
        assert isinstance(finish(site, site.rekey(old, NEW_SPI)), ChildEstablished)
        assert isinstance(finish(site, site.check_alive()), Alive)
        assert isinstance(finish(site, site.delete(old)), ChildDeleted)
        assert site.child.spi_in == NEW_SPI
        assert same_child(site, swan)

        handle = site.ike
        assert not site.during(lambda: swan.swanctl("--rekey", "--ike", "gateway"))
        site.run(lambda: "IKE_SA deleted" in swan.log, "rekey of the IKE_SA")
        assert site.ike == handle
        assert isinstance(finish(site, site.rekey(NEW_SPI, NEWER_SPI)), ChildEstablished)
        assert isinstance(finish(site, site.delete(NEW_SPI)), ChildDeleted)
        assert same_child(site, swan)

        site.during(swan.terminate)
        assert [event.reason for event in site.of(IkeClosed)] == ["the peer deleted it"]
        assert not site.counters.nonzero()


def test_we_dial_rekey_and_close(tmp_path: Path) -> None:
    with meeting(tmp_path) as (site, swan):
        assert isinstance(finish(site, site.dial(TUNNEL, PEER, SPI)), ChildEstablished)
        assert same_child(site, swan)
        assert isinstance(finish(site, site.rekey(SPI, NEW_SPI)), ChildEstablished)
        assert isinstance(finish(site, site.delete(SPI)), ChildDeleted)
        assert same_child(site, swan)
        site.close()
        site.run(lambda: not site.ikes, "close")
        assert not swan.sas().strip()


def test_without_perfect_forward_secrecy(tmp_path: Path) -> None:
    with meeting(tmp_path, esp="aes256gcm16") as (site, swan):
        assert not site.during(swan.initiate)
        old = site.child.spi_in
        assert isinstance(finish(site, site.rekey(old, NEW_SPI)), ChildEstablished)
        assert isinstance(finish(site, site.delete(old)), ChildDeleted)
        assert site.child.suite == "aes256gcm16"
        assert same_child(site, swan)


def test_crossing_rekeys_leave_one_child(tmp_path: Path) -> None:
    with meeting(tmp_path) as (site, swan):
        assert not site.during(swan.initiate)
        old = site.child.spi_in
        site.hold = True
        thread = threading.Thread(target=swan.rekey_child)
        thread.start()
        wait_until(lambda: "generating CREATE_CHILD_SA request" in swan.log, "rekey request of strongSwan")
        established = finish(site, site.rekey(old, NEW_SPI))
        assert isinstance(established, ChildEstablished)
        site.run(lambda: bool(site.tickets), "its arrival")
        site.hold = False
        site.grant(site.tickets[0])
        site.settle()
        if not established.redundant:  # whose rekey won deletes the old one (RFC 7296 2.8.1)
            assert isinstance(finish(site, site.delete(old)), ChildDeleted)
        site.run(lambda: not thread.is_alive() and old not in site.children, "the old CHILD_SA gone")
        site.run(lambda: len(site.children) == 1, "one CHILD_SA left")
        assert (site.child.spi_in != NEW_SPI) == established.redundant
        assert same_child(site, swan)


def one_of_each(site: LiveSite, swan: StrongSwan) -> bool:
    """Whether both ends have one IKE_SA and one CHILD_SA, and the same ones."""
    live = [sa for sa in site.context.by_spi.values() if sa.state is State.ESTABLISHED]
    return (
        len(site.children) == len(live) == 1
        and swan.ike_spis() == [(live[0].spi_i.hex(), live[0].spi_r.hex())]
        and swan.installed_spis() == [f"{site.child.spi_out:08x}"]
    )


@pytest.mark.parametrize("esp", ["aes256gcm16-x25519", "aes256gcm16"])
@pytest.mark.parametrize("dialler", ["gateway", "strongswan"])
def test_rekeys_of_everything_from_either_side(tmp_path: Path, dialler: str, esp: str) -> None:
    with meeting(tmp_path, {"esp": (esp,)}, esp=esp) as (site, swan):
        site.tidy = True
        if dialler == "gateway":
            assert isinstance(finish(site, site.dial(TUNNEL, PEER, SPI)), ChildEstablished)
        else:
            assert not site.during(swan.initiate)
        handle, spis = site.ike, iter(range(0x40000000, 0x50000000))

        def fresh(before: int) -> None:
            site.run(
                lambda: before not in site.children and one_of_each(site, swan), "a fresh CHILD_SA alone"
            )

        for _ in range(2):
            assert isinstance(finish(site, site.rekey_ike()), IkeRekeyed)
            site.run(lambda: one_of_each(site, swan), "our new IKE_SA alone")
            before = site.child.spi_in
            assert isinstance(finish(site, site.rekey(before, next(spis))), ChildEstablished)
            fresh(before)
            seen = len(site.of(IkeRekeyed))
            assert not site.during(swan.rekey_ike)
            site.run(
                lambda seen=seen: len(site.of(IkeRekeyed)) > seen and one_of_each(site, swan),  # type: ignore[misc]
                "strongSwan's new IKE_SA alone",
            )
            before = site.child.spi_in
            assert not site.during(swan.rekey_child)
            fresh(before)
        assert site.child.suite == esp
        assert (site.ike, len(site.of(IkeRekeyed))) == (handle, 4)
        assert not site.counters.nonzero()
        site.close()
        site.run(lambda: not site.ikes and not swan.sas().strip(), "close")


def test_new_children_from_either_side(tmp_path: Path) -> None:
    with meeting(tmp_path) as (site, swan):
        assert not site.during(swan.initiate)
        first = site.child.spi_in
        assert isinstance(finish(site, site.create(NEW_SPI)), ChildEstablished)
        theirs = [f"{child.spi_out:08x}" for child in site.children.values()]
        site.run(lambda: sorted(swan.installed_spis()) == sorted(theirs), "both installed")
        for spi_in in (NEW_SPI, first):
            assert isinstance(finish(site, site.delete(spi_in)), ChildDeleted)
        assert not site.children
        assert not site.during(swan.initiate)  # in the same IKE_SA
        site.run(lambda: one_of_each(site, swan), "a CHILD_SA of strongSwan's asking")
        assert len(site.of(IkeEstablished)) == 1


CROSSINGS = 25  # of each kind: fifty collisions in all


@pytest.mark.parametrize("what", ["child", "ike"])
def test_rekeys_that_cross_leave_one_of_each(tmp_path: Path, what: str) -> None:
    """Ours leaves when strongSwan's is in our socket, unread: so they cross, every time."""
    with meeting(tmp_path) as (site, swan):
        site.tidy = True
        assert not site.during(swan.initiate)
        site.run(lambda: one_of_each(site, swan), "the beginning")
        asked = "generating CREATE_CHILD_SA request"
        postponed = 0
        for number in range(CROSSINGS):
            before, keys = site.child.spi_in, site.context.by_handle[site.ike].keys
            requests = swan.log.count(asked)
            (swan.rekey_child if what == "child" else swan.rekey_ike)()
            wait_until(lambda requests=requests: swan.log.count(asked) > requests, "its request", every=0.005)  # type: ignore[misc]
            token = site.rekey(before, 0x40000000 + number) if what == "child" else site.rekey_ike()
            outcome = finish(site, token)
            if isinstance(outcome, ExchangeFailed):  # it may put ours off, and its own goes on (2.25)
                assert outcome.notify == NotifyType.TEMPORARY_FAILURE
                postponed += 1
            site.run(lambda: one_of_each(site, swan), f"one of each after collision {number}", timeout=20)
            if what == "child":
                assert site.child.spi_in != before
            else:
                assert site.context.by_handle[site.ike].keys != keys
        assert not site.of(IkeClosed)
        assert isinstance(finish(site, site.check_alive()), Alive)
        ours = [
            not event.redundant if isinstance(event, ChildEstablished) else event.initiator
            for event in site.events
            if isinstance(event, ChildEstablished | IkeRekeyed)
        ]
        assert len(ours) == CROSSINGS - postponed
        print(what, "rekeys won by us:", sum(ours), "of", CROSSINGS, "postponed:", postponed)
        assert 0 < sum(ours) < CROSSINGS
        assert postponed < CROSSINGS / 5


@pytest.mark.parametrize("ours", ["x25519", "ecp256"])
def test_other_groups_first(tmp_path: Path, ours: str) -> None:
    """INVALID_KE_PAYLOAD in IKE_SA_INIT and in a rekey, in both directions."""
    order = ("ecp256", "x25519") if ours == "x25519" else ("x25519", "ecp256")
    policy = {"ike": (f"aes256gcm16-prfsha256-{ours}",), "esp": (f"aes256gcm16-{ours}",)}
    conf = {
        "ike": f"aes256gcm16-prfsha256-{'-'.join(order)}",
        "esp": f"aes256gcm16-{'-'.join(order)}",
    }
    with meeting(tmp_path, policy, **conf) as (site, swan):
        assert not site.during(swan.initiate)
        assert (
            "peer didn't accept key exchange method" in swan.log or "peer didn't accept DH group" in swan.log
        )
        first = site.child.spi_in
        assert not site.during(swan.rekey_child)
        site.run(lambda: len(site.children) == 1 and first not in site.children, "rekey by strongSwan")
        assert site.child.suite == f"aes256gcm16-{ours}"


def test_we_are_asked_for_another_group(tmp_path: Path) -> None:
    policy = {
        "ike": ("aes256gcm16-prfsha256-ecp256", "aes256gcm16-prfsha256-x25519"),
        "esp": ("aes256gcm16-ecp256", "aes256gcm16-x25519"),
    }
    with meeting(tmp_path, policy, esp="aes256gcm16-x25519") as (site, _):
        assert isinstance(finish(site, site.dial(TUNNEL, PEER, SPI)), ChildEstablished)
        assert isinstance(finish(site, site.rekey(SPI, NEW_SPI)), ChildEstablished)
        assert site.children[NEW_SPI].suite == "aes256gcm16-x25519"


def test_wrong_psk(tmp_path: Path) -> None:
    with meeting(tmp_path, psk="not the same") as (site, swan):
        assert "AUTHENTICATION_FAILED" in site.during(swan.initiate)
        (failed,) = site.of(NegotiationFailed)
        assert (failed.tunnel, failed.notify) == (TUNNEL, 24)
        outcome = finish(site, site.dial(TUNNEL, PEER, SPI))
        assert (outcome.notify, bool(site.ikes)) == (24, False)


def test_nothing_in_common_for_the_child(tmp_path: Path) -> None:
    with meeting(tmp_path, esp="aes128gcm16", remote_ts="10.9.0.0/24") as (site, swan):
        assert "NO_PROPOSAL_CHOSEN" in site.during(swan.initiate)
        (failed,) = site.of(NegotiationFailed)
        assert failed.notify == 14
        assert "aes256gcm16" in failed.detail
        assert site.of(IkeEstablished)
        swan.load(swanctl_conf(**WIDE | {"remote_ts": "10.9.0.0/24"}))
        site.during(swan.terminate)
        assert "TS_UNACCEPT" in site.during(swan.initiate)
        assert site.of(NegotiationFailed)[-1].notify == 38


def test_nothing_in_common_for_ike(tmp_path: Path) -> None:
    with meeting(tmp_path, ike="aes128-sha256-ecp384") as (site, swan):
        assert "NO_PROPOSAL_CHOSEN" in site.during(swan.initiate)
        (failed,) = site.of(NegotiationFailed)
        assert "ENCR aes256gcm16 against aes128" in failed.detail
        outcome = finish(site, site.dial(TUNNEL, PEER, SPI))
        assert outcome.notify == 14


def test_cookie(tmp_path: Path) -> None:
    with meeting(tmp_path, settings={"half_open_max": 10}) as (site, swan):
        crowd(site, 1)
        assert not site.during(swan.initiate)
        assert "COOKIE" in swan.log
        assert same_child(site, swan)
