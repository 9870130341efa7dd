"""The built-in steering of a GEN, `mux`: tenants' VXLAN packets to the GPN that seals for their destination.

1. The fields that decide are the VXLAN header, the EtherType and the inner destination. Nearly always all
   packets of a batch agree in them, which a few C calls tell, and the batch goes on whole; else its packets
   are sorted by them.
2. A bounded cache of flows remembers what 3 and 4 decided; another one, of what long batches look like, also
   what 1 found. A change of a VNI's tables takes out of both what is of that VNI.
3. The source must be a VTEP of that VNI (RFC 7348), or a GPN that passes on what a VTEP sent to it. What asks
   for the gateway's own addresses, or is sent to one, is the role's to answer; and where the VTEP is in this
   node, all that GPNs send is the role's to deliver.
4. The longest prefix routed in that VNI decides. Where two tunnels of a tenant claim the same prefix, the
   lower tunnel id has it. That may be the GPN which has passed the packet on: its Rule has come meanwhile. A
   GPN passes on nothing that a GEN has sent it, so no packet goes in circles. A VNI's table is made from its
   routes when a packet asks for it.
5. Where the tunnel or its tenant has a ceiling, the packets above it are dropped.
6. The packets go on untouched, TOS copied, in one segmented send from the socket they arrived on: barriers
   leave from it too, and so stay behind everything sent before them.
"""

from __future__ import annotations

import ipaddress
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from protego_cli.config.model import Rate
from protego_cli.counters import Counters
from protego_cli.errors import Malformed
from protego_cli.esp.limits import Bucket, Limits, admit_below
from protego_cli.esp.remembered import Remembered
from protego_cli.net.gso import grouped, segments
from protego_cli.net.steering import HERE, Gpn, Offered, Own, Sender
from protego_cli.net.udp import LONG, Address, Batch
from protego_cli.wire.columns import Spans, alike, likeness
from protego_cli.wire.prefixes import Network, PrefixTable
from protego_cli.wire.tags import is_tag
from protego_cli.wire.vxlan import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAME_LENGTH, I_FLAG, parse

MAX_FLOWS = 1 << 16
MAX_FAMILIAR = 1 << 10
IPV4_BYTES = 4

# Where that lies which decides: flags and VNI, EtherType, inner destination; and what reads it.
_V4_SPANS, _V4_LENGTH = ((0, 2), (4, 8), (20, 22), (38, 42)), 42
_V6_SPANS, _V6_LENGTH = ((0, 2), (4, 8), (20, 22), (46, 62)), 62
_V4_FIELDS, _V6_FIELDS = struct.Struct("8s12x2s16x4s"), struct.Struct("8s12x2s24x16s")

Fields = tuple[bytes, bytes, bytes]
"""VXLAN header, EtherType, inner destination (empty where the packet is too short to have one)."""


class _Route(NamedTuple):
    prefixes: tuple[Network, ...]
    gpn: str


class _Tenant(NamedTuple):
    vteps: frozenset[str]
    own: frozenset[bytes]  # inner addresses that the GEN answers for, as in packets
    resolves: bool  # some of them by ARP
    here: bool  # the VTEP is in this node


class _Own(NamedTuple):
    """Packets that stay here: the VNI, and the VTEP unless a GPN passed them on."""

    vni: int
    vtep: str | None


class _Tally:
    """What has gone to GPNs of one tunnel, or one strand of it."""

    __slots__ = ("bytes", "packets", "told", "tunnel")

    def __init__(self, tunnel: str) -> None:
        self.tunnel = tunnel
        self.packets = 0
        self.bytes = 0
        self.told = True  # nothing has been counted since it was last asked for


class _Way(NamedTuple):
    """Packets that go to a GPN."""

    dest: Address
    limits: tuple[Bucket, ...]
    tally: _Tally


Flow = _Way | _Own | str
"""What becomes of packets that agree in all that decides; text is the counter of the reason of a drop."""


class _Familiar(NamedTuple):
    """Batches of one flow that have come again and again."""

    alike: Callable[[memoryview], bool]
    flow: Flow


_Shape = tuple[Address, int, int, bytes, bytes]
"""Source, packet size, packets, VNI, and four bytes that flows differ in."""


