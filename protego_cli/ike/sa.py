"""One IKE_SA: its state, keys, windows, children, and the exchanges that wait for their turn.

Flow of a request of ours: `start` queues an exchange; `pump` takes the next one when the window is free and
the law allows its type, builds, seals and sends it; the response comes through `ike.inbound` to the exchange.
One that is `held` is built and sealed, and leaves with `let_go`, or never by `withdraw`.
Flow of a request of the peer: `ike.inbound` verifies it and calls the exchange's `answer` function, which
calls `respond` at once, or `offer`s tickets and responds when the driver has accepted them.
Flow of a lifetime: at its soft limit the IKE_SA is rekeyed, which makes its `successor`, and it gives way; at
the hard limit it `leave`s.

The peer's silence is measured here: an exchange of ours that is never answered closes the IKE_SA.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protego_cli.crypto.proposal import IkeProposal
from protego_cli.errors import ProtocolError, TemporaryFailure
from protego_cli.ike.auth import Signer
from protego_cli.ike.children import Child
from protego_cli.ike.context import Context, RequestKey
from protego_cli.ike.events import IkeClosed, IkeEstablished, Path, PeerMoved
from protego_cli.ike.exchanges.alive import CheckAlive
from protego_cli.ike.exchanges.base import Exchange
from protego_cli.ike.exchanges.delete import DeleteIke
from protego_cli.ike.exchanges.rekey_ike import RekeyIke
from protego_cli.ike.keys import IkeKeys
from protego_cli.ike.lifetimes import retry_pause, soft_limit
from protego_cli.ike.policies import Tunnel
from protego_cli.ike.protect import Opener, Sealer
from protego_cli.ike.record import Story
from protego_cli.ike.succession import Rival, hand_over
from protego_cli.ike.transitions import SENDS, State, Trigger, after
from protego_cli.ike.window import ReceiveWindow, SendWindow
from protego_cli.wire.ike import Header, build_message
from protego_cli.wire.payloads import Delete, ExchangeType, Notify, Payload
from protego_cli.wire.proposals import Protocol

MAX_SAS_PER_TUNNEL = 8  # a peer that dials again and again without INITIAL_CONTACT ends here
UNPROVEN = frozenset({State.HALF_OPEN, State.FINAL})  # what the half-open limits count


@dataclass
class Ticket:
    """What to do when the driver has decided on something the peer asked for."""

    accept: Callable[[float], None]
    reject: Callable[[ProtocolError, float], None]


@dataclass
class Handshake:
    """What IKE_AUTH signs; forgotten once the IKE_SA stands."""

    nonce_i: bytes
    nonce_r: bytes = b""
    request: bytes = b""
    response: bytes = b""


@dataclass(frozen=True)
class Security:
    """What IKE_SA_INIT, or the rekey of an IKE_SA, agreed on."""

    suite: IkeProposal
    keys: IkeKeys
    sealer: Sealer = field(repr=False)
    opener: Opener = field(repr=False)


class IkeSa:
    def __init__(self, context: Context, path: Path, spi_i: bytes, spi_r: bytes, *, initiator: bool) -> None:
        self.context = context
        self.path = path
        self.spi_i = spi_i
        self.spi_r = spi_r
        self.initiator = initiator  # the original initiator of this IKE_SA
        self.origin = path.remote  # the address that the half-open limits count
        self.state = State.START
        self.request_key: RequestKey | None = None  # of the IKE_SA_INIT request that made us responder
        self.handle: int | None = None  # the driver's name for it; a replaced IKE_SA has none
        self.handshake: Handshake | None = None
        self.security: Security | None = None
        self.peer_natted = False
        self.forced = False  # we have asked for encapsulation, NAT or not
        self.encapsulated = True  # its ESP goes in UDP
        self.story = Story()  # of the handshake
        self.sender = SendWindow(context.settings)
        self.receiver = ReceiveWindow()
        self.children: dict[int, Child] = {}  # by inbound SPI
        self.queue: deque[Exchange] = deque()
        self.current: Exchange | None = None
        self.tickets: dict[int, Ticket] = {}
        self.reply_path = path  # where the request being answered came from
        self.answering = 0  # its exchange type
        self.last_heard = 0.0
        self.expires: float | None = None
        self.rekey_at: float | None = None  # the soft limit
        self.dies_at: float | None = None  # the hard limit
        self.rival: Rival | None = None  # the peer's rekey, while ours is under way
        self.contests: IkeSa | None = None  # whose rival it is
        self.heir: IkeSa | None = None  # what has taken its place
        self.ancestor: IkeSa | None = None  # whose place it has taken, until that one is closed
        self.failures = 0  # rekeys in a row that the peer refused
        self.name = ""  # of the tunnel, empty before the peer has said who it is
        self.born = context.epoch  # of the keys
        self._tunnel: Tunnel | None = None
        self._held_until: float | None = None
        context.by_spi[self.local_spi] = self

    # ---- what is known

    @property
    def local_spi(self) -> bytes:
        return self.spi_i if self.initiator else self.spi_r

    @property
    def tunnel(self) -> Tunnel:
        if self._tunnel is None:
            raise RuntimeError("the tunnel of this IKE_SA is not known yet")
        return self._tunnel

    @tunnel.setter
    def tunnel(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.name = tunnel.name

    @property
    def suite(self) -> IkeProposal:
        return self._secured().suite

    @property
    def keys(self) -> IkeKeys:
        return self._secured().keys

    def signer(self, *, initiator: bool) -> Signer:
        """What the AUTH of that side covers."""
        if self.handshake is None:
            raise RuntimeError("the handshake is over")
        prf, keys, handshake = self.suite.prf, self.keys, self.handshake
        if initiator:
            return Signer(prf, handshake.request, handshake.nonce_r, keys.pi)
        return Signer(prf, handshake.response, handshake.nonce_i, keys.pr)

    def _secured(self) -> Security:
        if self.security is None:
            raise RuntimeError("this IKE_SA has no keys yet")
        return self.security

    # ---- state

    def move(self, trigger: Trigger) -> None:
        """Follow the law to the next state."""
        before, self.state = self.state, after(self.state, trigger)
        if before in UNPROVEN:
            self.context.half_open.remove(self.origin)
        if self.state in UNPROVEN:
            self.context.half_open.add(self.origin)
        self.context.touched[self] = None

    def secure(self, suite: IkeProposal, keys: IkeKeys) -> None:
        ours, theirs = (keys.ei, keys.ai), (keys.er, keys.ar)
        if not self.initiator:
            ours, theirs = theirs, ours
        sealer = Sealer(suite, *ours, self.context.epoch, self.context.random)
        self.security = Security(suite, keys, sealer, Opener(suite, *theirs))

    def report(self, token: int | None, now: float) -> None:
        """The peer is authentic: give the IKE_SA its handle and tell the driver."""
        context = self.context
        self.handle = context.number()
        self.last_heard = now
        context.by_handle[self.handle] = self
        siblings = context.by_tunnel.setdefault(self.name, [])
        while len(siblings) >= MAX_SAS_PER_TUNNEL:
            siblings[0].close("too many IKE_SAs of this tunnel")
        context.by_tunnel.setdefault(self.name, siblings).append(self)
        context.emit(
            IkeEstablished(self.handle, self.name, self.path, self.initiator, str(self.suite), token)
        )

    def establish(self, now: float) -> None:
        """Both sides are authentic; what served the handshake alone is dropped."""
        self.move(Trigger.AUTHENTICATED)
        self.handshake = None
        self.expires = None
        self._live(now)

    def _live(self, now: float) -> None:
        """Its lifetime begins."""
        policy = self.tunnel.policy
        self.dies_at = now + policy.ike_lifetime
        self.rekey_at = now + soft_limit(policy.ike_lifetime, policy.jitter, self.context.fraction())

    def heard(self, path: Path, now: float) -> None:
        """An authentic new message came along `path` (RFC 7296 2.23)."""
        self.last_heard = now
        self.context.touched[self] = None
        if path == self.path:
            return
        if self.state is State.HALF_OPEN:
            self.path = path
        elif self.handle is not None and self.follow(path):
            self.context.emit(PeerMoved(self.handle, self.name, path))

    def follow(self, path: Path) -> bool:
        """Something authentic came along `path`: whether that is ours from now on, since a NAT may move."""
        if self.peer_natted and path != self.path:
            self.path = path
            self.context.touched[self] = None
        return path == self.path

    def close(self, reason: str) -> None:
        """Nothing is left to say: forget the IKE_SA."""
        self._end(reason)
        self.move(Trigger.GONE)
        if self.heir is not None and self.heir.ancestor is self:
            self.heir.ancestor = None
            self.context.touched[self.heir] = None
        self.context.by_spi.pop(self.local_spi, None)
        if self.request_key is not None:
            self.context.by_request.pop(self.request_key, None)

    def finish(self, reason: str, now: float) -> None:
        """It is over, but stay for a while to repeat the last response."""
        self._end(reason)
        self.move(Trigger.ENDED)
        self.handshake = None
        self.expires = now + self.context.settings.half_open_timeout

    def leave(self, reason: str, now: float) -> None:
        """Say DELETE when it is our turn. What waits fails, what is under way ends."""
        self.rekey_at = self.dies_at = None
        waiting = list(self.queue)
        self.queue.clear()
        for exchange in waiting:
            exchange.fail(self, "the IKE_SA is being closed")
        self.start(DeleteIke(reason), now)

    def _end(self, reason: str) -> None:
        context = self.context
        self.rekey_at = self.dies_at = None
        if self.rival is not None and self.heir is None and self.rival.sa.state is State.ESTABLISHED:
            self.rival.sa.close(reason)
        failed = [self.current] if self.current else []
        failed += self.queue
        self.current = None
        self.queue.clear()
        self.sender.cancel()
        for exchange in failed:
            exchange.fail(self, reason)
        for number in self.tickets:
            context.by_ticket.pop(number, None)
        self.tickets.clear()
        children = tuple(self.children)
        for spi_in in children:
            self.drop_child(spi_in)
        if self.handle is not None:
            self.detach()
            context.emit(IkeClosed(self.handle, self.name, reason, children))
            self.handle = None

    def detach(self) -> None:
        """Take this IKE_SA out of the tables by which the driver finds it."""
        if self.handle is None:
            return
        self.context.by_handle.pop(self.handle, None)
        siblings = self.context.by_tunnel[self.name]
        siblings.remove(self)
        if not siblings:
            del self.context.by_tunnel[self.name]

    # ---- rekeys

    @property
    def home(self) -> IkeSa:
        """Where its children are: this IKE_SA, or what has taken its place."""
        sa = self
        while sa.heir is not None:
            sa = sa.heir
        return sa

    def put_off_rekey(self, now: float) -> None:
        """The peer refused it: try again later (RFC 7296 2.25)."""
        self.failures += 1
        self.rekey_at = now + retry_pause(self.failures, self.context.fraction())
        self.context.touched[self] = None

    def successor(
        self, spi_i: bytes, spi_r: bytes, suite: IkeProposal, keys: IkeKeys, now: float, *, initiator: bool
    ) -> IkeSa:
        """The IKE_SA that a rekey of this one has made; it stands, and has nothing yet."""
        new = IkeSa(self.context, self.path, spi_i, spi_r, initiator=initiator)
        new.tunnel = self.tunnel
        new.peer_natted, new.encapsulated = self.peer_natted, self.encapsulated
        new.last_heard = self.last_heard
        new.secure(suite, keys)
        new.move(Trigger.INHERITED)
        new._live(now)
        return new

    def give_way(self, new: IkeSa, now: float) -> None:
        """Let `new` have all that the driver knows of this IKE_SA: its handle, its children, and what waits
        to be sent. This one stays to answer until it is deleted, or `new` is replaced in its turn.
        """
        if self.heir is not None:
            return
        context = self.context
        self.heir, new.contests = new, None
        if self.handle is not None:
            new.handle, self.handle = self.handle, None
            context.by_handle[new.handle] = new
            siblings = context.by_tunnel[self.name]
            siblings[siblings.index(self)] = new
        for child in self.children.values():
            new.add_child(child)
        new.queue.extend(self.queue)
        self.children.clear()
        self.queue.clear()
        if self.ancestor is not None:
            hand_over(self.ancestor, now)
            self.ancestor.close("replaced")
        new.ancestor = self
        self.rekey_at = self.dies_at = None
        self.move(Trigger.REPLACED)
        self.expires = now + context.settings.patience
        new.pump(now)

    # ---- children

    def add_child(self, child: Child) -> None:
        self.children[child.sa.spi_in] = child
        self.context.by_child[child.sa.spi_in] = self
        self.context.touched[self] = None

    def drop_child(self, spi_in: int) -> None:
        self.children.pop(spi_in, None)
        self.context.by_child.pop(spi_in, None)
        self.context.touched[self] = None

    def child_towards(self, spi_out: int) -> Child | None:
        """The CHILD_SA that the peer knows by the SPI it receives on."""
        return next((child for child in self.children.values() if child.sa.spi_out == spi_out), None)

    # ---- our requests

    def start(self, exchange: Exchange, now: float) -> None:
        self.queue.append(exchange)
        self.pump(now)

    def pump(self, now: float) -> None:
        """Send what may be sent now."""
        while self.current is None and self.queue and self.queue[0].type in SENDS[self.state]:
            exchange = self.queue.popleft()
            if self.sender.exhausted:
                exchange.fail(self, "message IDs are used up")
                self.close("message IDs are used up")
                return
            payloads = exchange.build(self, now)
            if payloads is None:
                continue
            self.current = exchange
            if exchange.type is ExchangeType.IKE_SA_INIT:
                data = build_message(self._header(exchange.type, self.sender.next_id), payloads)
            else:
                data = self._seal(self._header(exchange.type, self.sender.next_id), payloads)
            if self.handshake is not None and exchange.type is ExchangeType.IKE_SA_INIT:
                self.handshake.request = data
            self.sender.begin(data, now)
            if exchange.held:
                self.sender.hold()
            else:
                self.context.send(self.path, data)
        self.context.touched[self] = None

    def let_go(self, now: float) -> None:
        """Send the request that was held."""
        data = self.sender.let_go(now)
        if data is not None:
            self.context.send(self.path, data)

    def withdraw(self, exchange: Exchange, now: float) -> None:
        """It was held, and will never be sent: its message ID is free again."""
        if self.current is exchange:
            self.current = None
            self.sender.cancel()
            self.pump(now)
        elif exchange in self.queue:
            self.queue.remove(exchange)

    def abort(self, reason: str) -> None:
        """Say once that it is over, without waiting for an answer, and forget it."""
        self.say_once((Delete(Protocol.IKE),))
        self.close(reason)

    def say_once(self, payloads: Sequence[Payload]) -> None:
        """An INFORMATIONAL request whose answer will find nobody (RFC 7296 2.21.2)."""
        header = self._header(ExchangeType.INFORMATIONAL, self.sender.next_id)
        self.context.send(self.path, self._seal(header, payloads))

    # ---- the peer's requests

    def respond(self, payloads: Sequence[Payload]) -> None:
        """Answer the request in hand; the bytes are kept for the case that it comes again."""
        header = self._header(self.answering, self.receiver.current, response=True)
        data = self._seal(header, payloads)
        self.receiver.answer(data)
        self.context.send(self.reply_path, data)
        self.context.touched[self] = None

    def refuse(self, error: ProtocolError) -> None:
        self.respond((Notify(error.notify, error.data, error.protocol, error.spi),))

    def offer(
        self, accept: Callable[[float], None], reject: Callable[[ProtocolError, float], None], now: float
    ) -> int:
        """Hold the response until the driver has decided; the number of the ticket."""
        number = self.context.number()
        self.tickets[number] = Ticket(accept, reject)
        self.context.by_ticket[number] = self
        self._held_until = now + self.context.settings.half_open_timeout
        self.context.touched[self] = None
        return number

    def decide(self, number: int, error: ProtocolError | None, now: float) -> None:
        """The driver's decision on a ticket."""
        self.context.by_ticket.pop(number, None)
        ticket = self.tickets.pop(number)
        if error is None:
            ticket.accept(now)
        else:
            ticket.reject(error, now)

    # ---- time

    def deadline(self) -> float | None:
        """When `handle_timer` has something to do."""
        if self.state is State.CLOSED:
            return None
        held = self._held_until if self.tickets else None
        times = (
            self.sender.deadline,
            self.expires,
            held,
            self._liveness_at(),
            self.rekey_at,
            self.dies_at,
        )
        return min([time for time in times if time is not None], default=None)

    def _liveness_at(self) -> float | None:
        idle = self.handle is not None and self.current is None and not self.queue
        idle = idle and self.state is State.ESTABLISHED
        return self.last_heard + self.context.settings.liveness if idle else None

    def handle_timer(self, now: float) -> None:
        if self.state is State.CLOSED:
            return
        self.context.touched[self] = None
        if self.expires is not None and self.expires <= now:
            self.close("timed out")
            return
        if self.tickets and self._held_until is not None and self._held_until <= now:
            while self.tickets:
                self.decide(next(iter(self.tickets)), TemporaryFailure("no decision in time"), now)
        if self.sender.deadline is not None and self.sender.deadline <= now:
            data = self.sender.retransmit(now)
            if data is None:
                hand_over(self, now)
                self.close("the peer does not answer")
                return
            self.context.counters["ike_retransmitted"] += 1
            self.context.send(self.path, data)
        if self.dies_at is not None and self.dies_at <= now:
            self.leave("its lifetime has ended", now)
        elif self.rekey_at is not None and self.rekey_at <= now:
            self.rekey_at = None
            self.start(RekeyIke(None, self.local_spi), now)
        liveness = self._liveness_at()
        if liveness is not None and liveness <= now:
            self.start(CheckAlive(None), now)

    # ---- messages

    def _header(self, exchange: int, message_id: int, *, response: bool = False) -> Header:
        return Header(self.spi_i, self.spi_r, exchange, self.initiator, response, message_id)

    def _seal(self, header: Header, payloads: Sequence[Payload]) -> bytes:
        return self._secured().sealer.seal(header, payloads)

    def open_untrusted(self, data: bytes) -> bytes:
        return self._secured().opener.open_untrusted(data)
