"""A site whose gateway dies and comes back, from nothing but the states that it had stored.

After every call of the engine the site may die, at one of the points of `Death`. It is down for a while,
hears nothing, and comes back under the next epoch and with another clock. What the driver knew is gone, too:
it is told what stands by `Engine.sas`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random

import pytest

from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import Registry
from protego_cli.errors import ProtocolError
from protego_cli.ike.context import Context
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import (
    Datagram,
    Event,
    IkeEstablished,
    Path,
    Policy,
    Standing,
)
from protego_cli.ike.exchanges.auth import Authenticate
from protego_cli.ike.exchanges.create_child import Selectors
from protego_cli.ike.exchanges.init import Dial
from protego_cli.ike.sa import IkeSa
from protego_cli.wire.ike import HEADER_LENGTH, Header
from protego_cli.wire.payloads import Payload
from tests.support.ike_pairs import GATEWAY_POLICY
from tests.support.network import DEFAULTS, REGISTRY, Offer, Site

SKEW = 4096.0  # between the clocks of one epoch and the next; a float keeps every bit of it


def fresh(
    epoch: int = 2,
    policies: Sequence[Policy] = (GATEWAY_POLICY,),
    registry: Registry = REGISTRY,
    wall: float = 0.0,
) -> Engine:
    """A gateway's engine to which nothing has happened yet."""
    source = Random(epoch)
    return Engine(
        policies,
        registry,
        DEFAULTS,
        source.randbytes,
        lambda: source.randrange(256, 2**32),
        epoch,
        Counters(),
        wall=wall,
    )


def dials(engine: Engine) -> dict[int, str]:
    """Token and tunnel of every handshake of ours that is under way."""
    return {
        sa.current.token: sa.name
        for sa in engine._context.by_spi.values()
        if isinstance(sa.current, Dial | Authenticate) and sa.current.token is not None
    }


class Death(Enum):
    UNSTORED = "before the changes are stored"
    UNSENT = "after that, before the datagrams leave"
    SENT = "after the datagrams have left"


@dataclass
class Machine:
    """The process: an engine in its own time, or nothing until it is started again."""

    make: Callable[[int], Engine]
    epoch: int = 1
    up_at: float | None = None
    restart: Callable[[], None] = lambda: None
    later: list[tuple[float, Offer]] = field(default_factory=list)
    grant: Callable[[Offer], None] = lambda ticket: None

    def __post_init__(self) -> None:
        self.engine = self.make(self.epoch)

    @property
    def _context(self) -> Context:
        return self.engine._context

    @property
    def skew(self) -> float:
        return self.epoch * SKEW

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        if self.up_at is None:
            self.engine.receive_datagram(data, path, now + self.skew)

    def timer(self) -> float | None:
        if self.up_at is not None:
            return self.up_at
        timer = self.engine.timer()
        times = [at for at, _ in self.later] + ([timer - self.skew] if timer is not None else [])
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        if self.up_at is not None:
            self.up_at = None
            self.restart()
            return
        due = [ticket for at, ticket in self.later if at <= now]
        self.later = [(at, ticket) for at, ticket in self.later if at > now]
        for ticket in due:
            self.grant(ticket)
        self.engine.handle_timer(now + self.skew)

    def datagrams_to_send(self) -> list[Datagram]:
        return self.engine.datagrams_to_send()

    def next_event(self) -> Event | None:
        return self.engine.next_event()

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        return self.engine.changes()

    def sas(self) -> list[Standing]:
        return self.engine.sas()

    def initiate(self, tunnel: str, path: Path, spi_in: int, now: float) -> int:
        return self.engine.initiate(tunnel, path, spi_in, now + self.skew)

    def create_child(self, ike: int, spi_in: int, now: float, selectors: Selectors | None = None) -> int:
        return self.engine.create_child(ike, spi_in, now + self.skew, selectors)

    def rekey_child(self, spi_in: int, new_spi: int, now: float) -> int:
        return self.engine.rekey_child(spi_in, new_spi, now + self.skew)

    def delete_child(self, spi_in: int, now: float) -> int:
        return self.engine.delete_child(spi_in, now + self.skew)

    def rekey_ike(self, ike: int, now: float) -> int:
        return self.engine.rekey_ike(ike, now + self.skew)

    def check_alive(self, ike: int, now: float) -> int:
        return self.engine.check_alive(ike, now + self.skew)

    def close(self, ike: int, now: float) -> int:
        return self.engine.close(ike, now + self.skew)

    def accept(self, ticket: int, now: float) -> None:
        self.engine.accept(ticket, now + self.skew)

    def reject(self, ticket: int, error: ProtocolError, now: float) -> None:
        self.engine.reject(ticket, error, now + self.skew)


