"""The IKEv2 engine's public face: datagrams, time, commands in; datagrams, events and a deadline out.

It has no socket, no clock and no randomness of its own. After each call, handle every `next_event`, store
`changes`, send `datagrams_to_send`, and call `handle_timer` no later than at `timer`. What was stored makes a
fresh engine go on where this one was (`ike.snapshot`).

Flow of a datagram: the header is parsed; an IKE_SA_INIT request goes to the responder's exchange, everything
else by our SPI to its IKE_SA (`ike.inbound`). What does not parse, is of another version or bears no SPI of
ours is dropped and counted: no state, and no answer but to a later version, rarely, so nothing to amplify.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable

from protego_cli.config.model import IkeSettings
from protego_cli.counters import Counters
from protego_cli.crypto.algorithms import RandomSource, Registry
from protego_cli.errors import Malformed, ProtocolError
from protego_cli.ike import snapshot
from protego_cli.ike.context import NO_SPI, Context
from protego_cli.ike.events import (
    CLOSED_BY_US,
    ChildDeleted,
    Datagram,
    Event,
    ExchangeFailed,
    Path,
    Policy,
    Standing,
)
from protego_cli.ike.exchanges import init
from protego_cli.ike.exchanges.alive import CheckAlive
from protego_cli.ike.exchanges.base import Exchange
from protego_cli.ike.exchanges.create_child import CreateChild, Selectors
from protego_cli.ike.exchanges.delete import DeleteChild, closing
from protego_cli.ike.exchanges.rekey_child import RekeyChild
from protego_cli.ike.exchanges.rekey_ike import RekeyIke
from protego_cli.ike.inbound import receive_untrusted
from protego_cli.ike.policies import Policies
from protego_cli.ike.sa import IkeSa
from protego_cli.ike.transitions import State, Trigger
from protego_cli.ike.view import IkeSaView, view
from protego_cli.wire.ike import MAJOR_VERSION, Header, parse_header_untrusted
from protego_cli.wire.payloads import ExchangeType


class Engine:
    def __init__(
        self,
        policies: Iterable[Policy],
        registry: Registry,
        settings: IkeSettings,
        random: RandomSource,
        allocate_spi: Callable[[], int],
        epoch: int,
        counters: Counters,
        raw_esp: Callable[[], bool] = lambda: False,
        wall: float = 0.0,
    ) -> None:
        """`epoch`: above that of every engine that ever ran on the same states. `raw_esp`: whether ESP can
        do without UDP now; asked for each new IKE_SA. `wall`: what the times that come in lack to wall-clock
        time. Raises ValueError when a policy's proposals or identities do not parse.
        """
        self._context = Context(
            registry=registry,
            settings=settings,
            random=random,
            allocate_spi=allocate_spi,
            epoch=epoch,
            counters=counters,
            raw_esp=raw_esp,
            policies=Policies(policies, registry),
            wall=wall,
        )
        self._timers = _Timers()
        self._held: dict[int, tuple[IkeSa, Exchange]] = {}  # by token

    def set_policies(self, policies: Iterable[Policy]) -> None:
        """Replace all tunnels. IKE_SAs that stand go on, under their tunnel's new policy if it has one.

        Raises ValueError, and changes nothing, when a policy's proposals or identities do not parse.
        """
        context = self._context
        context.policies = Policies(policies, context.registry, context.policies)
        for sa in context.by_spi.values():
            tunnel = context.policies.get(sa.name)
            if tunnel is not None:
                sa.tunnel = tunnel
        allowances = context.allowances.items()
        context.allowances = {name: left for name, left in allowances if context.policies.get(name)}

    def check_policies(self, policies: Iterable[Policy]) -> None:
        """Raises ValueError when `set_policies` would."""
        Policies(policies, self._context.registry, self._context.policies)

    def set_settings(self, settings: IkeSettings) -> None:
        """Other times and limits from now on; the IKE_SAs that stand retransmit as they began."""
        self._context.settings = settings
        self._context.half_open.maximum = settings.half_open_max

    def bar(self, tunnel: str, barred: bool) -> None:
        """From now on refuse the peer that dials, or no longer. IKE_SAs that stand go on."""
        (self._context.barred.add if barred else self._context.barred.discard)(tunnel)

    def describe(self, tunnel: str, now: float) -> tuple[IkeSaView, ...]:
        """A tunnel's IKE_SAs, for people."""
        return tuple(view(sa, now) for sa in self._context.by_tunnel.get(tunnel, ()))

    # ---- what survives a restart

    @property
    def changed(self) -> bool:
        """Whether `changes` has anything to tell."""
        return bool(self._context.changed)

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """Our IKE SPI and the whole state, or None once it is gone, of every IKE_SA that changed since the
        last call. The state holds its keys. Take and store it before the datagrams of the same call leave:
        no datagram may reveal what is not stored.
        """
        context = self._context
        found = [(spi, snapshot.capture(sa) if sa else None) for spi, sa in context.changed.items()]
        context.changed.clear()
        return found

    def restore(self, states: Iterable[bytes], now: float) -> None:
        """Take up the states of an engine before this one, once, before the first datagram. Nobody awaits
        the outcome of its exchanges: the events come all the same. An IKE_SA that cannot go on, as its
        tunnel or an algorithm is no longer there, ends with IkeClosed or ExchangeFailed.

        Raises StateError for bytes that are no such state, or that were stored under our epoch or a later
        one; this engine is of no use then.
        """
        context = self._context
        if context.by_spi:
            raise RuntimeError("restore comes before everything else")
        snapshot.restore(context, states, now)
        for sa in context.by_spi.values():
            self._timers.set(sa)
        self._settle()

    def sas(self) -> list[Standing]:
        """Every IKE_SA that the driver knows, the oldest first."""
        by_handle = self._context.by_handle
        return [snapshot.standing(by_handle[handle]) for handle in sorted(by_handle)]

    def asked(self) -> dict[int, int]:
        """Our inbound SPI, and the token, of every CHILD_SA that we have asked for and have no answer yet."""
        exchanges = [
            exchange
            for sa in self._context.by_spi.values()
            for exchange in (sa.current, *sa.queue)
            if exchange is not None
        ]
        return {
            exchange.asks: exchange.token
            for exchange in exchanges
            if exchange.asks is not None and exchange.token is not None
        }

    # ---- the five verbs

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """An IKE message without non-ESP marker, as it came along `path`."""
        context = self._context
        try:
            header = parse_header_untrusted(data)
            if header.major != MAJOR_VERSION:
                context.counters["ike_drop_version"] += 1
                init.refuse_version_untrusted(context, header, path, now)
            elif _opens_handshake(header):
                init.answer_untrusted(context, header, data, path, now)
            else:
                sa = context.by_spi.get(header.spi_r if header.initiator else header.spi_i)
                if sa is None:
                    context.counters["ike_drop_unknown_spi"] += 1
                else:
                    receive_untrusted(sa, header, data, path, now)
        except Malformed:
            context.counters["ike_drop_malformed"] += 1
        self._settle()

    def datagrams_to_send(self) -> list[Datagram]:
        """What is to be sent now, in order; each is handed out once."""
        datagrams = self._context.outbox
        self._context.outbox = []
        return datagrams

    def next_event(self) -> Event | None:
        events = self._context.events
        return events.popleft() if events else None

    def timer(self) -> float | None:
        """When `handle_timer` is to be called at the latest."""
        return self._timers.next()

    def handle_timer(self, now: float) -> None:
        for sa in self._timers.due(now):
            sa.handle_timer(now)
        self._settle()

    # ---- commands

    # What is asked for `held` is made now, so that the next `changes` have it, and leaves with `let_go`. That
    # or `withdraw` has to follow: till then our other requests of the IKE_SA wait.

    def initiate(self, tunnel: str, path: Path, spi_in: int, now: float) -> int:
        """IKE_SA_INIT and IKE_AUTH: IkeEstablished and then ChildEstablished, or ExchangeFailed."""
        context = self._context
        token = context.number()
        policy = context.policies.get(tunnel)
        if policy is None:
            context.emit(ExchangeFailed(token, tunnel, None, "no such tunnel"))
            return token
        sa = IkeSa(context, path, context.new_spi(), NO_SPI, initiator=True)
        sa.tunnel = policy
        sa.move(Trigger.DIAL)
        sa.start(init.Dial(token, policy.ike, spi_in), now)
        self._settle()
        return token

    def create_child(self, ike: int, spi_in: int, now: float, selectors: Selectors | None = None) -> int:
        """One more CHILD_SA, with these selectors or the tunnel's: ChildEstablished or ExchangeFailed."""
        return self._ask(ike, lambda sa, token: CreateChild(token, spi_in, selectors), now)

    def rekey_child(
        self, spi_in: int, new_spi: int, now: float, *, anew: bool = False, held: bool = False
    ) -> int:
        """ChildEstablished or ExchangeFailed; the old CHILD_SA stays until it is deleted. `anew`: with the
        proposals and selectors of the tunnel's policy, rather than with what was negotiated.
        """
        token = self._context.number()
        sa = self._context.by_child.get(spi_in)
        if sa is None:
            return self._failed(token, f"no CHILD_SA {spi_in:08x}")
        exchange = RekeyChild(token, sa.children[spi_in], new_spi, anew=anew)
        return self._start(sa, exchange, token, now, held=held)

    def delete_child(self, spi_in: int, now: float) -> int:
        """ChildDeleted, at once when the peer has deleted it already, or ExchangeFailed."""
        token = self._context.number()
        sa = self._context.by_child.get(spi_in)
        if sa is None:
            self._context.emit(ChildDeleted(token, "", spi_in))
            return token
        child = sa.children[spi_in]
        if child.deleting:
            return self._failed(token, f"CHILD_SA {spi_in:08x} is being deleted", sa.name)
        return self._start(sa, DeleteChild.of(token, child), token, now)

    def rekey_ike(self, ike: int, now: float) -> int:
        """IkeRekeyed or ExchangeFailed. The engine does it by itself when the lifetime calls for it."""
        return self._ask(ike, lambda sa, token: RekeyIke(token, sa.local_spi), now)

    def check_alive(self, ike: int, now: float, *, held: bool = False) -> int:
        """Alive or ExchangeFailed."""
        return self._ask(ike, lambda sa, token: CheckAlive(token), now, held=held)

    def hold(self, tokens: Collection[int]) -> None:
        """Hold back again requests of an earlier engine that `restore` has found outstanding."""
        for sa in self._context.by_spi.values():
            exchange, token = sa.current, sa.current.token if sa.current else None
            if exchange is not None and token is not None and token in tokens:
                exchange.held = True
                self._held[token] = sa, exchange
                sa.sender.hold()
                self._timers.set(sa)

    def let_go(self, token: int, now: float) -> None:
        """Send what was made `held`: now, or as soon as its turn comes."""
        sa, exchange = self._release(token)
        if exchange is not None:
            exchange.held = False
            if sa is not None and sa.current is exchange:
                sa.let_go(now)  # of what is stored nothing changes
                self._timers.set(sa)

    def withdraw(self, token: int, now: float) -> None:
        """Never send what was made `held`, nor tell of an outcome."""
        sa, exchange = self._release(token)
        if sa is not None and exchange is not None:
            sa.withdraw(exchange, now)
            self._settle()

    def _release(self, token: int) -> tuple[IkeSa | None, Exchange | None]:
        """What was held, and the IKE_SA where it waits or is outstanding, unless it has failed meanwhile."""
        sa, exchange = self._held.pop(token, (None, None))
        while sa is not None and sa.current is not exchange and exchange not in sa.queue:
            sa = sa.heir
        return sa, exchange

    def follow(self, ike: int, address: str, port: int) -> bool:
        """Authentic packets of its CHILD_SAs come from there (RFC 7296 2.23). Whether its messages go there
        from now on, those that are sent again among them: no peer is followed that is not behind a NAT.
        """
        sa = self._context.by_handle.get(ike)
        if sa is None:
            return False
        followed = sa.follow(sa.path._replace(remote=address, remote_port=port))
        self._settle()
        return followed

    def close(self, ike: int, now: float) -> int:
        """DELETE of the IKE_SA; IkeClosed follows. What waits for its turn fails, what is under way ends."""
        token = self._context.number()
        sa = self._context.by_handle.get(ike)
        if sa is None:
            return self._failed(token, "no such IKE_SA")
        if not closing(sa):
            sa.leave(CLOSED_BY_US, now)
            self._settle()
        return token

    def accept(self, ticket: int, now: float) -> None:
        """Let the response go. A ticket whose IKE_SA has gone meanwhile is void."""
        sa = self._context.by_ticket.get(ticket)
        if sa is not None:
            sa.decide(ticket, None, now)
            self._settle()

    def reject(self, ticket: int, error: ProtocolError, now: float) -> None:
        """Answer by the error's NOTIFY instead."""
        sa = self._context.by_ticket.get(ticket)
        if sa is not None:
            sa.decide(ticket, error, now)
            self._settle()

    def _ask(
        self, ike: int, make: Callable[[IkeSa, int], Exchange], now: float, *, held: bool = False
    ) -> int:
        """Start the exchange that `make` makes for this IKE_SA and a fresh token."""
        token = self._context.number()
        sa = self._context.by_handle.get(ike)
        if sa is None:
            return self._failed(token, "no such IKE_SA")
        return self._start(sa, make(sa, token), token, now, held=held)

    def _start(self, sa: IkeSa, exchange: Exchange, token: int, now: float, *, held: bool = False) -> int:
        if closing(sa):
            return self._failed(token, "the IKE_SA is being closed", sa.name)
        if held:
            exchange.held = True
            self._held[token] = sa, exchange
        sa.start(exchange, now)
        self._settle()
        return token

    def _failed(self, token: int, detail: str, tunnel: str = "") -> int:
        self._context.emit(ExchangeFailed(token, tunnel, None, detail))
        return token

    def _settle(self) -> None:
        """Take up the deadlines of every IKE_SA that was touched, and remember it for `changes`."""
        context = self._context
        for sa in context.touched:
            self._timers.set(sa)
            context.changed[sa.local_spi] = None if sa.state is State.CLOSED else sa
        context.touched.clear()


