"""NAT detection and what follows from it: ESP in UDP or without, the same at both ends (RFC 7296 2.23)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protego_cli.ike.events import Path, PeerMoved
from protego_cli.ike.natd import natd_hash
from protego_cli.wire.ike import parse_message_untrusted
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import Notify
from tests.support.ike_pairs import GATEWAY, GATEWAY_POLICY, PEER, PEER_POLICY, SPI, TUNNEL, matched, pair
from tests.support.ike_restarts import fresh
from tests.support.network import Network, Site

AUTO: dict[str, Any] = {"encapsulation": "auto"}
DIALLERS = ["peer", "gateway"]


def dial(network: Network, gateway: Site, peer: Site, dialler: str, port: int = 500) -> None:
    """One dials the other, whose CHILD_SAs then match."""
    if dialler == "peer":
        peer.dial(TUNNEL, GATEWAY, SPI, port)
    else:
        gateway.dial(TUNNEL, PEER, SPI, port)
    network.settle()
    assert matched(gateway, peer) == 1


def forms(*sites: Site) -> list[bool]:
    """Whether each site's ESP is raw."""
    return [site.child.raw for site in sites]


def ports(network: Network) -> list[int]:
    return [datagram.path.remote_port for datagram in network.sent]


@pytest.mark.parametrize("dialler", DIALLERS)
def test_without_nat_esp_is_raw_and_ike_stays_where_it_is(dialler: str) -> None:
    network, gateway, peer = pair(**AUTO)
    dial(network, gateway, peer, dialler)
    assert forms(gateway, peer) == [True, True]
    assert ports(network) == [500] * 4
    assert gateway.child.peer == (PEER, 0)
    assert peer.child.peer == (GATEWAY, 0)


@pytest.mark.parametrize("dialler", DIALLERS)
def test_who_floats_to_4500_without_nat_has_raw_esp_all_the_same(dialler: str) -> None:
    network, gateway, peer = pair(**AUTO)
    dial(network, gateway, peer, dialler, port=4500)
    assert forms(gateway, peer) == [True, True]
    assert gateway.child.path == Path(GATEWAY, 4500, PEER, 4500)


@pytest.mark.parametrize("dialler", DIALLERS)
@pytest.mark.parametrize("forcing", ["gateway", "peer", "both"])
def test_either_side_can_force_encapsulation(dialler: str, forcing: str) -> None:
    """As strongSwan does by `encap = yes`: no address matches, so the other sees a NAT."""
    ours = {} if forcing == "peer" else {"encapsulation": "force"}
    theirs = {} if forcing == "gateway" else {"encapsulation": "force"}
    network, gateway, peer = pair(gateway=AUTO | ours, peer=AUTO | theirs)
    dial(network, gateway, peer, dialler)
    assert forms(gateway, peer) == [False, False]
    assert ports(network) == [500, 500, 4500, 4500]
    assert gateway.child.peer == (PEER, 4500)
    (view,) = gateway.engine.describe(TUNNEL, network.now)
    assert view.encapsulated
    assert view.peer_natted is (forcing != "gateway")


@pytest.mark.parametrize("dialler", DIALLERS)
def test_who_cannot_do_without_udp_forces_it_whatever_the_tunnel_says(dialler: str) -> None:
    network, gateway, peer = pair(**AUTO)
    gateway.raw_esp = False
    dial(network, gateway, peer, dialler)
    assert forms(gateway, peer) == [False, False]
    gateway.raw_esp = True
    gateway.rekey(gateway.child.spi_in, 0x22222222)
    network.settle()
    assert {child.raw for child in gateway.children.values()} == {False}, "an IKE_SA keeps its form"


@pytest.mark.parametrize(
    ("natted", "seen", "dialler"),
    [
        (PEER, ("192.0.2.50", 61000), "peer"),  # before the peer
        (GATEWAY, ("192.0.2.60", 62000), "gateway"),  # before us
    ],
)
def test_a_nat_before_the_dialler_is_found_by_both(natted: str, seen: tuple[str, int], dialler: str) -> None:
    network, gateway, peer = pair(gateway=AUTO | {"remote": None}, peer=AUTO | {"remote": None})
    if dialler == "gateway":
        gateway, peer = (
            Site(network, GATEWAY, [replace(GATEWAY_POLICY, **AUTO)]),
            Site(network, PEER, [replace(PEER_POLICY, remote=None, **AUTO)]),
        )
    network.masquerade[natted] = seen
    dial(network, gateway, peer, dialler)
    assert forms(gateway, peer) == [False, False]
    caller, callee = (peer, gateway) if dialler == "peer" else (gateway, peer)
    assert callee.child.peer == seen
    assert caller.child.path.remote_port == 4500
    (there,), (here,) = (site.engine.describe(TUNNEL, network.now) for site in (callee, caller))
    assert there.peer_natted
    assert not here.peer_natted