@dataclass
class MortalSite(Site):
    """Dies by its own plan of chance; `deaths` is how often it still may."""

    plan: Random = field(default_factory=Random)
    danger: float = 0.0  # of dying, after each call of the engine
    deaths: int = 0
    doom: tuple[int, Death] | None = None  # after how many more calls, and how, it dies for certain
    hesitation: float = 0.0  # how often it takes its time with a ticket
    stored: dict[bytes, bytes] = field(default_factory=dict)
    died: list[Death] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        source = Random(f"{self.network.random.random()} {self.address} {self.seed}")

        def make(epoch: int) -> Engine:
            return Engine(
                self.policies,
                REGISTRY,
                self.settings,
                source.randbytes,
                lambda: source.randrange(256, 2**32),
                epoch,
                self.counters,
                lambda: self.raw_esp,
                wall=-epoch * SKEW,
            )

        self.machine = Machine(make, restart=self.restart, grant=self.grant)
        self.engine = self.machine  # type: ignore[assignment]  # the same face

    @property
    def up(self) -> bool:
        return self.machine.up_at is None

    def settle(self) -> None:
        if not self.up:
            return
        while (event := self.engine.next_event()) is not None:
            self.events.append(event)
            self._handle(event)
        death = None
        if self.doom is not None:
            calls, way = self.doom
            self.doom = (calls - 1, way) if calls > 1 else None
            death = way if calls == 1 else None
        elif self.deaths and self.plan.random() < self.danger:
            death = self.plan.choice(list(Death))
        if death is Death.UNSTORED:
            self.die(death)
            return
        self.store()
        if death is Death.UNSENT:
            self.die(death)
            return
        for datagram in self.engine.datagrams_to_send():
            self.network.send(datagram)
        if death is not None:
            self.die(death)

    def store(self) -> None:
        for spi, state in self.engine.changes():
            if state is None:
                self.stored.pop(spi, None)
            else:
                self.stored[spi] = state

    def _handle(self, event: Event) -> None:
        if isinstance(event, Offer) and self.plan.random() < self.hesitation:
            self.tickets.append(event)
            self.machine.later.append((self.now + self.plan.choice((0.1, 1.0)), event))
            return
        super()._handle(event)

    def die(self, death: Death) -> None:
        self.deaths = max(0, self.deaths - 1)
        self.died.append(death)
        self.machine.up_at = self.now + self.plan.choice((0.0, 0.05, 0.7, 2.0))

    def restart(self) -> None:
        """A new process takes up what was stored."""
        machine = self.machine
        machine.epoch += 1
        machine.engine = machine.make(machine.epoch)
        machine.later.clear()
        self.tickets.clear()
        machine.engine.restore(self.stored.values(), self.now + machine.skew)
        self.learn()

    def learn(self) -> None:
        """What the driver finds after a restart."""
        self.ikes, self.children = {}, {}
        for sa in self.engine.sas():
            self.ikes[sa.ike] = IkeEstablished(sa.ike, sa.tunnel, sa.path, sa.initiator, sa.suite, None)
            self.children |= {child.spi_in: child for child in sa.children}


def record_ivs(patch: pytest.MonkeyPatch) -> set[tuple[bytes, bytes]]:
    """From now on every (key, IV) that seals a message is recorded; it fails at one that comes again."""
    used: set[tuple[bytes, bytes]] = set()
    seal = IkeSa._seal

    def recorded(sa: IkeSa, header: Header, payloads: tuple[Payload, ...]) -> bytes:
        data = seal(sa, header, payloads)
        key = sa.keys.ei if sa.initiator else sa.keys.er
        pair = key, data[HEADER_LENGTH + 4 : HEADER_LENGTH + 12]
        assert pair not in used, "an IV came twice under one key"
        used.add(pair)
        return data

    patch.setattr(IkeSa, "_seal", recorded)
    return used
