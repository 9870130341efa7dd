"""Negotiations between two real engines that end in every way, as `protego explain` shows them.

    python -m tests.support.explanations

writes tests/golden/explain.txt anew; read its diff.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from protego_cli.cli import explain_view
from protego_cli.config.model import PskAuth, TunnelConfig
from protego_cli.control.channel.operator_messages import Explanation
from protego_cli.control.operating.explain import explain
from protego_cli.ike.events import Datagram, Policy
from protego_cli.ike.record import Negotiation
from protego_cli.wire.ike import parse_header_untrusted
from protego_cli.wire.payloads import ExchangeType
from protego_cli.wire.selectors import TrafficSelector
from tests.support.ike_pairs import GATEWAY, GATEWAY_POLICY, PEER, SPI, TUNNEL, connected, pair
from tests.support.network import Network, Site

FILE = Path(__file__).parents[1] / "golden" / "explain.txt"
WIDTH = 100
AT = datetime(2025, 6, 30, 14, 5).timestamp()
OTHER = "198.51.100.99"

Case = Callable[[], Negotiation]


def prefixes(*texts: str) -> tuple[TrafficSelector, ...]:
    return tuple(map(TrafficSelector.from_prefix, texts))


def config_of(policy: Policy) -> TunnelConfig:
    """The policy as the cluster file has it."""
    tenant, name = policy.tunnel.split("/")
    return TunnelConfig(
        name=name,
        tenant=tenant,
        peer=policy.remote,
        local_id=policy.local_id,
        remote_id=policy.remote_id,
        auth=PskAuth(Path("/etc/protego/secrets/acme-hq.psk")),
        local_ts=tuple(prefix for selector in policy.local_ts for prefix in selector.prefixes()),
        remote_ts=tuple(prefix for selector in policy.remote_ts for prefix in selector.prefixes()),
        ike=policy.ike,
        esp=policy.esp,
        vip=GATEWAY,
    )


def asked(**changes: Any) -> Negotiation:
    """The peer dials; `changes` are of its policy."""
    network, gateway, peer = pair(peer=changes)
    peer.dial(TUNNEL, GATEWAY, SPI)
    return last(network, gateway)


def dialled(**changes: Any) -> Negotiation:
    """We dial; `changes` are of the peer's policy."""
    network, gateway, _ = pair(peer=changes)
    gateway.dial(TUNNEL, PEER, SPI)
    return last(network, gateway)


def last(network: Network, gateway: Site) -> Negotiation:
    network.run(lambda: bool(gateway.records))
    return gateway.records[-1]


def stranger(**changes: Any) -> Negotiation:
    """Who dials from an address where no tunnel's peer is, or by names that are none's."""
    network = Network(0)
    two = [GATEWAY_POLICY, replace(GATEWAY_POLICY, tunnel="acme/branch", remote_id="branch.example.org")]
    gateway = Site(network, GATEWAY, two)
    address = changes.pop("address", PEER)
    names = {"local_id": address, "remote_id": GATEWAY} | changes
    mirrored = replace(GATEWAY_POLICY, remote=GATEWAY, **names)
    Site(network, address, [mirrored]).dial(TUNNEL, GATEWAY, SPI)
    return last(network, gateway)


def barred() -> Negotiation:
    network, gateway, peer = pair()
    gateway.engine.bar(TUNNEL, True)
    peer.dial(TUNNEL, GATEWAY, SPI)
    return last(network, gateway)


def silent(exchange: ExchangeType) -> Negotiation:
    """The peer does not answer this exchange of ours."""
    network, gateway, _ = pair()

    def tap(datagram: Datagram) -> bytes | None:
        header = parse_header_untrusted(datagram.data)
        return None if header.exchange == exchange and header.response else datagram.data

    network.tap = tap
    gateway.dial(TUNNEL, PEER, SPI)
    return last(network, gateway)


def rekeyed(by: str, *esp: str) -> Negotiation:
    """A rekey of a CHILD_SA whose peer wants another group."""
    network, gateway, peer = connected(peer={"esp": esp} if esp else None)
    gateway.records.clear()
    site = gateway if by == "gateway" else peer
    (spi,) = site.children
    site.rekey(spi, 0x22222222)
    return last(network, gateway)