def test_a_nat_that_keeps_ports_and_changes_the_address_is_found() -> None:
    network, gateway, peer = pair(gateway=AUTO | {"remote": None}, peer=AUTO)
    network.masquerade[PEER] = ("192.0.2.50", 500)
    peer.inside_port = 500
    peer.dial(TUNNEL, GATEWAY, SPI)
    network.run(lambda: bool(gateway.children))
    assert gateway.child.peer == ("192.0.2.50", 500)  # until IKE_AUTH has come from where the NAT puts it
    assert not gateway.child.raw


def test_a_raw_peer_is_not_followed_to_another_port() -> None:
    network, gateway, peer = pair(gateway=AUTO | {"remote": None}, peer=AUTO)
    dial(network, gateway, peer, "peer")
    network.masquerade[PEER] = ("192.0.2.50", 62000)
    peer.check_alive()
    network.settle()
    assert not gateway.of(PeerMoved)
    assert gateway.child.peer == (PEER, 0)


def test_a_peer_that_may_be_any_of_several_tunnels_is_forced_if_one_of_them_is() -> None:
    network = Network(0)
    other = replace(GATEWAY_POLICY, tunnel="acme/other", remote=None, remote_id="other.example.org")
    gateway = Site(network, GATEWAY, [replace(GATEWAY_POLICY, remote=None, **AUTO), other])
    peer = Site(network, PEER, [replace(PEER_POLICY, **AUTO)])
    dial(network, gateway, peer, "peer")
    assert forms(gateway, peer) == [False, False]


@pytest.mark.parametrize("encapsulation", ["auto", "force"])
def test_what_is_sent_matches_the_path_unless_encapsulation_is_forced(encapsulation: str) -> None:
    network, gateway, peer = pair(encapsulation=encapsulation)
    dial(network, gateway, peer, "peer")
    for datagram in network.sent[:2]:
        message, path = parse_message_untrusted(datagram.data), datagram.path
        said = {each.kind: each.data for each in message.payloads if isinstance(each, Notify)}
        spis = message.header.spi_i, message.header.spi_r
        there = said[NotifyType.NAT_DETECTION_DESTINATION_IP]
        assert there == natd_hash(*spis, path.remote, path.remote_port)
        here = said[NotifyType.NAT_DETECTION_SOURCE_IP]
        assert (here == natd_hash(*spis, path.local, path.local_port)) == (encapsulation == "auto")


@pytest.mark.parametrize("dialler", DIALLERS)
@pytest.mark.parametrize("what", ["child", "ike"])
def test_rekeys_keep_the_form(dialler: str, what: str) -> None:
    network, gateway, peer = pair(**AUTO)
    dial(network, gateway, peer, dialler)
    if what == "ike":
        gateway.rekey_ike()
        network.settle()
    gateway.raw_esp = peer.raw_esp = False  # who cannot any more can still not change what was agreed on
    gateway.rekey(gateway.child.spi_in, 0x22222222)
    network.settle()
    assert len(gateway.children) == 2
    assert {child.raw for site in (gateway, peer) for child in site.children.values()} == {True}


@pytest.mark.parametrize("encapsulation", ["auto", "force"])
@pytest.mark.parametrize(
    ("dialler", "messages"),
    [("gateway", sent) for sent in (1, 2, 3, 4)] + [("peer", sent) for sent in (2, 3, 4)],
)
def test_a_restart_at_any_message_changes_nothing(dialler: str, encapsulation: str, messages: int) -> None:
    """What was agreed on, or only said, is stored: the next life may judge differently, and must not."""
    network, gateway, peer = pair(encapsulation=encapsulation)
    policies = tuple(gateway.policies)
    (peer if dialler == "peer" else gateway).dial(TUNNEL, PEER if dialler == "gateway" else GATEWAY, SPI)
    network.run(lambda: len(network.sent) >= messages, limit=5)
    states = [state for _, state in gateway.engine.changes() if state]
    gateway.engine = engine = fresh(policies=policies)  # which could not do without UDP
    engine.restore(states, network.now)
    gateway.settle()
    network.settle(120)
    assert peer.child.raw is (encapsulation == "auto")
    (view,) = engine.describe(TUNNEL, network.now)
    assert view.encapsulated is (encapsulation == "force")
