"""A deterministic world for the IKE engine: a clock that jumps, and a network that misbehaves from a seed.

`Network` carries datagrams between `Site`s by address and delivers them at simulated times; `Site` runs one
engine as a driver would, answers its tickets, and remembers what it was told. Nothing here sleeps.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from protego_cli.config.model import IkeSettings
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.ike.context import Context
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import (
    Alive,
    ChildDeleted,
    ChildDeleteOffered,
    ChildEstablished,
    ChildOffered,
    ChildSa,
    Datagram,
    Event,
    ExchangeFailed,
    IkeClosed,
    IkeDeleteOffered,
    IkeEstablished,
    IkeRekeyed,
    Negotiated,
    NegotiationFailed,
    Path,
    PeerMoved,
    Policy,
)
from protego_cli.ike.exchanges.create_child import Selectors
from protego_cli.ike.record import Negotiation

REGISTRY = Registry(("builtin", algorithm) for algorithm in ALGORITHMS)
DEFAULTS = IkeSettings()

Offer = ChildOffered | ChildDeleteOffered | IkeDeleteOffered  # what waits for the driver


@dataclass(frozen=True)
class Weather:
    """How badly the network behaves; delays in seconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.01, 0.01)


CALM = Weather()
STORM = Weather(drop=0.25, duplicate=0.2, delay=(0.005, 0.6))


class Network:
    """Moves datagrams and time. `tap` sees, and may replace or drop, everything that is sent."""

    def __init__(self, seed: int, weather: Weather = CALM) -> None:
        self.random = Random(seed)
        self.weather = weather
        self.now = 1000.0
        self.sites: dict[str, Site] = {}
        self.tap: Callable[[Datagram], bytes | None] = lambda datagram: datagram.data
        self.sent: list[Datagram] = []
        self.masquerade: dict[str, tuple[str, int]] = {}  # address -> what the others see (a NAT)
        self._flying: list[tuple[float, int, Datagram]] = []
        self._order = itertools.count()

    def send(self, datagram: Datagram) -> None:
        self.sent.append(datagram)
        data = self.tap(datagram)
        if data is None:
            return
        copies = 2 if self.random.random() < self.weather.duplicate else 1
        for _ in range(copies):
            if self.random.random() < self.weather.drop:
                continue
            at = self.now + self.random.uniform(*self.weather.delay)
            heapq.heappush(self._flying, (at, next(self._order), Datagram(datagram.path, data)))

    def run(self, until: Callable[[], bool] = lambda: False, limit: float = 600.0) -> None:
        """Let time pass until the condition holds, at most for `limit` seconds."""
        end = self.now + limit
        while not until():
            step = self._next()
            if step is None or step > end:
                if step is None and until():
                    return
                self.now = end
                break
            self.now = max(self.now, step)
            self._deliver()
            for site in self.sites.values():
                timer = site.engine.timer()
                if timer is not None and timer <= self.now:
                    site.engine.handle_timer(self.now)
                    site.settle()

    def settle(self, seconds: float = 5.0) -> None:
        """Let time pass for that long."""
        self.run(limit=seconds)

    def _next(self) -> float | None:
        times = [timer for site in self.sites.values() if (timer := site.engine.timer()) is not None]
        if self._flying:
            times.append(self._flying[0][0])
        return min(times, default=None)

    def _deliver(self) -> None:
        while self._flying and self._flying[0][0] <= self.now:
            _, _, datagram = heapq.heappop(self._flying)
            path = datagram.path
            source, source_port = self.masquerade.get(path.local, (path.local, path.local_port))
            target = next(
                (
                    inside
                    for inside, seen in self.masquerade.items()
                    if seen == (path.remote, path.remote_port)
                ),
                path.remote,
            )
            site = self.sites.get(target)
            if site is None:
                continue
            port = path.remote_port if target == path.remote else site.inside_port
            site.engine.receive_datagram(datagram.data, Path(target, port, source, source_port), self.now)
            site.settle()


