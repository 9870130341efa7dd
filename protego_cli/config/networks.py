"""Sets of prefixes of both address families, as the checks and differences of the cluster file need them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

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


def overlaps(networks: Sequence[AnyNetwork]) -> Iterator[tuple[int, int]]:
    """Which overlap: positions in order, the later one first. Of several that are the same, the first stands
    for the others. Two prefixes overlap where one holds the other, so each is looked up by what may hold it.
    """
    first: dict[AnyNetwork, int] = {}
    lengths: dict[int, set[int]] = {4: set(), 6: set()}
    for at, network in enumerate(networks):
        first.setdefault(network, at)
        lengths[network.version].add(network.prefixlen)
    found = set()
    for at, network in enumerate(networks):
        for length in lengths[network.version]:
            if length <= network.prefixlen:
                other = first.get(network.supernet(new_prefix=length), at)
                if other != at:
                    found.add((max(at, other), min(at, other)))
    return iter(sorted(found))
