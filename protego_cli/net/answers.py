"""What a GEN answers itself: who has the gateway's inner address, and is it there.

A tenant's machines ask for the gateway by ARP or neighbour solicitation, which their VTEPs send here, and
ping it. Each good question for one of the tenant's gateway addresses gets one answer of about its own length,
from the gateway's MAC, to the VTEP that asked; nothing is kept. Where a GPN passed the question on, the VTEP
that serves the asker's inner address, or else has its MAC, gets the answer.

RFC 826 (ARP), RFC 4861 (neighbour discovery), RFC 792 and 4443 (ping).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from protego_cli.counters import Counters
from protego_cli.errors import Malformed
from protego_cli.net.gso import segments
from protego_cli.net.steering import Sender
from protego_cli.net.udp import Address
from protego_cli.wire import arp, icmp
from protego_cli.wire.prefixes import PrefixTable
from protego_cli.wire.vxlan import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRAME_LENGTH,
    build_frame_header,
)

_ALL_NODES_MAC = b"\x33\x33\0\0\0\1"  # of icmp.ALL_NODES (RFC 2464 7)


class Vtep(NamedTuple):
    """Where the tenant's machines of a prefix are."""

    prefix: str
    address: str
    port: int
    mac: bytes


class Answer(NamedTuple):
    asker: bytes  # inner address
    mac: bytes  # Ethernet destination
    ethertype: bytes
    payload: bytes


class Tenant:
    """One VNI's gateway addresses, and its VTEPs. Raises ValueError for addresses that are none."""

    def __init__(self, vni: int, mac: bytes, addresses: Iterable[str], vteps: Sequence[Vtep]) -> None:
        self.vni = vni
        self.mac = mac
        self.addresses = frozenset(ipaddress.ip_address(address).packed for address in addresses)
        self._serving = PrefixTable(
            (ipaddress.ip_network(vtep.prefix), (vtep.address, vtep.port)) for vtep in vteps
        )
        self._ports = {vtep.address: vtep.port for vtep in reversed(vteps)}
        self._machines = {vtep.mac: (vtep.address, vtep.port) for vtep in reversed(vteps)}

    def heard(self) -> frozenset[bytes]:
        """All inner destinations of questions: the addresses, and the groups that solicitations go to."""
        groups = {icmp.solicited_node(address) for address in self.addresses if len(address) == 16}
        return self.addresses | groups

    def way(self, vtep: str | None, asker: bytes, mac: bytes) -> Address | None:
        """The VTEP that asked, or that serves the asker; a link-local address is known by its MAC only."""
        serving = self._serving.find(asker) or self._machines.get(mac)
        if vtep is None or (serving is not None and serving[0] == vtep):
            return serving
        port = self._ports.get(vtep)
        return (vtep, port) if port else None


class Answers:
    """Answers for all tenants."""

    def __init__(self, fabric: Sender, counters: Counters) -> None:
        self._fabric = fabric
        self._counters = counters
        self._tenants: dict[int, Tenant] = {}

    def put_tenant(self, tenant: Tenant) -> None:
        self._tenants[tenant.vni] = tenant

    def drop_tenant(self, vni: int) -> None:
        self._tenants.pop(vni, None)

    def receive(self, vni: int, vtep: str | None, view: memoryview, size: int) -> None:
        """VXLAN packets of a VNI that stay here (`steering.Own`)."""
        tenant = self._tenants.get(vni)
        for frame in segments(view, size):
            if tenant is None:
                self._counters["gen_drop_unanswered"] += 1
            else:
                self._receive(tenant, vtep, frame)

    def _receive(self, tenant: Tenant, vtep: str | None, frame: memoryview) -> None:
        try:
            answer = _answer(tenant, frame)
        except Malformed:
            self._counters["gen_drop_malformed"] += 1
            return
        dest = tenant.way(vtep, answer.asker, answer.mac) if answer else None
        if answer is None or dest is None:
            self._counters["gen_drop_unanswered"] += 1
            return
        header = build_frame_header(tenant.vni, answer.mac, tenant.mac, answer.ethertype)
        datagram = header + answer.payload
        sent = self._fabric.send(datagram, len(datagram), dest)
        self._counters["gen_answered" if sent else "gen_drop_send"] += 1


def _answer(tenant: Tenant, frame: memoryview) -> Answer | None:
    """None where the question is good but not for us. Raises Malformed."""
    if len(frame) <= FRAME_LENGTH:
        raise Malformed("VXLAN packet without anything behind Ethernet's header")
    to, sender, ethertype = frame[8:14], bytes(frame[14:20]), frame[20:22]
    if sender[0] & 1:
        raise Malformed("Ethernet frame from a group")
    if not to[0] & 1 and to != tenant.mac:
        return None
    packet = frame[FRAME_LENGTH:]
    if ethertype == ETHERTYPE_ARP:
        request = arp.parse_request(packet)
        if request.target not in tenant.addresses:
            return None
        return Answer(request.sender, request.mac, ETHERTYPE_ARP, arp.build_reply(tenant.mac, request))
    if ethertype == ETHERTYPE_IPV6 and icmp.is_solicitation(packet):
        return _advertise(tenant, sender, packet)
    payload = icmp.echo_reply(packet)
    here, asker = payload[12:16], payload[16:20]
    if payload[0] >> 4 == 6:
        here, asker = payload[8:24], payload[24:40]
    if here not in tenant.addresses or ethertype != (ETHERTYPE_IPV4 if len(here) == 4 else ETHERTYPE_IPV6):
        return None
    return Answer(asker, sender, bytes(ethertype), payload)


def _advertise(tenant: Tenant, sender: bytes, packet: memoryview) -> Answer | None:
    asked = icmp.parse_solicitation(packet)
    if asked.target not in tenant.addresses:
        return None
    mac = asked.mac or sender
    if asked.source == icmp.UNSPECIFIED:
        mac = _ALL_NODES_MAC
    elif mac[0] & 1:
        raise Malformed("neighbour solicitation from a group's MAC")
    return Answer(asked.source, mac, ETHERTYPE_IPV6, icmp.build_advertisement(tenant.mac, asked))