class MuxEgress:
    """`steering.Egress` in user space."""

    def __init__(
        self, fabric: Sender, counters: Counters, own: Own, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`own` gets what stays here."""
        self._fabric = fabric
        self._counters = counters
        self._own = own
        self._clock = clock
        self._limits = Limits()
        self._gpns: dict[str, Address] = {}
        self._returning: dict[Address, str] = {}
        self._tenants: dict[int, _Tenant] = {}
        self._vnis: dict[str, int] = {}  # of each route, by tunnel
        self._routes: dict[int, dict[str, _Route]] = {}  # by VNI, then tunnel
        self._tables: dict[int, PrefixTable[tuple[str, str]]] = {}  # by VNI, as far as asked for
        self._flows: Remembered[tuple[str | Address, Fields], Flow] = Remembered(MAX_FLOWS)
        self._familiar: Remembered[_Shape, _Familiar | None] = Remembered(MAX_FAMILIAR)
        self._tallies: dict[str, _Tally] = {}
        self._active: list[_Tally] = []  # those of which that is not so

    def put_gpn(self, gpn: Gpn) -> None:
        self.drop_gpn(gpn.name)
        self._gpns[gpn.name] = gpn.address
        self._returning[gpn.address] = gpn.name

    def drop_gpn(self, name: str) -> None:
        address = self._gpns.pop(name, None)
        if address is not None and self._returning.get(address) == name:  # it may be another's by now
            del self._returning[address]
        self._forget_all()

    def put_tenant(self, vni: int, vteps: Iterable[str], own: Iterable[bytes] = ()) -> None:
        addresses = frozenset(own)
        resolves = any(len(address) == IPV4_BYTES for address in addresses)
        known = frozenset(vteps)
        self._tenants[vni] = _Tenant(known, addresses, resolves, HERE in known)
        self._forget(vni)

    def drop_tenant(self, vni: int) -> None:
        self._tenants.pop(vni, None)
        self._forget(vni)

    def put_route(self, tunnel: str, vni: int, prefixes: Iterable[str], gpn: str) -> None:
        route = _Route(tuple(ipaddress.ip_network(prefix) for prefix in prefixes), gpn)
        if self._vnis.get(tunnel) != vni:
            self._unroute(tunnel)
        self._vnis[tunnel] = vni
        self._routes.setdefault(vni, {})[tunnel] = route
        self._forget(vni)

    def drop_route(self, tunnel: str) -> None:
        self._unroute(tunnel)
        self._tallies.pop(tunnel, None)

    def _unroute(self, tunnel: str) -> None:
        vni = self._vnis.pop(tunnel, None)
        if vni is not None:
            del self._routes[vni][tunnel]
            if not self._routes[vni]:
                del self._routes[vni]
            self._forget(vni)

    def limit(self, of: str | int, ceiling: Rate | None) -> None:
        if self._limits.put(of, ceiling, self._clock()):
            self._forget_all()

    def offered(self) -> list[Offered]:
        active, self._active = self._active, []
        for each in active:
            each.told = True
        return [
            Offered(each.tunnel, each.packets, each.bytes, FRAME_LENGTH)
            for each in active
            if self._tallies.get(each.tunnel) is each
        ]

    def forward(self, batch: Batch) -> None:
        view, size, source, tos = batch
        count = -(-len(view) // size) if size else 1
        if count <= LONG:
            self._sort(batch, count)
            return
        shape = source, size, count, bytes(view[4:7]), bytes(view[38:42])
        familiar = self._familiar.get(shape)
        if familiar is not None and familiar.alike(view):
            self._pass_on(familiar.flow, view, size, count, tos)
            return
        flow = self._sort(batch, count)
        if flow is not None and familiar is None:
            self._remember(shape, flow, view)

    def forward_row(self, row: Sequence[Batch]) -> bool:
        view, size, source, _ = row[0]
        first = fields(view, size)
        layout, least = (_V6_FIELDS, _V6_LENGTH) if first[1] == ETHERTYPE_IPV6 else (_V4_FIELDS, _V4_LENGTH)
        count = 0
        for view, size, where, _ in row:
            if size < least or where != source:
                return False
            length = len(view)
            for at in range(0, length, size):
                if length - at < least or layout.unpack_from(view, at) != first:
                    return False
                count += 1
        flow = self._find(source if source in self._returning else source[0], first)
        if not isinstance(flow, _Way) or flow.limits:
            return False
        dest, _, tally = flow
        self._count(tally, count, sum([len(view) for view, *_ in row]))
        send, refused = self._fabric.send, 0
        for view, size, _, tos in row:
            if not send(view, size, dest, tos=tos):
                refused += -(-len(view) // size)
        self._counters["gen_forwarded"] += count - refused
        self._counters["gen_drop_send"] += refused
        return True

    def _count(self, tally: _Tally, packets: int, length: int) -> None:
        tally.packets += packets
        tally.bytes += length
        if tally.told:
            tally.told = False
            self._active.append(tally)

    def _sort(self, batch: Batch, count: int) -> Flow | None:
        """Pass on the packets of a batch; their flow, where they have but one."""
        view, size, source, tos = batch
        origin: str | Address = source if source in self._returning else source[0]
        row = fields(view, size)
        if count == 1 or uniform(view, size, count, row):
            flow = self._find(origin, row)
            self._pass_on(flow, view, size, count, tos)
            return flow
        rows = [fields(segment, len(segment)) for segment in segments(view, size)]
        for row, part, packets in grouped(view, size, rows):
            self._pass_on(self._find(origin, row), part, size, packets, tos)
        return None

    def _remember(self, shape: _Shape, flow: Flow, view: memoryview) -> None:
        """Know such a batch the next time, if this is the second."""
        familiar: _Familiar | None = None
        if shape in self._familiar:
            _, size, count, _, _ = shape
            familiar = _Familiar(likeness(view, size, count, _spans(view[20:22])[0]), flow)
        self._familiar.put(shape[3], shape, familiar)

    def _forget(self, vni: int) -> None:
        """The tables of a VNI are not what they were."""
        self._tables.pop(vni, None)
        self._flows.forget(vni)
        self._familiar.forget(vni)

    def _forget_all(self) -> None:
        self._flows.clear()
        self._familiar.clear()

    def _find(self, origin: str | Address, row: Fields) -> Flow:
        flow = self._flows.get((origin, row))
        if flow is None:
            flow = self._decide(origin, row)
            self._flows.put(row[0][4:7], (origin, row), flow)
        return flow

    def _pass_on(self, flow: Flow, data: memoryview | bytes, size: int, count: int, tos: int) -> None:
        """Packets of one flow."""
        if isinstance(flow, _Way):
            dest, limits, tally = flow
            if limits:
                admitted = admit_below(limits, max(size - FRAME_LENGTH, 1), count, self._clock())
                self._counters["gen_drop_limit"] += count - admitted
                if not admitted:
                    return
                data, count = data[: admitted * size], admitted
            self._count(tally, count, len(data))
            sent = self._fabric.send(data, size, dest, tos=tos)
            self._counters["gen_forwarded" if sent else "gen_drop_send"] += count
        elif isinstance(flow, _Own):
            self._own(flow.vni, flow.vtep, memoryview(data), size, tos)
        else:
            self._counters[flow] += count

    def _decide(self, origin: str | Address, row: Fields) -> Flow:
        """Where a flow goes, that it stays here, or why it is dropped."""
        header, ethertype, destination = row
        if is_tag(header[:4]):
            return "gen_drop_tag"
        try:
            vni = parse(header)
        except Malformed:
            return "gen_drop_malformed"
        returned = not isinstance(origin, str)  # by a GPN
        tenant = self._tenants.get(vni)
        if not returned and (tenant is None or origin not in tenant.vteps):
            return "gen_drop_vtep"
        if tenant and tenant.here and returned:
            return _Own(vni, None) if ethertype in (ETHERTYPE_IPV4, ETHERTYPE_IPV6) else "gen_drop_not_ip"
        if tenant and (destination in tenant.own or (tenant.resolves and ethertype == ETHERTYPE_ARP)):
            return _Own(vni, origin if isinstance(origin, str) else None)
        if ethertype not in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
            return "gen_drop_not_ip" if ethertype else "gen_drop_malformed"
        if not destination:
            return "gen_drop_malformed"
        tunnel, gpn = self._table(vni).find(destination) or ("", None)
        if gpn is None or gpn not in self._gpns:
            return "gen_drop_no_route"
        limits = self._limits.find(tunnel.partition("#")[0], vni)  # a strand's are its tunnel's
        tally = self._tallies.setdefault(tunnel, _Tally(tunnel))
        return _Way(self._gpns[gpn], limits, tally)

    def _table(self, vni: int) -> PrefixTable[tuple[str, str]]:
        """Tunnel and GPN by the destination."""
        table = self._tables.get(vni)
        if table is None:
            routes = sorted(self._routes.get(vni, {}).items())
            table = PrefixTable(
                (prefix, (tunnel, route.gpn)) for tunnel, route in routes for prefix in route.prefixes
            )
            if routes:
                self._tables[vni] = table
        return table


def uniform(view: memoryview, size: int, count: int, first: Fields) -> bool:
    """Whether all packets of a batch are certainly of one flow, that of the first."""
    header, ethertype, destination = first
    spans, length = _spans(ethertype)
    if not (destination and header[0] & I_FLAG):  # beside that flag, reserved bits mean nothing
        return False
    if len(view) - (count - 1) * size < length:
        return False
    if count <= LONG:
        layout = _V6_FIELDS if length == _V6_LENGTH else _V4_FIELDS
        rows = [layout.unpack_from(view, at) for at in range(0, len(view), size)]
        return rows.count(first) == count
    return alike(view, size, count, spans)


def _spans(ethertype: bytes | memoryview) -> tuple[Spans, int]:
    """Where that lies which decides, and how long a packet must be to have it all."""
    return (_V6_SPANS, _V6_LENGTH) if ethertype == ETHERTYPE_IPV6 else (_V4_SPANS, _V4_LENGTH)


def fields(view: memoryview, size: int) -> Fields:
    """The deciding fields of a packet of that size, whatever that is, and whatever follows it."""
    row: Fields
    if size >= _V4_LENGTH and (row := _V4_FIELDS.unpack_from(view))[1] != ETHERTYPE_IPV6:
        return row
    if size >= _V6_LENGTH:
        row = _V6_FIELDS.unpack_from(view)
        return row
    return bytes(view[: min(size, 8)]), bytes(view[20 : min(size, 22)]), b""
