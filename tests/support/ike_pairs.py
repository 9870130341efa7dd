"""A gateway and an on-premises peer, each in its own `Site`, with policies that match unless changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protego_cli.config.model import IkeSettings
from protego_cli.ike.events import Path, Policy
from protego_cli.wire.selectors import TrafficSelector
from tests.support.network import CALM, DEFAULTS, Network, Site, Weather

GATEWAY, PEER = "203.0.113.10", "198.51.100.7"
TUNNEL = "acme/hq"
SPI = 0x11111111

GATEWAY_POLICY = Policy(
    tunnel=TUNNEL,
    remote=PEER,
    local_id=GATEWAY,
    remote_id=PEER,
    psk=b"a secret both sides hold",
    local_ts=(TrafficSelector.from_prefix("10.1.0.0/24"),),
    remote_ts=(TrafficSelector.from_prefix("10.2.0.0/24"),),
    ike=("aes256gcm16-prfsha256-x25519",),
    esp=("aes256gcm16-x25519", "aes256gcm16"),
)
PEER_POLICY = GATEWAY_POLICY.mirrored(GATEWAY)


def pair(
    seed: int = 0,
    weather: Weather = CALM,
    *,
    gateway: dict[str, Any] | None = None,
    peer: dict[str, Any] | None = None,
    settings: IkeSettings = DEFAULTS,
    **both: Any,
) -> tuple[Network, Site, Site]:
    """Network, gateway, peer. `gateway` and `peer` change fields of their policies, `both` of either."""
    network = Network(seed, weather)
    return (
        network,
        Site(network, GATEWAY, [replace(GATEWAY_POLICY, **(gateway or {}), **both)], settings),
        Site(network, PEER, [replace(PEER_POLICY, **(peer or {}), **both)], settings),
    )


def connected(seed: int = 0, weather: Weather = CALM, **changes: Any) -> tuple[Network, Site, Site]:
    """The same, after the peer has dialled and both ends hold their CHILD_SA."""
    network, gateway, peer = pair(seed, weather, **changes)
    peer.dial(TUNNEL, GATEWAY, SPI)
    network.run(lambda: bool(gateway.children and peer.children))
    assert gateway.children
    assert peer.children
    return network, gateway, peer


def matched(gateway: Site, peer: Site) -> int:
    """How many CHILD_SAs both ends hold; fails unless they are the same, with the same keys."""
    theirs = {child.spi_out: child for child in peer.children.values()}
    assert sorted(theirs) == sorted(gateway.children)
    for child in gateway.children.values():
        other = theirs[child.spi_in]
        assert child.spi_out == other.spi_in
        assert (child.key_in, child.key_out) == (other.key_out, other.key_in)
        assert (child.local_ts, child.remote_ts) == (other.remote_ts, other.local_ts)
        assert (child.encryption, child.suite) == (other.encryption, other.suite)
    return len(theirs)


def crowd(site: Site, count: int, remote: str = PEER) -> None:
    """Leave that many handshakes half open at a gateway, from one address and as many ports."""
    for port in range(20000, 20000 + count):
        network = Network(port)
        stranger = Site(network, remote, [replace(PEER_POLICY, remote=site.address)])
        stranger.dial(TUNNEL, site.address, SPI, port=port)
        request = network.sent[0].data
        site.engine.receive_datagram(request, Path(site.address, 500, remote, port), site.now)
    site.settle()