@dataclass
class Site:
    """One engine and a driver that says yes to everything, unless told otherwise."""

    network: Network
    address: str
    policies: list[Policy]
    settings: IkeSettings = DEFAULTS
    raw_esp: bool = True  # its ESP could do without UDP
    seed: int = 0
    inside_port: int = 4500
    hold: bool = False  # leave tickets to the test
    tidy: bool = False  # delete a CHILD_SA as soon as a rekey of ours has replaced it
    events: list[Event] = field(default_factory=list)
    records: list[Negotiation] = field(default_factory=list)
    ikes: dict[int, IkeEstablished] = field(default_factory=dict)
    children: dict[int, ChildSa] = field(default_factory=dict)
    tickets: list[Offer] = field(default_factory=list)
    redundant: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        source = Random(f"{self.network.random.random()} {self.address} {self.seed}")
        self.counters = Counters()
        self.engine = Engine(
            self.policies,
            REGISTRY,
            self.settings,
            source.randbytes,
            lambda: source.randrange(256, 2**32),
            1,
            self.counters,
            lambda: self.raw_esp,
        )
        self.network.sites[self.address] = self

    @property
    def now(self) -> float:
        return self.network.now

    def dial(self, tunnel: str, remote: str, spi_in: int = 0x11111111, port: int = 500) -> int:
        token = self.engine.initiate(tunnel, Path(self.address, port, remote, port), spi_in, self.now)
        self.settle()
        return token

    def create(self, spi_in: int, selectors: Selectors | None = None) -> int:
        token = self.engine.create_child(self.ike, spi_in, self.now, selectors)
        self.settle()
        return token

    def rekey(self, spi_in: int, new_spi: int) -> int:
        token = self.engine.rekey_child(spi_in, new_spi, self.now)
        self.settle()
        return token

    def rekey_ike(self) -> int:
        token = self.engine.rekey_ike(self.ike, self.now)
        self.settle()
        return token

    def delete(self, spi_in: int) -> int:
        token = self.engine.delete_child(spi_in, self.now)
        self.settle()
        return token

    def check_alive(self) -> int:
        token = self.engine.check_alive(self.ike, self.now)
        self.settle()
        return token

    def close(self) -> int:
        token = self.engine.close(self.ike, self.now)
        self.settle()
        return token

    def accept(self, ticket: int) -> None:
        self.engine.accept(ticket, self.now)
        self.settle()

    @property
    def context(self) -> Context:
        """The engine's inside, to see that nothing piles up there."""
        return self.engine._context

    @property
    def ike(self) -> int:
        """The handle of the only IKE_SA."""
        (handle,) = self.ikes
        return handle

    @property
    def child(self) -> ChildSa:
        """The only CHILD_SA."""
        (child,) = self.children.values()
        return child

    def of(self, kind: type) -> list[Event]:
        """Events of a type that were reported."""
        return [event for event in self.events if isinstance(event, kind)]

    def outcome(self, token: int) -> Event | None:
        """The last event that bears the token."""
        return next(
            (event for event in reversed(self.events) if getattr(event, "token", None) == token), None
        )

    def settle(self) -> None:
        """Do what a driver does after each call of the engine."""
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, Negotiated):
                self.records.append(event.record)
                continue
            self.events.append(event)
            self._handle(event)
        for datagram in self.engine.datagrams_to_send():
            self.network.send(datagram)

    def _handle(self, event: Event) -> None:
        match event:
            case IkeEstablished():
                self.ikes[event.ike] = event
            case IkeClosed():
                del self.ikes[event.ike]
                for spi_in in event.children:
                    del self.children[spi_in]
            case ChildEstablished():
                self.children[event.child.spi_in] = event.child
                if event.redundant:
                    self.redundant.add(event.child.spi_in)
                elif self.tidy and event.replaces is not None:
                    self.engine.delete_child(event.replaces, self.now)
            case ChildDeleted():
                self.children.pop(event.spi_in, None)
            case ChildOffered() | ChildDeleteOffered() | IkeDeleteOffered():
                self.tickets.append(event)
                if not self.hold:
                    self.grant(event)
            case Alive() | ExchangeFailed() | IkeRekeyed() | NegotiationFailed() | PeerMoved():
                pass

    def grant(self, event: Offer) -> None:
        """Accept a ticket and take or drop the CHILD_SA it is about."""
        self.tickets.remove(event)
        if isinstance(event, ChildOffered):
            self.children[event.child.spi_in] = event.child
        elif isinstance(event, ChildDeleteOffered):
            self.children.pop(event.spi_in, None)
        self.engine.accept(event.ticket, self.now)
