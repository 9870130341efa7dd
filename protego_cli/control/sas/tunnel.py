"""One tunnel as the GMN sees it: its CHILD_SAs, where each lies, which of them seal, what passed through it.

A `Placed` is a CHILD_SA on a GPN. A `Strand` is a lineage of them, each of which has replaced the one before.
A peer may have several side by side, one for each pair of subnets (RFC 7296 1.3.1). Of a strand's SAs at most
one is `sealing`; a `successor` stands ready and seals once the peer is known to use it (2.8); the rest are
retiring: they open what is still on its way.

GENs route by destination alone, so a tunnel's strands lie on one GPN; while it moves, both GPNs have Rules
for all of them. All fields change without an await in between, so every task sees a consistent tunnel. What a
restarted GMN must know is `durable`: it is in the journal before anybody hears of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import add, sub
from typing import Final, Literal, NamedTuple

import msgspec
import trio

from protego_cli.config.model import TunnelConfig
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.node_messages import SaUsage
from protego_cli.control.sas.ranges import SealingRange
from protego_cli.control.state.journal import Durable
from protego_cli.ike.events import ChildSa
from protego_cli.ike.narrowing import covered
from protego_cli.ike.record import Negotiation

MOVES: Final = 64  # remembered of one tunnel
STRANDS: Final = 8  # of one tunnel; with a rekey of each, as many SAs as `ike.children.MAX_CHILDREN`

Terms = Literal["ike", "child"]
"""Whose proposals and selectors: the IKE_SA's, the CHILD_SA's."""


class Totals(NamedTuple):
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    limited_packets_in: int = 0  # did not pass: rate limits dropped them
    limited_bytes_in: int = 0
    limited_packets_out: int = 0
    limited_bytes_out: int = 0

    def plus(self, other: Totals) -> Totals:
        return Totals(*map(add, self, other))

    def minus(self, other: Totals) -> Totals:
        return Totals(*map(sub, self, other))


class Meter:
    """What passed through one SA, over all processes that held it; never runs backwards."""

    def __init__(self) -> None:
        self.highest_in = 0  # authenticated sequence number, of the present keys whoever opened them
        self.highest_out = 0  # sealed, likewise
        self.next_out = 0  # number that the present process seals next; 0: not known yet
        self._before = Totals()
        self._now = Totals()

    def read(self, usage: SaUsage) -> Totals | None:
        """A report of the process that holds the SA now; what has passed since the last, None for nothing."""
        self.highest_in = max(self.highest_in, usage.highest_in)
        if usage.packets_out:
            self.highest_out = max(self.highest_out, usage.next_out - 1)
        found = Totals(*(getattr(usage, name) for name in Totals._fields))
        if found == self._now:
            return None
        if any(new < known for new, known in zip(found, self._now, strict=True)):
            self.restart()
        self.next_out = usage.next_out
        passed, self._now = found.minus(self._now), found
        return passed

    def restart(self) -> None:
        """Another process holds the SA from now on and counts from zero."""
        self._before, self._now = self.total, Totals()
        self.next_out = 0

    @property
    def total(self) -> Totals:
        return self._before.plus(self._now)


@dataclass(eq=False)
class Placed(Durable):
    """A CHILD_SA and where it lies."""

    durable = frozenset(
        [
            "gpn",
            "numbers",
            "peer",
            "floor",
            "opens",
            "standing",
            "ends",
            "replaces",
            "renewing",
            "expires",
            "spread",
        ]
    )
    binding = frozenset({"gpn", "numbers", "peer", "floor", "opens"})

    child: ChildSa
    ike: int
    gpn: str
    numbers: SealingRange
    peer: tuple[str, int]  # where its ESP goes: the IKE_SA's path, unless packets have proven another
    since: float = 0.0  # wall time
    window: int = 1024  # of the replay check, for as long as the SA lives
    floor: int = 0
    opens: bool = True
    marks_complete: bool = True  # whether the GINs' marks and the last report cover all that was opened
    standing: bool = False  # acknowledged by its GPN, and known to the peer
    ends: float | None = None  # wall-clock time at which it is forgotten, once the peer knows it no more
    replaces: int | None = None  # the SA that we rekeyed to get it, and have yet to delete
    renewing: bool = False  # a task sees to its rekey
    refused: bool = False  # a rekey of it has failed
    ending: bool = False  # it is being deleted for its age
    expires: float = math.inf  # wall time: the hard limit
    spread: float = 0.0  # random in [0, 1): how early its soft limits are
    leaving: bool = False  # it is about to retire, and seals no more
    meter: Meter = field(default_factory=Meter)
    strand: Strand = field(init=False, repr=False)  # from when the tunnel has it

    @property
    def spi(self) -> int:
        return self.child.spi_in

    @property
    def keys(self) -> tuple[Key, Key]:
        """Of its records on its GPN: what opens and seals, and what is sealed by it."""
        return ("sa", self.spi), ("rule", self.strand.name)

    @property
    def seals(self) -> bool:
        """Whether it is the one of its strand that does."""
        return self.strand.sealing is self

    @property
    def retiring(self) -> bool:
        """Whether the peer knows it no more."""
        return self.ends is not None

    @property
    def going(self) -> bool:
        """Whether nothing may begin to seal on it."""
        return self.leaving or self.retiring


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """An SPI of ours in a request to a peer: its packets go to a GPN and wait there until the SA stands.

    The GPN's process has a sealing range of that SA with it, so that the SA can be installed as soon as it is
    there: a new life of the GMN that finds this instead of the SA knows what may be in use, and where.
    """

    tunnel: str
    gpn: str
    peer: tuple[str, int]
    replaces: int | None  # the SA that is being rekeyed; None in a handshake
    granted: int = 1  # ranges, the last of them to the process that is there now
    opens: bool = True  # no other process may have opened packets of it


class Strand(Durable):
    """One lineage of a tunnel's CHILD_SAs: what its Rules and its Route are about."""

    durable = frozenset({"sealing", "successor", "ruled"})

    def __init__(self, tunnel: Tunnel, number: int) -> None:
        """Numbers begin with 1."""
        self.number = number
        self.name = tunnel.id if number == 1 else f"{tunnel.id}#{number}"  # in records
        self.sealing: Placed | None = None
        self.successor: Placed | None = None
        self.ruled: dict[str, int] = {}  # GPN -> inbound SPI of the SA that its Rule names
        self.flipping = trio.Lock()  # held while the sealing SA changes
        self._tunnel = tunnel
        self.mark = lambda *, binding=True: tunnel.mark(binding=binding)  # it is part of the tunnel's record

    @property
    def sas(self) -> list[Placed]:
        """Oldest first."""
        return [sa for sa in self._tunnel.sas.values() if sa.strand is self]

    @property
    def vacant(self) -> bool:
        """Whether another lineage may begin here."""
        return self.sealing is None and self.successor is None and all(sa.going for sa in self.sas)

    @property
    def aside(self) -> Placed | None:
        """What stands on another GPN and seals there when all strands of the tunnel do."""
        sealing = self.sealing
        if sealing is None:
            return None
        found = (sa for sa in self.sas if sa.replaces is not None and sa is not sealing and not sa.going)
        return next((sa for sa in found if sa.gpn != sealing.gpn), None)

    def heir(self, leaving: Iterable[Placed]) -> Placed | None:
        """What may seal when these no longer do: the successor, or else the newest that stands."""
        gone = set(leaving)
        candidates = [self.successor, *reversed(self.sas)]
        return next((sa for sa in candidates if sa and sa not in gone and sa.standing and not sa.going), None)


