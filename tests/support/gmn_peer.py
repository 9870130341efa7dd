"""An on-premises gateway in the GMN's tests: a real engine, and what it does with its SAs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

import trio

from protego_cli.config.model import TunnelConfig
from protego_cli.counters import Counters
from protego_cli.errors import ProtocolError
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import (
    ChildDeleted,
    ChildDeleteOffered,
    ChildEstablished,
    ChildOffered,
    ChildSa,
    Event,
    IkeClosed,
    IkeDeleteOffered,
    IkeEstablished,
    Path,
)
from protego_cli.ike.exchanges.create_child import Selectors
from tests.support.gmn_cluster import VIP, peers_policy_of
from tests.support.network import REGISTRY

if TYPE_CHECKING:
    from tests.support.gmn_world import World


@dataclass(eq=False)
class Peer:
    """An on-premises gateway. `lazy`: as responder of a rekey it seals on the old SA until the DELETE, as
    strongSwan does; else on the new one at once.
    """

    world: World
    config: TunnelConfig
    seed: int
    lazy: bool = False
    silent: bool = False  # sends no packets on new SAs
    deaf: bool = False  # answers nothing
    refuse: Callable[[], ProtocolError | None] = lambda: None  # for ChildOffered
    opens: dict[int, ChildSa] = field(default_factory=dict)  # by its inbound SPI
    seals: dict[int, ChildSa] = field(default_factory=dict)  # what it may seal on, by our inbound SPI
    events: list[Event] = field(default_factory=list)
    ikes: set[int] = field(default_factory=set)
    tidy: bool = True  # deletes the old SA after a rekey of its own
    port: int = 4500

    def __post_init__(self) -> None:
        source = Random(self.seed)
        self.address = self.config.peer or ""
        self.random = source
        self.engine = Engine(
            [peers_policy_of(self.config)],
            REGISTRY,
            self.world.cluster.ike,
            source.randbytes,
            self.spi,
            1,
            Counters(),
            raw_esp=lambda: True,
        )

    def configure(self, config: TunnelConfig, psk: bytes | None = None) -> None:
        """Its operator has changed it to match."""
        self.config = config
        policy = peers_policy_of(config)
        self.engine.set_policies([policy if psk is None else replace(policy, psk=psk)])

    def spi(self) -> int:
        return self.random.randrange(256, 1 << 32)

    def dial(self) -> int:
        path = Path(self.address, self.port, VIP, 4500)
        token = self.engine.initiate(self.config.id, path, self.spi(), trio.current_time())
        self.work()
        return token

    def rekey(self, child: ChildSa | None = None) -> int:
        """Rekey this CHILD_SA, or the newest."""
        token = self.engine.rekey_child((child or self.newest).spi_in, self.spi(), trio.current_time())
        self.work()
        return token

    def create(self, selectors: Selectors | None = None) -> int:
        """Ask for a CHILD_SA beside the others."""
        token = self.engine.create_child(next(iter(self.ikes)), self.spi(), trio.current_time(), selectors)
        self.work()
        return token

    def delete(self, spi_in: int) -> None:
        self.engine.delete_child(spi_in, trio.current_time())
        self.work()

    def close(self) -> None:
        for ike in list(self.ikes):
            self.engine.close(ike, trio.current_time())
        self.work()

    @property
    def waits(self) -> bool:
        """Whether a request of its is not answered yet."""
        return any(sa.current or sa.queue for sa in self.engine._context.by_spi.values())

    @property
    def newest(self) -> ChildSa:
        return list(self.opens.values())[-1]

    def heard_of(self, spi_in: int) -> bool:
        """Whether it has ever had a CHILD_SA of this SPI."""
        made = (event for event in self.events if isinstance(event, ChildEstablished | ChildOffered))
        return any(event.child.spi_in == spi_in for event in made)

    def outcome(self, token: int) -> Event | None:
        """What has come of a request of its own."""
        return next((event for event in self.events if getattr(event, "token", None) == token), None)

    def receive(self, data: bytes, path: Path) -> None:
        if not self.deaf:
            self.engine.receive_datagram(data, path, trio.current_time())
            self.work()

    def work(self) -> None:
        while True:
            for datagram in self.engine.datagrams_to_send():
                self.world.to_gateway(self, datagram.path, datagram.data)
            event = self.engine.next_event()
            if event is None:
                break
            self.events.append(event)
            self._act(event)
            self.world.watch()
        self.world.timer_changed(self)

    def _act(self, event: Event) -> None:
        now = trio.current_time()
        match event:
            case IkeEstablished():
                self.ikes.add(event.ike)
            case ChildEstablished(child=child, replaces=replaces, redundant=redundant):
                self._take(child)
                if not redundant:
                    self._use(child)
                if replaces is not None and not redundant and self.tidy:
                    self.engine.delete_child(replaces, now)
            case ChildOffered(child=child, ticket=ticket):
                error = self.refuse()
                if error is not None:
                    self.engine.reject(ticket, error, now)
                    return
                self._take(child)
                if not self.lazy:
                    self._use(child)
                self.engine.accept(ticket, now)
            case ChildDeleteOffered(ticket=ticket, spi_in=spi_in):
                self.world.nodes.note("peer deletes", self.opens[spi_in].spi_out)
                self._lose(spi_in)
                for child in self.opens.values():
                    self._use(child)
                self.engine.accept(ticket, now)
            case ChildDeleted(spi_in=spi_in):
                if spi_in in self.opens:
                    self.world.nodes.note("peer deleted", self.opens[spi_in].spi_out)
                    self._lose(spi_in)
            case IkeDeleteOffered(ticket=ticket):
                self.engine.accept(ticket, now)
            case IkeClosed(ike=ike, children=children):
                self.ikes.discard(ike)
                for spi_in in children:
                    self._lose(spi_in)

    def _take(self, child: ChildSa) -> None:
        self.opens[child.spi_in] = child

    def _use(self, child: ChildSa) -> None:
        """Packets go out on this SA from now on, and the first one is on its way."""
        if child.spi_out not in self.seals:
            self.seals[child.spi_out] = child
            if not self.silent:
                self.world.packet(child.spi_out)

    def _lose(self, spi_in: int) -> None:
        child = self.opens.pop(spi_in, None)
        if child is not None:
            self.seals.pop(child.spi_out, None)
