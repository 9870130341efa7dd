"""One connection of the control channel: requests and replies both ways over mutual TLS.

1. `connect` (node, operator) or `listener.py` (GMN) makes the TLS stream and learns the other's `Identity`.
2. `Link.run` owns the stream until it closes. A frame is written in the step that makes it; what the kernel
   does not take at once waits in the stream, so that nobody waits for anybody else's socket.
3. `Link.call` sends a request and waits for its reply; any number may be on their way, up to a bound.
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
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from cryptography import x509

from protego_cli.control.channel.frames import FrameBuffer, encode
from protego_cli.control.channel.messages import AnyReply, AnyRequest, Failed, Reply, Request
from protego_cli.control.channel.pki import Identity, identity_of
from protego_cli.control.channel.tls import Broken, TlsStream
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

OUTSTANDING: Final = 256  # requests on their way, in each direction
SILENCE: Final = 10.0  # seconds without a complete frame after which the other side counts as gone
UNREAD: Final = 1 << 20  # bytes of replies that the other side may leave unread


class LinkClosed(Unreachable):
    """The connection closed before the reply came."""


class Unanswered(Unreachable):
    """The connection stands, but the reply did not come in time."""


_ERRORS: dict[int, type[ProtegoError]] = {
    Exit.FAILED: Refused,
    Exit.USAGE: UsageError,
    Exit.UNREACHABLE: Unreachable,
    Exit.NOT_FOUND: NotFound,
    Exit.ENVIRONMENT: EnvironmentFault,
}


def failure(error: ProtegoError) -> Failed:
    """The reply that carries an error to the other side."""
    return Failed(str(error), int(error.exit_code))


def error_of(failed: Failed) -> ProtegoError:
    """The error that a reply carries."""
    return _ERRORS.get(failed.code, Refused)(failed.message)


class _Call:
    __slots__ = ("done", "reply")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.reply: AnyReply | None = None  # None when done: the link closed


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
    ) -> None:
        """`limit`: the largest frame to take; `silence`: seconds without a frame until the link closes."""
        self.peer = peer
        self.closed: str | None = None  # why, once it is
        self._stream = stream
        self._handler = handler
        self._tasks = tasks
        self._frames = FrameBuffer(limit)
        self._silence = silence
        self._scope = trio.CancelScope()
        self._calls: dict[int, _Call] = {}
        self._next_id = 0
        self._serving = 0  # requests of the other side that are not answered yet
        self._unread = 0  # bytes of replies since the other side last had read everything

    # ---- calling

    async def call(self, request: Request, timeout: float = SILENCE, release: Release = at_once) -> AnyReply:
        """Send a request and return its reply. The request is made, and handed to `release`, before the first
        await; the time runs from when it is let out.

        Raises the error that a `Failed` carries, LinkClosed, or Unanswered after `timeout` seconds.
        """
        if self.closed is not None:
            raise LinkClosed(f"{self.peer.name}: {self.closed}")
        if len(self._calls) >= OUTSTANDING:
            raise Refused(f"{self.peer.name}: {OUTSTANDING} requests wait for their answer already")
        identifier = self._next_id
        self._next_id += 1
        call = self._calls[identifier] = _Call()
        frame = encode(identifier, request)
        scope = trio.CancelScope()

        def let_out() -> None:
            scope.deadline = trio.current_time() + timeout
            if self.closed is None:
                self._stream.send(frame)

        release(let_out)
        try:
            with scope:
                await call.done.wait()
        finally:
            self._calls.pop(identifier, None)
        if isinstance(call.reply, Failed):
            raise error_of(call.reply)
        if call.reply is not None:
            return call.reply
        if self.closed is not None:
            raise LinkClosed(f"{self.peer.name}: {self.closed}")
        raise Unanswered(f"{self.peer.name}: no answer to {type(request).__name__} within {timeout:g} s")

    def close(self, reason: str) -> None:
        """Close at once; `run` returns. Idempotent: the first reason stands."""
        if self.closed is None:
            self.closed = reason
        self._scope.cancel()

    # ---- running

    async def run(self) -> None:
        """Serve the connection until either side closes it; never raises for what the other side does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._read)
        finally:
            self.close("cancelled")
            for call in self._calls.values():
                call.done.set()
            self._stream.close()

    async def _read(self) -> None:
        try:
            with trio.move_on_after(self._silence) as silence:
                while data := await self._stream.receive():
                    for frame in self._frames.feed(data):
                        self._dispatch(frame.id, frame.message)
                        if self.closed is not None:
                            return
                        silence.deadline = trio.current_time() + self._silence
                self.close("the connection was closed")
                return
            self.close(f"silent for {self._silence:g} s")
        except Broken as error:
            self.close(str(error))
        except Malformed as error:
            log.warning("control link closed node=%s reason=%s", self.peer.name, error)
            self.close(str(error))

    def _dispatch(self, identifier: int, message: AnyRequest | AnyReply) -> None:
        if isinstance(message, Reply):
            if identifier >= self._next_id or identifier < 0:
                raise Malformed("a reply to a request never made")
            call = self._calls.pop(identifier, None)  # None: the caller has stopped waiting
            if call is not None:
                call.reply = message
                call.done.set()
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
        self._reply(identifier, reply)

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
