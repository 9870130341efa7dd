"""Every algorithm against a real strongSwan, in IKE and ESP, whoever initiates: one charon, many proposals.

The engine negotiates over real sockets; beside it a `PeerTunnel` opens the pings that the customer sends
through the tunnel and answers them, so keys, padding and ICVs agree in both directions. strongSwan's
kernel-libipsec knows no extended sequence numbers: what we offer falls back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from protego_cli.esp.peer import PeerTunnel
from protego_cli.ike.events import ChildEstablished, ChildSa, IkeEstablished
from tests.support.ike_live import LiveSite, live_site
from tests.support.ike_pairs import GATEWAY_POLICY, TUNNEL
from tests.support.netns import Namespace, namespaces, veth
from tests.support.network import REGISTRY
from tests.support.site import PEER, PSK, VIP, swanctl_conf
from tests.support.strongswan import StrongSwan, strongswan

pytestmark = pytest.mark.root

# Of IKE and of ESP; between them every cipher, integrity algorithm, PRF and group.
SUITES = [
    ("aes128-sha1-modp2048", "aes128-sha1"),
    ("aes256-sha256-ecp521", "aes256-sha256"),
    ("aes256-sha384-prfsha512-ecp384", "aes256-sha384"),
    ("aes128-sha512-prfsha1-modp3072", "aes128-sha512"),
    ("aes128gcm16-prfsha384-ecp256", "aes128gcm16"),
    ("chacha20poly1305-prfsha512-x25519", "chacha20poly1305"),
    ("aes256gcm16-prfsha256-modp4096", "aes256gcm16"),
]
HERE, THERE = "10.1.0.5", "10.2.0.1"
OURS = 0x11110000


class Gateway:
    """The engine's site, and the ESP of its newest CHILD_SA."""

    def __init__(self, site: LiveSite) -> None:
        self.site = site
        self.tunnel = PeerTunnel(os.urandom)
        self.installed: ChildSa | None = None
        self.pings = 0
        site.esp = self._esp

    def _esp(self, data: bytes, source: tuple[str, int]) -> None:
        (child,) = self.site.children.values()
        if child is not self.installed:
            suite = REGISTRY.esp_suite(child.encryption, child.integrity, esn=child.esn)
            keys = child.key_in, child.key_out
            self.tunnel.install(child.spi_in, child.spi_out, suite, *keys, child.local_ts, child.remote_ts)
            self.tunnel.select(child.spi_in)
            self.installed = child
        answers = [_answer(packet) for packet in self.tunnel.open([data])]
        self.pings += len(answers)
        for sealed in self.tunnel.seal(answers):
            self.site.sockets[4500].sendto(sealed, source)


def _answer(ping: bytes) -> bytes:
    """The echo reply to an ICMP echo request without IP options: addresses turned, type 0 for 8 (RFC 792)."""
    assert ping[:1] == b"\x45"
    assert ping[20:22] == b"\x08\x00"
    total = int.from_bytes(ping[22:24]) + 0x0800
    checksum = (total + (total >> 16)) & 0xFFFF
    return ping[:12] + ping[16:20] + ping[12:16] + b"\x00\x00" + checksum.to_bytes(2) + ping[24:]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Namespace, Namespace, StrongSwan]]:
    with namespaces("gw", "cu") as (gateway, customer):
        veth(gateway, "wan", "198.51.100.1/24", customer, "wan", f"{PEER}/24")
        gateway.ip("addr", "add", f"{VIP}/32", "dev", "lo")
        customer.ip("route", "add", f"{VIP}/32", "via", "198.51.100.1")
        customer.ip("addr", "add", f"{THERE}/32", "dev", "lo")
        with strongswan(customer, tmp_path_factory.mktemp("swan")) as swan:
            yield gateway, customer, swan


@contextmanager
def gateway_for(space: Namespace, swan: StrongSwan, ike: str, esp: str) -> Iterator[Gateway]:
    policy = replace(GATEWAY_POLICY, psk=PSK.encode(), ike=(ike,), esp=(esp,))
    swan.load(swanctl_conf(local_ts="10.2.0.0/24", remote_ts="10.1.0.0/24", ike=ike, esp=esp))
    with live_site(space, VIP, [policy]) as site:
        yield Gateway(site)
        site.during(swan.terminate)


def pinged(gateway: Gateway, customer: Namespace) -> int:
    """How many pings of every length up to a few blocks came back through the tunnel, of ten."""
    for size in range(56, 66):
        command = ("ping", "-c", "1", "-W", "2", "-s", str(size), "-I", THERE, HERE)
        assert not gateway.site.during(lambda command=command: customer.run(*command))
    return gateway.pings


@pytest.mark.parametrize("dialler", ["strongswan", "protego"])
@pytest.mark.parametrize(("ike", "esp"), SUITES)
def test_every_algorithm(
    peers: tuple[Namespace, Namespace, StrongSwan], ike: str, esp: str, dialler: str
) -> None:
    space, customer, swan = peers
    with gateway_for(space, swan, ike, esp) as gateway:
        site = gateway.site
        if dialler == "strongswan":
            assert not site.during(swan.initiate)
        else:
            token = site.dial(TUNNEL, PEER, OURS)
            site.run(lambda: site.outcome(token) is not None, "CHILD_SA")
            assert isinstance(site.outcome(token), ChildEstablished)
        (established,) = site.of(IkeEstablished)
        assert set(ike.split("-")) <= set(established.suite.split("-"))
        assert site.child.suite == esp, "without extended sequence numbers, which libipsec has not"
        assert pinged(gateway, customer) == 10
        assert not gateway.tunnel.counters.nonzero()
        assert not site.counters.nonzero()