class Tunnel(Durable):
    durable = frozenset({"target", "retired"})

    def __init__(self, config: TunnelConfig, vni: int) -> None:
        self.config = config
        self.id = config.id
        self.vni = vni
        self.ikes: set[int] = set()  # handles of its IKE_SAs
        self.ikes_since: dict[int, float] = {}  # wall time, by handle
        self.sas: dict[int, Placed] = {}  # by inbound SPI, oldest first
        self.strands = [Strand(self, 1)]
        self.replaced: set[int] = set()  # IKE_SAs that are about to be closed for a newer one
        self.gathering = False  # a task brings its strands to one GPN
        self.target: str | None = None  # where every new SA goes while a migration is under way
        self.offers = 0  # requests of the peer that are being worked on
        self.dialling = False
        self.held = False  # taken down by the operator, until he lets it up again
        self.negotiations: dict[str, tuple[float, Negotiation]] = {}  # the last of each sort, with wall time
        self.outdated: set[Terms] = set()  # what was negotiated under a policy that has changed since
        self.withdrawn = False  # the cluster file does not have it any more
        self.error: str | None = None  # why the last negotiation failed, or why it went down
        self.moves: deque[float] = deque(maxlen=MOVES)  # when it was moved lately
        self.moving = trio.Lock()  # held by a rekey of ours, from its first step to its last
        self.retired = Totals()  # what passed through SAs that are gone
        self._changed: trio.Event | None = None  # once somebody waits

    # ---- CHILD_SAs

    def add(self, placed: Placed, strand: Strand) -> None:
        placed.strand = strand
        self.sas[placed.spi] = placed
        self.changed()

    def stand(self, placed: Placed) -> None:
        """The SA is acknowledged: it may seal, if the peer has it."""
        placed.standing = True
        self.error = None
        self.changed()

    def remove(self, placed: Placed) -> None:
        """The SA is on no node any more; what passed through it still counts."""
        if self.sas.pop(placed.spi, None) is not None:
            self.retired = self.retired.plus(placed.meter.total)
        if placed.seals:
            placed.strand.sealing = None
        if placed.strand.successor is placed:
            placed.strand.successor = None
        self.changed()

    def strand(self, number: int) -> Strand:
        """The one of this number, with those before it."""
        while len(self.strands) < number:
            self.strands.append(Strand(self, len(self.strands) + 1))
        return self.strands[number - 1]

    def strand_for(self, child: ChildSa, ike: int) -> Strand | None:
        """Where a CHILD_SA belongs that replaces none by name: in the place of one whose traffic it could
        carry, or of one that overlaps and that an older IKE_SA has left, else beside them. None when there
        are too many.
        """
        for strand in self.strands:
            newest = strand.successor or strand.sealing
            if newest is not None and carries(child, newest.child):
                return strand
        for strand in self.strands:
            old = None if strand.successor is not None else strand.sealing
            if old is not None and old.ike != ike and overlap(child, old.child):
                return strand
        vacant = next((strand for strand in self.strands if strand.vacant), None)
        if vacant is None and len(self.strands) < STRANDS:
            return self.strand(len(self.strands) + 1)
        return vacant

    @property
    def seals(self) -> list[Placed]:
        """The sealing SA of each strand that has one."""
        return [strand.sealing for strand in self.strands if strand.sealing is not None]

    @property
    def sealing(self) -> Placed | None:
        """The SA that seals; of several strands' the first one's that is up."""
        if len(self.strands) == 1:
            return self.strands[0].sealing
        seals = self.seals
        up = (sa for sa in seals if sa.standing and not sa.retiring)
        return next(up, seals[0] if seals else None)

    @property
    def several(self) -> bool:
        return len(self.strands) > 1 and len(self.seals) > 1

    @property
    def scattered(self) -> bool:
        """Whether its strands lie on several GPNs."""
        return len({sa.gpn for sa in self.seals}) > 1

    def children(self, ike: int) -> list[Placed]:
        """What an IKE_SA has, oldest first."""
        return [sa for sa in self.sas.values() if sa.ike == ike and not sa.retiring]

    @property
    def standing(self) -> bool:
        """Whether an SA seals that its peer has, and that it keeps."""
        sealing = self.sealing
        return sealing is not None and sealing.standing and not sealing.retiring

    @property
    def settled(self) -> bool:
        """Whether nothing that the peer began is open."""
        return not self.offers and all(strand.successor is None for strand in self.strands)

    @property
    def totals(self) -> Totals:
        total = self.retired
        for placed in self.sas.values():
            total = total.plus(placed.meter.total)
        return total

    @property
    def seat(self) -> str | None:
        """The GPN where it is, or where it is on its way to."""
        sealing = self.sealing
        return self.target or (sealing.gpn if sealing else None)

    # ---- waiting

    def changed(self) -> None:
        """Wake those who wait for something about this tunnel."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._changed is None:
                self._changed = trio.Event()
            await self._changed.wait()


def carries(child: ChildSa, other: ChildSa) -> bool:
    """Whether all that `other` carries could go through `child`."""
    return covered(other.local_ts, child.local_ts) and covered(other.remote_ts, child.remote_ts)


def overlap(one: ChildSa, other: ChildSa) -> bool:
    """Whether there are packets that both could carry."""
    return all(
        any(mine.intersect(its) for mine in ours for its in theirs)
        for ours, theirs in ((one.local_ts, other.local_ts), (one.remote_ts, other.remote_ts))
    )


def endpoint(address: tuple[str, int]) -> str:
    """For people; raw ESP has no port."""
    host, port = address
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
