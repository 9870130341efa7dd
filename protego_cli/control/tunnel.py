"""One tunnel as the GMN sees it: its CHILD_SAs, where each lies, which one seals, what passed through it.

A `Placed` is a CHILD_SA on a GPN. Of a tunnel's, at most one is `sealing`; a `successor` stands ready and
seals once the peer is known to use it (RFC 7296 2.8); the rest are retiring: they open what is still on its
way. All fields change without an await in between, so every task sees a consistent tunnel. What a restarted
GMN must know of both is `durable`: it is in the journal before anybody hears of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import msgspec
import trio

from protego_cli.config.model import TunnelConfig
from protego_cli.control.journal import Durable
from protego_cli.control.messages import SaUsage
from protego_cli.control.ranges import SealingRange
from protego_cli.ike.events import ChildSa
from protego_cli.ike.record import Negotiation

MOVES: Final = 64  # remembered of one tunnel

Terms = Literal["ike", "child"]
"""Whose proposals and selectors: the IKE_SA's, the CHILD_SA's."""


class Totals(NamedTuple):
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0

    def plus(self, other: Totals) -> Totals:
        return Totals(*(mine + its for mine, its in zip(self, other, strict=True)))

    def minus(self, other: Totals) -> Totals:
        return Totals(*(mine - its for mine, its in zip(self, other, strict=True)))


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
        found = Totals(usage.packets_in, usage.bytes_in, usage.packets_out, usage.bytes_out)
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

    @property
    def spi(self) -> int:
        return self.child.spi_in

    @property
    def retiring(self) -> bool:
        """Whether the peer knows it no more."""
        return self.ends is not None

    @property
    def going(self) -> bool:
        """Whether nothing may begin to seal on it."""
        return self.leaving or self.retiring


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """An SPI of ours in a request to a peer: its packets go to a GPN and wait there until the SA stands."""

    tunnel: str
    gpn: str
    peer: tuple[str, int]
    replaces: int | None  # the SA that is being rekeyed; None in a handshake


class Tunnel(Durable):
    durable = frozenset({"sealing", "successor", "ruled", "target", "retired"})

    def __init__(self, config: TunnelConfig, vni: int) -> None:
        self.config = config
        self.id = config.id
        self.vni = vni
        self.ikes: set[int] = set()  # handles of its IKE_SAs
        self.ikes_since: dict[int, float] = {}  # wall time, by handle
        self.sas: dict[int, Placed] = {}  # by inbound SPI, oldest first
        self.sealing: Placed | None = None
        self.successor: Placed | None = None
        self.ruled: dict[str, int] = {}  # GPN -> inbound SPI of the SA that its Rule names
        self.target: str | None = None  # where every new SA goes while a migration is under way
        self.offers = 0  # requests of the peer that are being worked on
        self.dialling = False
        self.held = False  # taken down by the operator, until he lets it up again
        self.negotiations: dict[str, tuple[float, Negotiation]] = {}  # the last of each sort, with wall time
        self.outdated: set[Terms] = set()  # what was negotiated under a policy that has changed since
        self.withdrawn = False  # the cluster file does not have it any more
        self.error: str | None = None  # why the last negotiation failed
        self.moves: deque[float] = deque(maxlen=MOVES)  # when it was moved lately
        self.moving = trio.Lock()  # held by a rekey of ours, from its first step to its last
        self.flipping = trio.Lock()  # held while the sealing SA changes
        self.retired = Totals()  # what passed through SAs that are gone
        self._changed = trio.Event()

    # ---- CHILD_SAs

    def add(self, placed: Placed) -> None:
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
        if self.sealing is placed:
            self.sealing = None
        if self.successor is placed:
            self.successor = None
        self.changed()

    def heir(self, leaving: Iterable[Placed]) -> Placed | None:
        """What may seal when these no longer do: the successor, or else the newest that stands."""
        gone = set(leaving)
        candidates = [self.successor, *reversed(self.sas.values())]
        return next((sa for sa in candidates if sa and sa not in gone and sa.standing and not sa.going), None)

    def children(self, ike: int) -> list[Placed]:
        """What an IKE_SA has, oldest first."""
        return [sa for sa in self.sas.values() if sa.ike == ike and not sa.retiring]

    @property
    def standing(self) -> bool:
        """Whether an SA seals that its peer has, and that it keeps."""
        return self.sealing is not None and self.sealing.standing and not self.sealing.retiring

    @property
    def settled(self) -> bool:
        """Whether nothing that the peer began is open."""
        return self.successor is None and not self.offers

    @property
    def totals(self) -> Totals:
        total = self.retired
        for placed in self.sas.values():
            total = total.plus(placed.meter.total)
        return total

    @property
    def seat(self) -> str | None:
        """The GPN where it is, or where it is on its way to."""
        return self.target or (self.sealing.gpn if self.sealing else None)

    # ---- waiting

    def changed(self) -> None:
        """Wake those who wait for something about this tunnel."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()
