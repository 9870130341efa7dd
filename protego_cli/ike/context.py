"""What all IKE_SAs of one engine share: settings, sources, tables, the way out for events and datagrams."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protego_cli.config.model import IkeSettings
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import RandomSource, Registry
from protego_cli.ike.cookies import Cookies
from protego_cli.ike.events import Datagram, Event, Path
from protego_cli.ike.half_open import HalfOpen
from protego_cli.ike.negotiation import IKE_SPI_LENGTH
from protego_cli.ike.policies import Policies
from protego_cli.ike.rations import BURST, RATE, Allowance, Ration

if TYPE_CHECKING:
    from protego_cli.ike.sa import IkeSa

NONCE_LENGTH = 32
NO_SPI = bytes(IKE_SPI_LENGTH)
COMPLAINTS_PER_SECOND = 10  # answers to what belongs to no IKE_SA (RFC 7296 2.5)
_REPORTS_PER_SECOND = 10  # as many as a person could want to read
_NUMBERS = 32  # bits below the epoch's in a handle, ticket or token

RequestKey = tuple[bytes, str, int]
"""What tells one IKE_SA_INIT request from another: the initiator's SPI, address and port."""


@dataclass
class Context:
    registry: Registry
    settings: IkeSettings
    random: RandomSource
    allocate_spi: Callable[[], int]
    epoch: int
    counters: Counters
    raw_esp: Callable[[], bool]  # whether ESP could do without UDP now
    policies: Policies
    wall: float  # what our times lack to wall-clock time
    cookies: Cookies = field(init=False)
    half_open: HalfOpen = field(init=False)
    events: deque[Event] = field(default_factory=deque)
    outbox: list[Datagram] = field(default_factory=list)
    by_spi: dict[bytes, IkeSa] = field(default_factory=dict)  # our SPI
    by_request: dict[RequestKey, IkeSa] = field(default_factory=dict)
    by_handle: dict[int, IkeSa] = field(default_factory=dict)
    by_tunnel: dict[str, list[IkeSa]] = field(default_factory=dict)  # those with a handle, oldest first
    by_child: dict[int, IkeSa] = field(default_factory=dict)  # inbound SPI
    by_ticket: dict[int, IkeSa] = field(default_factory=dict)
    barred: set[str] = field(default_factory=set)  # tunnels whose peers are refused, by the operator's will
    touched: dict[IkeSa, None] = field(default_factory=dict)  # in this call, in order
    changed: dict[bytes, IkeSa | None] = field(default_factory=dict)  # our SPI; not yet told by `changes`
    allowances: dict[str, Allowance] = field(default_factory=dict)  # tunnel -> of its peers
    _numbers: itertools.count[int] = field(init=False)
    complaints: Ration = field(default_factory=lambda: Ration(COMPLAINTS_PER_SECOND))
    reports: Ration = field(default_factory=lambda: Ration(_REPORTS_PER_SECOND))  # on unproven peers

    def __post_init__(self) -> None:
        self.cookies = Cookies(self.random)
        self.half_open = HalfOpen(self.settings.half_open_max)
        self._numbers = itertools.count((self.epoch << _NUMBERS) + 1)

    def number(self) -> int:
        """A fresh number, for a handle, a ticket or a token: no other one in any epoch."""
        return next(self._numbers)

    def new_spi(self) -> bytes:
        """An IKE SPI that is neither zero nor in use."""
        while True:
            spi = self.random(IKE_SPI_LENGTH)
            if spi != NO_SPI and spi not in self.by_spi:
                return spi

    def new_nonce(self) -> bytes:
        return self.random(NONCE_LENGTH)

    def forces(self, asked: bool) -> bool:
        """Whether a peer is to encapsulate, NAT or not: where that is asked for, or nothing else will do."""
        return asked or not self.raw_esp()

    def allows(self, tunnel: str, now: float) -> bool:
        """Whether a request of a tunnel's peer is to be taken now; counted if not."""
        allowance = self.allowances.get(tunnel)
        if allowance is None:
            allowance = self.allowances[tunnel] = Allowance(BURST, RATE, now)
        allowed = allowance.allow(now)
        self.counters["ike_drop_rate"] += not allowed
        return allowed

    def fraction(self) -> float:
        """A random number in [0, 1)."""
        return int.from_bytes(self.random(4), "big") / 2**32

    def send(self, path: Path, data: bytes) -> None:
        self.outbox.append(Datagram(path, data))

    def emit(self, event: Event) -> None:
        self.events.append(event)
