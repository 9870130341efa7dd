"""A tenant's network as a GPN sees it: its VTEPs, and the frame header for each inner destination."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from typing import NamedTuple

from protego_cli.esp.outbox import Address, Port, Way
from protego_cli.wire.prefixes import Network, PrefixTable
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, ETHERTYPE_IPV6, build_frame_header


class Vtep(NamedTuple):
    """Where packets for an inner prefix go on the tenant's side."""

    prefix: str
    address: str
    port: int
    mac: bytes


class Delivery(NamedTuple):
    """How an opened packet leaves: the way, and the VXLAN and Ethernet headers before it."""

    way: Way
    header: bytes


class Tenant:
    """One VNI. Raises ValueError for addresses, a VNI or MACs that are none."""

    def __init__(
        self, vni: int, gateway_mac: bytes, vteps: Sequence[Vtep], gateway: Sequence[str] = ()
    ) -> None:
        if any(len(mac) != 6 for mac in (gateway_mac, *(vtep.mac for vtep in vteps))):
            raise ValueError("a MAC address has 6 bytes")
        self.vni = vni
        own = [ipaddress.ip_address(address) for address in reversed(gateway)]  # so the first of each wins
        self.gateway: dict[int, bytes] = {address.version: address.packed for address in own}
        self._vteps: dict[str, set[Address]] = {}
        for vtep in vteps:
            self._vteps.setdefault(vtep.address, set()).add((vtep.address, vtep.port))
        routes: list[tuple[Network, Delivery]] = []
        for vtep in vteps:
            network = ipaddress.ip_network(vtep.prefix)
            ethertype = ETHERTYPE_IPV4 if network.version == 4 else ETHERTYPE_IPV6
            way = Way(Port.VXLAN, (vtep.address, vtep.port), None, "gpn_opened")
            routes.append((network, Delivery(way, build_frame_header(vni, vtep.mac, gateway_mac, ethertype))))
        self._routes = PrefixTable(routes)

    def takes_from(self, origin: str, gens: Collection[Address]) -> bool:
        """Whether a VTEP of the tenant has this address. One inside a GEN does not count: its packets come
        from the GEN's own socket, and nothing else on that machine may speak for it.
        """
        return any(vtep not in gens for vtep in self._vteps.get(origin, ()))

    def deliver(self, destination: bytes) -> Delivery | None:
        """By the longest prefix that holds the inner destination; the caller remembers the answer."""
        return self._routes.find(destination)