def ike_rekeyed(by: str) -> Negotiation:
    """A rekey of the IKE_SA after who begins has got another policy."""
    network, gateway, peer = connected()
    gateway.records.clear()
    site = gateway if by == "gateway" else peer
    site.engine.set_policies([replace(site.policies[0], ike=("aes128gcm16-prfsha256-x25519",))])
    site.rekey_ike()
    return last(network, gateway)


CASES: dict[str, Case] = {
    "the peer asked, and all is well": asked,
    "the peer asked for less than there is": lambda: asked(
        local_ts=prefixes("10.2.0.64/26", "10.9.0.0/24"), remote_ts=prefixes("0.0.0.0/0")
    ),
    "the peer asked, with other IKE proposals": lambda: asked(
        ike=("aes128gcm16-prfsha384-x25519", "aes256-sha256-prfsha256-modp2048")
    ),
    "the peer asked, and each transform is known but no proposal": lambda: asked(
        ike=("aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-ecp256")
    ),
    "the peer asked, with another pre-shared key": lambda: asked(psk=b"another secret altogether"),
    "the peer asked, by another name": lambda: asked(local_id="gw.example.org"),
    "the peer asked for somebody else": lambda: asked(remote_id="vpn.example.net"),
    "the peer asked, by a key id": lambda: asked(local_id="@#1b5b324a"),
    "the peer asked, by a name made to deceive": lambda: asked(local_id='x"\n\x1b[2J[bold]here: run me'),
    "the peer asked, with other ESP proposals": lambda: asked(esp=("aes128gcm16",)),
    "the peer asked, with other selectors": lambda: asked(local_ts=prefixes("10.77.0.0/24", "10.78.0.0/24")),
    "the peer asked while the operator holds the tunnel down": barred,
    "somebody asked, from an address that is no peer's": lambda: stranger(address=OTHER),
    "somebody asked, by a name of none of two tunnels": lambda: stranger(
        local_id="lost.example.org",
        remote_id=GATEWAY,
    ),
    "we asked, and all is well": dialled,
    "we asked, with other IKE proposals": lambda: dialled(ike=("aes128gcm16-prfsha256-x25519",)),
    "we asked, with another pre-shared key": lambda: dialled(psk=b"another secret altogether"),
    "we asked somebody else": lambda: dialled(local_id="gw.example.org"),
    "we asked, with other ESP proposals": lambda: dialled(esp=("aes128gcm16",)),
    "we asked, with other selectors": lambda: dialled(local_ts=prefixes("10.77.0.0/24")),
    "we asked, and nobody answers": lambda: silent(ExchangeType.IKE_SA_INIT),
    "we asked, and nobody answers any more": lambda: silent(ExchangeType.IKE_AUTH),
    "the peer rekeys": lambda: rekeyed("peer"),
    "the peer rekeys, with another group": lambda: rekeyed("peer", "aes256gcm16-ecp256"),
    "the peer rekeys the IKE_SA, with other proposals": lambda: ike_rekeyed("peer"),
    "we rekey the IKE_SA, with other proposals": lambda: ike_rekeyed("gateway"),
    "we rekey": lambda: rekeyed("gateway"),
    "we rekey, with another group": lambda: rekeyed("gateway", "aes256gcm16-ecp256"),
}


def explained(case: str) -> Explanation:
    record = CASES[case]()
    config = config_of(GATEWAY_POLICY) if record.tunnel == TUNNEL else None
    return explain(record, config, AT)


def shown(case: str) -> str:
    console = Console(width=WIDTH, file=io.StringIO(), markup=False, highlight=False)
    console.print(explain_view.explanation_view(explained(case)))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip().splitlines())


def golden() -> Iterator[str]:
    for case in CASES:
        yield f"==== {case}\n{shown(case)}\n"


if __name__ == "__main__":
    FILE.write_text("\n".join(golden()))
