"""Sets of prefixes of both address families, as the checks and differences of the cluster file need them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from protego_cli.config.values import AnyNetwork


def joined(prefixes: Iterable[str]) -> list[AnyNetwork]:
    """The same addresses in as few prefixes as possible."""
    networks = [ipaddress.ip_network(prefix) for prefix in prefixes if prefix]
    return [
        *ipaddress.collapse_addresses(net for net in networks if isinstance(net, ipaddress.IPv4Network)),
        *ipaddress.collapse_addresses(net for net in networks if isinstance(net, ipaddress.IPv6Network)),
    ]


def inside(network: AnyNetwork, other: AnyNetwork) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(other, ipaddress.IPv4Network) and network.subnet_of(other)
    return isinstance(other, ipaddress.IPv6Network) and network.subnet_of(other)