def _opens_handshake(header: Header) -> bool:
    return (
        header.exchange == ExchangeType.IKE_SA_INIT
        and not header.response
        and header.initiator
        and header.message_id == 0
        and header.spi_r == NO_SPI
        and header.spi_i != NO_SPI
    )


class _Timers:
    """Deadlines in a heap. An IKE_SA whose deadline moved back is found early and put in again."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, IkeSa]] = []
        self._order = itertools.count()
        self._earliest: dict[IkeSa, float] = {}  # the entry of each that counts

    def set(self, sa: IkeSa) -> None:
        deadline = sa.deadline()
        known = self._earliest.get(sa)
        if deadline is None:
            self._earliest.pop(sa, None)
        elif known is None or deadline < known:
            self._earliest[sa] = deadline
            heapq.heappush(self._heap, (deadline, next(self._order), sa))

    def next(self) -> float | None:
        self._discard_stale()
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[IkeSa]:
        """Those whose deadline has passed; they are to be `set` again."""
        found: list[IkeSa] = []
        early: list[IkeSa] = []
        self._discard_stale()
        while self._heap and self._heap[0][0] <= now:
            _, _, sa = heapq.heappop(self._heap)
            del self._earliest[sa]
            deadline = sa.deadline()
            if deadline is not None:
                (found if deadline <= now else early).append(sa)
            self._discard_stale()
        for sa in early:
            self.set(sa)
        return found

    def _discard_stale(self) -> None:
        while self._heap and self._earliest.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
