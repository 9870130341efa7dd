"""Drives the IKE engine: datagrams to and from peers through the GINs, time, events, awaitable commands.

1. An envelope arrives from a GIN's fabric address: opened under that GIN's key, or dropped and counted. Its
   IKE message goes to the engine with its path; the path's GIN is remembered.
2. After every call into the engine, `_work` handles what it has to say: outcomes wake the commands that wait
   for them, every other event goes to the `listener`, which must not block; datagrams leave in envelopes,
   each through the GIN that its peer came by, or any that is connected, and none before what it reveals is
   stored (`release`).
3. The timer sleeps until the engine's next deadline and is woken when that comes nearer.
4. Commands (`initiate`, `rekey_ike`, ...) start an exchange and wait for its one outcome. `prepare_...` makes
   a `HeldRequest`, which is stored while its caller waits for something else, and leaves when he lets it go.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

import trio

from protego_cli.config.model import Node
from protego_cli.control.state.journal import Release, at_once
from protego_cli.counters import Counters
from protego_cli.crypto.mac import Macs
from protego_cli.errors import Malformed, ProtocolError, Refused
from protego_cli.ike.events import (
    Alive,
    ChildDeleted,
    ChildEstablished,
    Datagram,
    Event,
    ExchangeFailed,
    IkeClosed,
    IkeEstablished,
    IkeRekeyed,
    Path,
)
from protego_cli.ike.exchanges.create_child import Selectors
from protego_cli.ike.natd import IKE_PORT, NATT_PORT
from protego_cli.ike.view import IkeSaView
from protego_cli.net.gso import segments
from protego_cli.net.pump import drain, pump
from protego_cli.net.udp import Address, Batch, Buffer
from protego_cli.wire.envelope import Envelope, open_envelope, seal_envelope

log = logging.getLogger(__name__)

PATHS: Final = 1 << 16  # peers whose GIN is remembered; a flood of forged sources drops the oldest

Outcome = ChildEstablished | ChildDeleted | IkeRekeyed | Alive | ExchangeFailed
T = TypeVar("T", bound=Outcome)


class ExchangeError(Refused):
    """An exchange that we started failed; what existed before it has not changed."""

    def __init__(self, failed: ExchangeFailed, ike: int | None = None) -> None:
        super().__init__(failed.detail)
        self.notify = failed.notify
        self.ike = ike  # of an IKE_SA that came to be although its CHILD_SA did not


class IkeEngine(Protocol):
    """The part of `ike.engine.Engine` that is driven."""

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None: ...
    def datagrams_to_send(self) -> list[Datagram]: ...
    def next_event(self) -> Event | None: ...
    def timer(self) -> float | None: ...
    def handle_timer(self, now: float) -> None: ...
    def initiate(self, tunnel: str, path: Path, spi_in: int, now: float) -> int: ...
    def create_child(self, ike: int, spi_in: int, now: float, selectors: Selectors | None = None) -> int: ...
    def rekey_child(
        self, spi_in: int, new_spi: int, now: float, *, anew: bool = False, held: bool = False
    ) -> int: ...
    def delete_child(self, spi_in: int, now: float) -> int: ...
    def rekey_ike(self, ike: int, now: float) -> int: ...
    def check_alive(self, ike: int, now: float, *, held: bool = False) -> int: ...
    def hold(self, tokens: Collection[int]) -> None: ...
    def let_go(self, token: int, now: float) -> None: ...
    def withdraw(self, token: int, now: float) -> None: ...
    def follow(self, ike: int, address: str, port: int) -> bool: ...
    def close(self, ike: int, now: float) -> int: ...
    def bar(self, tunnel: str, barred: bool) -> None: ...
    def describe(self, tunnel: str, now: float) -> tuple[IkeSaView, ...]: ...
    def accept(self, ticket: int, now: float) -> None: ...
    def reject(self, ticket: int, error: ProtocolError, now: float) -> None: ...


class FabricSocket(Protocol):
    """The part of `UdpSocket` that the driver needs."""

    def receive(self) -> Batch | None: ...
    async def wait_readable(self) -> None: ...
    def send(self, data: Buffer, size: int, dest: Address) -> bool: ...


class _Waiting:
    """A command whose outcome has not come yet."""

    __slots__ = ("done", "ike", "outcome")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.outcome: Outcome | None = None
        self.ike: int | None = None


class HeldRequest(Generic[T]):
    """An exchange of ours that is made and waits to be let go: `let_go` or `withdraw` has to follow."""

    def __init__(self, driver: Driver, token: int, kind: type[T]) -> None:
        self._driver = driver
        self._token = token
        self._kind = kind

    def let_go(self) -> None:
        """It leaves as soon as it is stored. Idempotent."""
        self._driver.let_go(self._token)

    def withdraw(self) -> None:
        """It never happens. Not to be called once it was let go."""
        self._driver.withdraw(self._token)

    async def outcome(self) -> T:
        """The answer to it, after it was let go. Raises ExchangeError."""
        return await self._driver.outcome(self._token, self._kind)


class Driver:
    def __init__(
        self,
        engine: IkeEngine,
        socket: FabricSocket,
        gins: Sequence[Node],
        envelope_key: Callable[[str], bytes],
        connected: Callable[[], Sequence[str]],
        counters: Counters,
        release: Release = at_once,
    ) -> None:
        """`envelope_key` of a GIN by name; `connected`: the GINs that are there."""
        self._release = release
        self.listener: Callable[[Event], None] = _ignore
        self._engine = engine
        self._socket = socket
        self._gins: Mapping[str, Node] = {}
        self._names: Mapping[Address, str] = {}
        self._key = envelope_key
        self._mac = Macs()
        self._connected = connected
        self._counters = counters
        self._came_by: dict[Address, str] = {}  # peer -> GIN, least recently heard first
        self._commands: dict[int, _Waiting] = {}
        self._closing: dict[int, trio.Event] = {}
        self._working = False
        self._armed: float | None = None
        self._rearm = trio.Event()
        self.set_gins(gins)

    def set_gins(self, gins: Sequence[Node]) -> None:
        """The GINs there are from now on."""
        self._gins = {gin.name: gin for gin in gins}
        self._names = {(gin.address, gin.ports.fabric): gin.name for gin in gins}
        self._came_by = {peer: name for peer, name in self._came_by.items() if name in self._gins}

    async def run(self) -> None:
        """Serve for ever."""
        self._work()  # what a restored engine has to say
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, self._socket, partial(drain, self._socket, self._receive))
            nursery.start_soon(self._keep_time)

    # ---- commands

    async def initiate(self, tunnel: str, path: Path, spi_in: int) -> ChildEstablished:
        """IKE_SA_INIT and IKE_AUTH. Raises ExchangeError; with its `ike` when only the CHILD_SA failed."""
        token = self._engine.initiate(tunnel, path, spi_in, trio.current_time())
        return await self.outcome(token, ChildEstablished)

    async def create_child(
        self, ike: int, spi_in: int, selectors: Selectors | None = None
    ) -> ChildEstablished:
        """CREATE_CHILD_SA for one more, with these selectors or the tunnel's. Raises ExchangeError."""
        token = self._engine.create_child(ike, spi_in, trio.current_time(), selectors)
        return await self.outcome(token, ChildEstablished)

    def prepare_rekey(
        self, spi_in: int, new_spi: int, *, anew: bool = False
    ) -> HeldRequest[ChildEstablished]:
        """CREATE_CHILD_SA, `anew` under the tunnel's present policy; the old CHILD_SA stays."""
        token = self._engine.rekey_child(spi_in, new_spi, trio.current_time(), anew=anew, held=True)
        return self._prepared(token, ChildEstablished)

    async def delete_child(self, spi_in: int) -> None:
        """DELETE of a CHILD_SA, and its answer. Raises ExchangeError."""
        await self.outcome(self._engine.delete_child(spi_in, trio.current_time()), ChildDeleted)

    async def rekey_ike(self, ike: int) -> IkeRekeyed:
        """CREATE_CHILD_SA for the IKE_SA itself, whose handle and CHILD_SAs stay. Raises ExchangeError."""
        token = self._engine.rekey_ike(ike, trio.current_time())
        return await self.outcome(token, IkeRekeyed)

    async def check_alive(self, ike: int) -> None:
        """An empty round trip. Raises ExchangeError."""
        await self.outcome(self._engine.check_alive(ike, trio.current_time()), Alive)

    def prepare_alive(self, ike: int) -> HeldRequest[Alive]:
        """The same, when it is let go."""
        return self._prepared(self._engine.check_alive(ike, trio.current_time(), held=True), Alive)

    async def close(self, ike: int) -> None:
        """DELETE of an IKE_SA; returns when it is closed, or at once when it does not exist."""
        closed = self._closing.setdefault(ike, trio.Event())
        token = self._engine.close(ike, trio.current_time())
        waiting = self._commands[token] = _Waiting()
        try:
            self._work()
            if waiting.outcome is None:  # the only outcome by token: there is no such IKE_SA
                await closed.wait()
        finally:
            self._commands.pop(token, None)
            self._closing.pop(ike, None)

    def bar(self, tunnel: str, barred: bool) -> None:
        """Refuse the peer that dials, or no longer."""
        self._engine.bar(tunnel, barred)

    def follow(self, ike: int, address: str, port: int) -> bool:
        """Authentic packets of its CHILD_SAs come from there: whether its messages go there from now on."""
        followed = self._engine.follow(ike, address, port)
        self._release(_nothing)  # where the peer is, is to be stored soon
        return followed

    def describe(self, tunnel: str) -> tuple[IkeSaView, ...]:
        """A tunnel's IKE_SAs as they are now."""
        return self._engine.describe(tunnel, trio.current_time())

    def accept(self, ticket: int) -> None:
        """Let the response to what the peer asked go out."""
        self.prepare_answer(ticket)()

    def prepare_answer(self, ticket: int) -> Callable[[], None]:
        """The same when what this returns is called; the response is made now, and can be stored meanwhile.
        The peer may hear of it before, if it asks again.
        """
        self._work()
        self._engine.accept(ticket, trio.current_time())
        answers = list(self._engine.datagrams_to_send())
        self._work()

        def let_go() -> None:
            for datagram in answers:
                self._release(partial(self._send, datagram))

        return let_go

    def reject(self, ticket: int, error: ProtocolError) -> None:
        """Answer what the peer asked by the error's NOTIFY."""
        self._engine.reject(ticket, error, trio.current_time())
        self._work()

    def path_to(self, vip: str, peer: str) -> Path:
        """How a peer that has not spoken yet is reached: port 500, or 4500 both ways where no GIN that is
        there listens on its own IKE port (RFC 7296 2.23).
        """
        ports = [self._gins[name].ports for name in self._connected()]
        ike = next((port.ike for port in ports if port.ike), None)
        if ike is not None:
            return Path(vip, ike, peer, IKE_PORT)
        natt = next((port.natt for port in ports), NATT_PORT)
        return Path(vip, natt, peer, NATT_PORT)

    def resume(self, token: int, *, held: bool = False) -> HeldRequest[ChildEstablished]:
        """What an earlier life of the GMN has asked for; its outcome is kept from now on. `held`: it does not
        leave again before it is let go.
        """
        self._commands[token] = _Waiting()
        if held:
            self._engine.hold((token,))
        return HeldRequest(self, token, ChildEstablished)

    def let_go(self, token: int) -> None:
        self._engine.let_go(token, trio.current_time())
        self._work()

    def withdraw(self, token: int) -> None:
        if self._commands.pop(token, None) is not None:
            self._engine.withdraw(token, trio.current_time())
            self._work()

    def _prepared(self, token: int, kind: type[T]) -> HeldRequest[T]:
        self._commands[token] = _Waiting()
        self._work()
        self._release(_nothing)  # it is to be stored soon
        return HeldRequest(self, token, kind)

    async def outcome(self, token: int, kind: type[T]) -> T:
        """What comes of an exchange. Raises ExchangeError."""
        waiting = self._commands.setdefault(token, _Waiting())
        try:
            self._work()
            if waiting.outcome is None:
                await waiting.done.wait()
        finally:
            self._commands.pop(token, None)
        outcome = waiting.outcome
        if isinstance(outcome, kind):
            return outcome
        if isinstance(outcome, ExchangeFailed):
            raise ExchangeError(outcome, waiting.ike)
        raise RuntimeError(f"the engine answered {kind.__name__} by {type(outcome).__name__}")

    # ---- datagrams

    def _receive(self, batch: Batch) -> None:
        name = self._names.get(batch.source)
        for segment in segments(batch.view, batch.size):
            if name is None:
                self._counters["gmn_drop_envelope"] += 1
            else:
                self._receive_untrusted(name, segment)
        self._work()

    def _receive_untrusted(self, gin: str, datagram: memoryview) -> None:
        try:
            envelope = open_envelope(self._key(gin), datagram, self._mac)
        except Malformed:
            self._counters["gmn_drop_envelope"] += 1
            return
        self._counters["gmn_ike_in"] += 1
        peer = (envelope.remote, envelope.remote_port)
        if self._came_by.pop(peer, None) is None and len(self._came_by) >= PATHS:
            del self._came_by[next(iter(self._came_by))]
        self._came_by[peer] = gin
        path = Path(envelope.local, envelope.local_port, *peer)
        self._engine.receive_datagram(bytes(envelope.data), path, trio.current_time())

    def _send(self, datagram: Datagram) -> None:
        path = datagram.path
        connected = self._connected()
        name = self._came_by.get((path.remote, path.remote_port))
        if name not in connected:  # perhaps only about to be; any other serves the same VIPs
            name = next(iter(connected), name)
        if name is None:
            self._counters["gmn_drop_no_gin"] += 1
            return
        gin = self._gins[name]
        envelope = seal_envelope(self._key(name), Envelope(*path, datagram.data), self._mac)
        sent = self._socket.send(envelope, len(envelope), (gin.address, gin.ports.fabric))
        self._counters["gmn_ike_out" if sent else "gmn_drop_send"] += 1

    # ---- what the engine has to say

    def _work(self) -> None:
        """Handle all events and send all datagrams. A listener may call back into the driver: the outermost
        call then goes on.
        """
        if self._working:
            return
        self._working = True
        try:
            while True:
                for datagram in self._engine.datagrams_to_send():
                    self._release(partial(self._send, datagram))
                event = self._engine.next_event()
                if event is None:
                    break
                self._dispatch(event)
        finally:
            self._working = False
        if self._engine.timer() != self._armed:
            self._rearm.set()

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, IkeEstablished) and event.token in self._commands:
            self._commands[event.token].ike = event.ike
        if isinstance(event, IkeClosed) and event.ike in self._closing:
            self._closing[event.ike].set()
        if isinstance(event, Outcome) and event.token is not None:
            waiting = self._commands.get(event.token)
            if waiting is not None:
                waiting.outcome = event
                waiting.done.set()
                return
        self.listener(event)

    # ---- time

    async def _keep_time(self) -> None:
        while True:
            self._armed = self._engine.timer()
            self._rearm = trio.Event()
            with trio.move_on_at(math.inf if self._armed is None else self._armed):
                await self._rearm.wait()
            now = trio.current_time()
            deadline = self._engine.timer()
            if deadline is not None and deadline <= now:
                self._engine.handle_timer(now)
                self._work()


def _ignore(event: Event) -> None:
    """Before the gateway listens there is nothing to hear."""


def _nothing() -> None:
    """What is revealed when something need only be stored."""
