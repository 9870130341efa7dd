"""One connection of the control channel: requests and replies both ways over mutual TLS.

1. `connect` (node, operator) or `listener.py` (GMN) makes the TLS stream and learns the other's `Identity`.
2. `Link.run` owns the stream until it closes. A frame is written in the step that makes it; what the kernel
   does not take at once waits in the stream, so that nobody waits for anybody else's socket.
3. `Link.send` sends a request, and its outcome is told in the step that reads the reply; `Link.call` waits
   for it. Any number may be on their way, up to a bound. One task keeps the time of all of them; time in
   which this process did not run itself counts for none, for it has not heard what was said meanwhile.
4. A request that arrives goes to the handler *from the reading task, in order of arrival*. The handler
   answers with a reply at once, or with an awaitable, which runs as a task of its own in `tasks` (not the
   link's: work begun for a connection is not torn apart when that closes) and whose reply goes out when it
   is there. So what a handler does before it returns is ordered, and what it awaits is concurrent.
5. A frame that does not decode, too many requests at once, or silence closes the link, with one line in the
   log; every call that waits then raises `LinkClosed`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio
from cryptography import x509

from protego_cli.control.channel.frames import FrameBuffer, encode
from protego_cli.control.channel.message import Failed, Reply, Request
from protego_cli.control.channel.messages import AnyReply, AnyRequest
from protego_cli.control.channel.pki import Identity, identity_of
from protego_cli.control.channel.tls import Broken, Rejected, TlsStream
from protego_cli.control.state.journal import Release, at_once
from protego_cli.errors import (
    EnvironmentFault,
    Exit,
    Malformed,
    NotFound,
    ProtegoError,
    Refused,
    Unreachable,
    UsageError,
)

log = logging.getLogger(__name__)

Handler = Callable[[AnyRequest], "Reply | Awaitable[Reply]"]

Answered = Callable[["AnyReply | ProtegoError"], None]
"""Told what came of a request: the reply, or why there is none. Must not raise."""

OUTSTANDING: Final = 256  # requests on their way, in each direction
SILENCE: Final = 10.0  # seconds without a complete frame after which the other side counts as gone
LOOKS: Final = 0.25  # seconds between looks at the clock while a call waits
HELD_UP: Final = 0.1  # a look so many seconds late was late because this process did not run
UNREAD: Final = 1 << 20  # bytes of replies that the other side may leave unread


class LinkClosed(Unreachable):
    """The connection closed before the reply came."""


class Unanswered(Unreachable):
    """The connection stands, but the reply did not come in time."""


_ERRORS: dict[int, type[ProtegoError]] = {
    Exit.FAILED: Refused,
    Exit.USAGE: UsageError,
    Exit.NOT_FOUND: NotFound,
    Exit.ENVIRONMENT: EnvironmentFault,
}


def failure(error: ProtegoError) -> Failed:
    """The reply that carries an error to the other side, which has reached us: what did not answer is another
    node.
    """
    code = Exit.FAILED if isinstance(error, Unreachable) else error.exit_code
    return Failed(str(error), int(code))


def error_of(failed: Failed) -> ProtegoError:
    """The error that a reply carries."""
    return _ERRORS.get(failed.code, Refused)(failed.message)


class _Call:
    __slots__ = ("answered", "deadline", "request", "timeout")

    def __init__(self, request: str, timeout: float, answered: Answered) -> None:
        self.request = request
        self.timeout = timeout
        self.answered = answered
        self.deadline = math.inf  # until it is let out


class Link:
    """One authenticated connection; `run` must run for anything else to work."""

    def __init__(
        self,
        stream: TlsStream,
        peer: Identity,
        handler: Handler,
        tasks: trio.Nursery,
        *,
        limit: int,
        silence: float = SILENCE,
        release: Release = at_once,
    ) -> None:
        """`limit`: the largest frame to take; `silence`: seconds without a frame until the link closes;
        `release`: what a reply that was awaited goes through.
        """
        self.peer = peer
        self.closed: str | None = None  # why, once it is
        self.rejected = False  # because the other side does not take our certificate
        self._stream = stream
        self._handler = handler
        self._tasks = tasks
        self._frames = FrameBuffer(limit)
        self._silence = silence
        self._release = release
        self._scope = trio.CancelScope()
        self._heard = 0.0  # when the last frame was complete
        self._looked = 0.0  # when `_keep_time` looked at the clock, and when it will again
        self._look = math.inf
        self._sooner = trio.Event()  # it has to look earlier than that
        self._calls: dict[int, _Call] = {}
        self._next_id = 0
        self._serving = 0  # requests of the other side that are not answered yet
        self._unread = 0  # bytes of replies since the other side last had read everything

    # ---- calling

    async def call(self, request: Request, timeout: float = SILENCE, release: Release = at_once) -> AnyReply:
        """Send a request and return its reply. The request is made, and handed to `release`, before the first
        await.

        Raises the error that a `Failed` carries, LinkClosed, or Unanswered after `timeout` seconds.
        """
        done = trio.Event()
        outcome: list[AnyReply | ProtegoError] = []

        def answered(found: AnyReply | ProtegoError) -> None:
            outcome.append(found)
            done.set()

        identifier = self.send(request, answered, timeout, release)
        try:
            await done.wait()
        finally:
            self._calls.pop(identifier, None)
        (found,) = outcome
        if isinstance(found, ProtegoError):
            raise found
        return found

    def send(
        self, request: Request, answered: Answered, timeout: float = SILENCE, release: Release = at_once
    ) -> int:
        """Make a request now and hand it to `release`; `answered` is told its reply, or the error that
        `call` would raise, once. The time runs from when it is let out.

        Raises LinkClosed, or Refused where too many requests wait.
        """
        if self.closed is not None:
            raise LinkClosed(f"{self.peer.name}: {self.closed}")
        if len(self._calls) >= OUTSTANDING:
            raise Refused(f"{self.peer.name}: {OUTSTANDING} requests wait for their answer already")
        identifier = self._next_id
        self._next_id += 1
        call = self._calls[identifier] = _Call(type(request).__name__, timeout, answered)
        frame = encode(identifier, request)

        def let_out() -> None:
            if self.closed is None:
                now = trio.current_time()
                call.deadline = now + timeout
                if (look := min(call.deadline, now + LOOKS)) < self._look:
                    self._looked, self._look = now, look
                    self._sooner.set()
                self._stream.send(frame)

        release(let_out)
        return identifier

    def close(self, reason: str) -> None:
        """Close at once; `run` returns. Idempotent: the first reason stands."""
        if self.closed is None:
            self.closed = reason
        self._scope.cancel()

    # ---- running

    async def run(self) -> None:
        """Serve the connection until either side closes it; never raises for what the other side does."""
        self._heard = trio.current_time()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_time)
                    nursery.start_soon(self._read)
        finally:
            self.close("cancelled")
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.answered(LinkClosed(f"{self.peer.name}: {self.closed}"))
            self._stream.close()

    async def _read(self) -> None:
        try:
            while data := await self._stream.receive():
                now = trio.current_time()
                for frame in self._frames.feed(data):
                    self._heard = now
                    self._dispatch(frame.id, frame.message)
                    if self.closed is not None:
                        return
            self.close("the connection was closed")
        except Broken as error:
            if isinstance(error, Rejected):  # which says why sending has failed, too, if it has
                self.rejected, self.closed = True, str(error)
            self.close(str(error))
        except Malformed as error:
            log.warning("control link closed node=%s reason=%s", self.peer.name, error)
            self.close(str(error))

    async def _keep_time(self) -> None:
        """End the calls that are not answered in time, and the link when the other side is silent. It looks
        now and then while calls wait, however many are made and answered meanwhile.
        """
        while True:
            now = trio.current_time()
            if now - self._look > HELD_UP:  # the answers may lie in the socket
                self._heard = max(self._heard, now - self._silence + LOOKS)
                for call in self._calls.values():
                    call.deadline += now - self._looked
            if self._heard + self._silence <= now:
                self.close(f"silent for {self._silence:g} s")
            for identifier, call in list(self._calls.items()):
                if call.deadline <= now:
                    del self._calls[identifier]
                    call.answered(
                        Unanswered(f"{self.peer.name}: no answer to {call.request} within {call.timeout:g} s")
                    )
            deadline = min([call.deadline for call in self._calls.values()], default=math.inf)
            self._looked, self._look = now, min(self._heard + self._silence, deadline)
            if deadline < math.inf:
                self._look = min(self._look, now + LOOKS)
            self._sooner = trio.Event()
            with trio.move_on_at(self._look):
                await self._sooner.wait()

    def _dispatch(self, identifier: int, message: AnyRequest | AnyReply) -> None:
        if isinstance(message, Reply):
            if identifier >= self._next_id or identifier < 0:
                raise Malformed("a reply to a request never made")
            call = self._calls.pop(identifier, None)  # None: the caller has stopped waiting
            if call is not None:
                call.answered(error_of(message) if isinstance(message, Failed) else message)
            return
        if self._serving >= OUTSTANDING:
            raise Malformed(f"more than {OUTSTANDING} requests at once")
        self._serving += 1
        try:
            answer = self._handler(message)
        except ProtegoError as error:
            answer = failure(error)
        if isinstance(answer, Reply):
            self._reply(identifier, answer)
        else:
            self._tasks.start_soon(self._finish, identifier, answer)

    async def _finish(self, identifier: int, answer: Awaitable[Reply]) -> None:
        try:
            reply = await answer
        except ProtegoError as error:
            reply = failure(error)
        self._release(partial(self._reply, identifier, reply))

    def _reply(self, identifier: int, reply: Reply) -> None:
        self._serving -= 1
        if self.closed is not None:
            return
        if not self._stream.backlog:
            self._unread = 0
        if self._unread > UNREAD:
            reason = "it does not read its replies"
            log.warning("control link closed node=%s reason=%s", self.peer.name, reason)
            self.close(reason)
            return
        frame = encode(identifier, reply)
        self._unread += len(frame)
        self._stream.send(frame)

    async def _write(self) -> None:
        try:
            await self._stream.drain()
        except Broken as error:
            self.close(str(error))


# ---- making the stream


def peer_identity(stream: TlsStream) -> Identity | None:
    """Who is at the other end, after the handshake has verified the certificate's chain; None: a stranger."""
    der = stream.peer_certificate()
    try:
        return identity_of(x509.load_der_x509_certificate(der)) if der else None
    except ValueError:
        return None


async def connect(
    address: str, port: int, context: ssl.SSLContext, expected: Identity, timeout: float
) -> TlsStream:
    """Dial a GMN and check that it is the one expected. Raises Unreachable or Refused."""
    place = f"{address}:{port}"
    with trio.move_on_after(timeout):
        try:
            stream = TlsStream.wrap(await trio.open_tcp_stream(address, port), context)
        except (OSError, Broken) as error:
            raise Unreachable(f"nothing answers at {place}") from error
        with contextlib.ExitStack() as unless_verified:
            unless_verified.callback(stream.close)
            try:
                await stream.handshake()
            except Broken as error:
                raise Refused(f"{place}: no TLS connection: {error}") from error
            found = peer_identity(stream)
            if found != expected:
                raise Refused(f"{place} is {found or 'a stranger'}, but {expected} was expected")
            unless_verified.pop_all()
        return stream
    raise Unreachable(f"{place} did not answer within {timeout:g} s")
