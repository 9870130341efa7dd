"""All data-path state of a GPN, sans-IO: batches of datagrams in, sends and events out.

    peer ─▶ GIN ─▶ receive_esp ───▶ inbound.py ──▶ VTEP
    tenant ─▶ GEN ─▶ receive_vxlan ─▶ outbound.py ─▶ peer

1. Desired state arrives by `put_*` and `drop_*`; each acts at once, and the tables that the two directions
   read are these. Putting an SA releases what was parked for it, each packet as of when it came.
2. `receive_*` take a GRO batch and return what to send; packets of one SA leave in the order they came.
   `receive_*_train` take several: short ones of one source are worked on together, as rows of packets of any
   sizes, long ones that are alike as one (`joining.py`), so that what a batch costs is not paid for each.
3. Tags are answered behind everything received before them: PROBE and BARRIER with their echoes, an ORIGIN
   by opening its packet. Only neighbours of the desired state are believed, by the key of the pair.
4. ESP whose source is no neighbour comes straight from a peer: a GIN's kernel has passed it on. Its source is
   its origin. When its SPI is none of ours, it goes back to a GIN in a RETURN, once: what a GIN itself sends
   has the GIN's address, and never goes back.
5. `take_events` returns what the control plane must hear.

An SA that is dropped and put again goes on where it was: no number is sealed or opened twice, whatever the
control plane does (RFC 4303 3.3.3, 3.4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from protego_cli.config.model import Rate
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import RandomSource
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import Malformed
from protego_cli.esp.doors import Doors
from protego_cli.esp.events import Event
from protego_cli.esp.inbound import Inbound
from protego_cli.esp.joining import joined
from protego_cli.esp.limits import Limits
from protego_cli.esp.outbound import Outbound
from protego_cli.esp.outbox import Address, Outbox, Port, Send, Way
from protego_cli.esp.pairs import UNUSED, Pair, SaEntry, Used
from protego_cli.esp.parking import Parking
from protego_cli.esp.slices import received
from protego_cli.esp.sorting import short
from protego_cli.esp.tenants import Tenant, Vtep
from protego_cli.wire import ecn
from protego_cli.wire.tags import TAG_LENGTH, Tag, TagKind, is_tag, open_tag, seal_tag

Received = tuple[memoryview, int, Address, int]
"""A batch: segments of a size, the last perhaps shorter; where it came from, its TOS."""

MAX_RETIRED = 1 << 16  # SAs whose progress is remembered after they were dropped


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A GIN or GEN that this GPN exchanges tags with."""

    address: str
    vxlan: Address | None  # where a GEN sends VXLAN from
    tag_key: bytes = field(repr=False)


class Usage(NamedTuple):
    """What one pair of SAs has carried since this process has it."""

    spi_in: int
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    highest_in: int
    next_out: int
    limited_packets_in: int
    limited_bytes_in: int
    limited_packets_out: int
    limited_bytes_out: int


class Gateway:
    """One GPN's data path."""

    def __init__(
        self,
        counters: Counters,
        random: RandomSource,
        *,
        through_gins: bool = False,
        raw_through_gins: bool = False,
    ) -> None:
        """`through_gins`: what goes to peers leaves through a GIN, not from here; `raw_through_gins`: of that
        what is without UDP.
        """
        self._doors = Doors() if through_gins or raw_through_gins else None
        self._through_gins = through_gins
        self._counters = counters
        self._random = random
        self._events: list[Event] = []
        self._outbox = Outbox()
        self._parking = Parking(counters)
        self._pairs: dict[int, Pair] = {}
        self._of: dict[str | int, dict[int, Pair]] = {}  # the same by tunnel, and by VNI
        self._tenants: dict[int, Tenant] = {}
        self._neighbours: dict[str, Neighbour] = {}
        self.fabric: frozenset[str] = frozenset()  # their addresses
        self._gin: tuple[Address, bytes] | None = None  # that probed last: its address and key
        self._rules: dict[str, int] = {}  # inbound SPI
        self._named: dict[int, str] = {}  # the rule that names an SA
        self._retired: dict[tuple[int, int], Used] = {}
        self._limits_in, self._limits_out = Limits(), Limits()
        tables = counters, self._pairs, self._tenants
        self._outbound = Outbound(*tables, self._outbox, self._events)
        back = self._esp_tag, self._give_back, self._outbound.tell
        self._inbound = Inbound(*tables, self._parking, self._outbox, self._events, *back)

    # ---- desired state

    def put_neighbour(self, name: str, neighbour: Neighbour) -> None:
        self._neighbours[name] = neighbour
        self._learn_neighbours()

    def drop_neighbour(self, name: str) -> None:
        self._neighbours.pop(name, None)
        self._learn_neighbours()

    def put_tenant(
        self, vni: int, gateway_mac: bytes, vteps: Sequence[Vtep], gateway: Sequence[str] = ()
    ) -> None:
        """`gateway`: our own inner addresses. Raises ValueError for addresses that are none."""
        self._tenants[vni] = Tenant(vni, gateway_mac, vteps, gateway)
        self._forget(vni)

    def drop_tenant(self, vni: int) -> None:
        self._tenants.pop(vni, None)
        self._forget(vni)

    def put_limit(self, of: str | int, inward: Rate | None, outward: Rate | None, now: float) -> None:
        """Limit a tunnel by its id, or by the VNI all tunnels of a tenant together."""
        changed = self._limits_in.put(of, inward, now)
        if self._limits_out.put(of, outward, now) or changed:
            for pair in self._of.get(of, {}).values():
                self._limit(pair)

    def drop_limit(self, of: str | int) -> None:
        self.put_limit(of, None, None, 0.0)

    def _limit(self, pair: Pair) -> None:
        """Let the limits hold for this pair that are here for its tunnel and its tenant."""
        of = pair.entry.tunnel, pair.entry.vni
        pair.inbound.limits, pair.outbound.limits = self._limits_in.find(*of), self._limits_out.find(*of)

    def park(self, spi: int) -> None:
        """Hold packets of this SPI until its SA is put."""
        self._parking.open(spi)

    def unpark(self, spi: int) -> None:
        self._parking.close(spi)

    def put_sa(self, entry: SaEntry) -> list[Send]:
        """Add an SA, or change what may change of it; returns what was parked, opened.

        Raises ValueError, changing nothing, for keys or ranges that are none.
        """
        pair = self._pairs.get(entry.spi_in)
        if pair is not None and entry == pair.entry:
            return []
        if pair is not None and entry.same_sa(pair.entry):
            if entry.path != pair.entry.path:
                self._outbound.forget(entry.vni)
            pair.update(entry)
        else:
            identity = entry.spi_in, entry.spi_out
            same = pair is not None and pair.entry.spi_out == entry.spi_out
            used = pair.used if pair and same else self._retired.get(identity, UNUSED)
            doors = self._doors if self._through_gins or entry.raw else None
            fresh = Pair(entry, self._random, used, doors)
            self.drop_sa(entry.spi_in)
            self._limit(fresh)
            self._pairs[entry.spi_in] = fresh
            for of in (entry.tunnel, entry.vni):
                self._of.setdefault(of, {})[entry.spi_in] = fresh
            self._link(entry.vni, self._named.get(entry.spi_in))
        for parked in self._parking.release(entry.spi_in):
            packet = memoryview(parked.packet)
            self._inbound.receive(packet, len(packet), ("", 0), parked.since, parked.origin, parked.tos)
        return self._outbox.take()

    def drop_sa(self, spi_in: int) -> None:
        pair = self._pairs.pop(spi_in, None)
        if pair is not None:
            for of in (pair.entry.tunnel, pair.entry.vni):
                del self._of[of][spi_in]
                if not self._of[of]:
                    del self._of[of]
            identity = spi_in, pair.entry.spi_out
            self._retired.pop(identity, None)
            if len(self._retired) >= MAX_RETIRED:
                del self._retired[next(iter(self._retired))]
            self._retired[identity] = pair.used
            self._link(pair.entry.vni, self._named.get(spi_in))

    def put_rule(self, rule: str, spi_in: int, *, direct: bool = True) -> None:
        """Seal on this SA, from when it is here, the packets of the tunnel, or of one of its lineages of
        CHILD_SAs, that the rule is named after: `tunnel` or `tunnel#n`. Not `direct`: what VTEPs send
        straight here goes on to a GEN.
        """
        self.drop_rule(rule)
        self._outbound.divert(rule, not direct)
        self._rules[rule] = spi_in
        self._named[spi_in] = rule
        if (pair := self._pairs.get(spi_in)) is not None:
            self._link(pair.entry.vni, rule)

    def drop_rule(self, rule: str) -> None:
        spi_in = self._rules.pop(rule, 0)
        self._outbound.divert(rule, False)
        if self._named.get(spi_in) == rule:
            del self._named[spi_in]
        if (before := self._pairs.get(spi_in)) is not None:
            self._link(before.entry.vni, rule)

    def _link(self, vni: int, rule: str | None) -> None:
        """Make what is sealed by a rule in this VNI what it and the SA it names say."""
        if rule is None:
            return
        pair = self._pairs.get(self._rules.get(rule, 0))
        ruled = pair and pair.entry.tunnel == rule.partition("#")[0] and pair.entry.vni == vni
        self._outbound.rule(vni, rule, pair if ruled else None)

    def _learn_neighbours(self) -> None:
        self.fabric = frozenset(neighbour.address for neighbour in self._neighbours.values())
        if self._gin and all(each.tag_key != self._gin[1] for each in self._neighbours.values()):
            self._gin = None
        if self._doors is not None and self._doors.keep(self.fabric):
            self._choose_ways()
        self._outbound.set_gens(n.vxlan for _, n in sorted(self._neighbours.items()) if n.vxlan)

    def _forget(self, vni: int) -> None:
        """A tenant's network changed."""
        self._outbound.forget(vni)
        for pair in self._of.get(vni, {}).values():
            pair.forget()

    # ---- datagrams

    def receive_esp(
        self, view: memoryview, size: int, source: Address, now: float, tos: int = 0
    ) -> list[Send]:
        """A batch on the ESP port: segments of `size`, the last perhaps shorter, that came with this TOS."""
        self._receive_esp(view, size, source, now, tos)
        return self._outbox.take()

    def _receive_esp(self, view: memoryview, size: int, source: Address, now: float, tos: int) -> None:
        if not size:
            self._counters["gpn_drop_short"] += 1
            return
        origin = None if source[0] in self.fabric else source
        whole = len(view) - len(view) % size
        if whole:
            part = view if whole == len(view) else view[:whole]  # which may be known as it is
            self._inbound.receive(part, size, source, now, origin, tos)
        if whole < len(view):
            self._inbound.receive(view[whole:], len(view) - whole, source, now, origin, tos)

    def receive_vxlan(
        self, view: memoryview, size: int, source: Address, now: float, tos: int = 0
    ) -> list[Send]:
        """A batch on the VXLAN port: as above."""
        self._receive_vxlan(view, size, source, now, tos)
        return self._outbox.take()

    def _receive_vxlan(self, view: memoryview, size: int, source: Address, now: float, tos: int) -> None:
        if not size:
            self._counters["gpn_drop_vxlan_malformed"] += 1
            return
        whole = len(view) - len(view) % size
        if whole:
            self._receive_frames(view[:whole], size, source, now, tos)
        if whole < len(view):
            self._receive_frames(view[whole:], len(view) - whole, source, now, tos)

    def receive_esp_train(self, train: Sequence[Received], now: float) -> list[Send]:
        """Batches on the ESP port, in order."""
        if len(train) == 1:
            view, size, source, tos = train[0]
            return self.receive_esp(view, size, source, now, tos)
        for source, tos, stretch in _stretches(train):
            origin = None if source[0] in self.fabric else source
            together = not ecn.telling(tos) and short(stretch)
            if not (together and self._inbound.receive_row(stretch, source, now, origin, tos)):
                for view, size in joined(stretch, self._inbound.kind, received.join):
                    self._receive_esp(view, size, source, now, tos)
        return self._outbox.take()

    def receive_vxlan_train(self, train: Sequence[Received], now: float) -> list[Send]:
        """Batches on the VXLAN port, in order."""
        if len(train) == 1:
            view, size, source, tos = train[0]
            return self.receive_vxlan(view, size, source, now, tos)
        for source, tos, stretch in _stretches(train):
            together = not ecn.telling(tos) and short(stretch)
            if not (together and self._outbound.receive_row(stretch, source, now, tos)):
                for view, size in joined(stretch, self._outbound.kind):
                    self._receive_vxlan(view, size, source, now, tos)
        return self._outbox.take()

    def expire(self, now: float) -> None:
        """Give up what is parked too long, and nodes that are silent; to be called about every second."""
        self._parking.expire(now)
        self._outbound.expire(now)
        if self._doors is not None and self._doors.expire(now):
            self._choose_ways()

    def _choose_ways(self) -> None:
        """The GINs that are there are not the same any more."""
        for pair in self._pairs.values():
            pair.choose_way()

    # ---- what the control plane hears

    @property
    def eventful(self) -> bool:
        return bool(self._events)

    def take_events(self) -> list[Event]:
        events = self._events.copy()
        self._events.clear()
        return events

    def usage(self) -> list[Usage]:
        return [
            Usage(
                spi_in=spi,
                packets_in=pair.inbound.packets,
                bytes_in=pair.inbound.bytes,
                packets_out=pair.outbound.packets,
                bytes_out=pair.outbound.bytes,
                highest_in=pair.inbound.highest,
                next_out=pair.outbound.next,
                limited_packets_in=pair.inbound.limited.packets,
                limited_bytes_in=pair.inbound.limited.bytes,
                limited_packets_out=pair.outbound.limited.packets,
                limited_bytes_out=pair.outbound.limited.bytes,
            )
            for spi, pair in self._pairs.items()
        ]

    # ---- tags

    def _receive_frames(self, view: memoryview, size: int, source: Address, now: float, tos: int) -> None:
        if size != TAG_LENGTH:  # those that come here bear no packet
            self._outbound.receive(view, size, source, now, tos)
            return
        for at in range(0, len(view), size):
            frame = view[at : at + size]
            if is_tag(frame[:4]):
                self._vxlan_tag(frame, source, now)
            else:
                self._outbound.receive(frame, size, source, now, tos)

    def _esp_tag(self, datagram: memoryview, source: Address, now: float, tos: int) -> None:
        opened = self._open_tag(datagram, source)
        if opened is None:
            return
        tag, key = opened
        if tag.kind is not TagKind.ORIGIN:
            self._gin = source, key
            if self._doors is not None and self._doors.hear(source, now):
                self._choose_ways()
            self._echo(tag, key, Port.ESP, source)
            return
        packet = memoryview(tag.packet)
        if len(tag.address) != 4 or is_tag(packet[:4]):
            self._counters["gpn_drop_tag"] += 1
            return
        origin = ".".join(map(str, tag.address)), tag.port
        self._inbound.receive(packet, len(packet), source, now, origin, tos)

    def _give_back(self, packet: memoryview | bytes, source: Address, tos: int) -> None:
        """Return ESP of an unknown SPI to a GIN, whose kernel may have sent it here by another packet's."""
        if self._gin is None:
            self._counters["gpn_drop_unknown_spi"] += 1
            return
        gin, key = self._gin
        tag = Tag(TagKind.RETURN, 0, bytes(map(int, source[0].split("."))), source[1], bytes(packet))
        datagram = seal_tag(key, tag, hmac_sha256)
        way = Way(Port.ESP, gin, None, "gpn_esp_returned", tos)
        self._outbox.add(way, len(datagram), datagram)

    def _vxlan_tag(self, datagram: memoryview, source: Address, now: float) -> None:
        opened = self._open_tag(datagram, source)
        if opened is None:
            return
        tag, key = opened
        if tag.kind is TagKind.ORIGIN:
            self._counters["gpn_drop_tag"] += 1
        else:
            self._outbound.hear(source, now)
            self._echo(tag, key, Port.VXLAN, source)

    def _open_tag(self, datagram: memoryview, source: Address) -> tuple[Tag, bytes] | None:
        """A tag from a neighbour, with the key of the pair. Echoes are no business of a GPN."""
        for neighbour in self._neighbours.values():
            if neighbour.address == source[0]:
                try:
                    tag = open_tag(neighbour.tag_key, datagram, hmac_sha256)
                except Malformed:
                    continue
                if tag.kind in (TagKind.PROBE, TagKind.BARRIER, TagKind.ORIGIN):
                    return tag, neighbour.tag_key
        self._counters["gpn_drop_tag"] += 1
        return None

    def _echo(self, tag: Tag, key: bytes, port: Port, source: Address) -> None:
        """Answer behind all that was received before the tag."""
        self._outbox.put(Way(port, source, None, ""), seal_tag(key, tag.echo(), hmac_sha256))


Stretch = list[tuple[memoryview, int]]


def _stretches(train: Sequence[Received]) -> Iterator[tuple[Address, int, Stretch]]:
    """Batches that came one after another from one source, with one TOS."""
    stretch: Stretch = []
    before: tuple[Address, int] | None = None
    for view, size, source, tos in train:
        if before != (source, tos):
            if before is not None:
                yield *before, stretch
            before, stretch = (source, tos), []
        stretch.append((view, size))
    if before is not None:
        yield *before, stretch
