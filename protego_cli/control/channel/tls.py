"""A TLS connection under trio that writes at once: for small messages whose latency counts.

`ssl.SSLSocket` on a non-blocking socket. `send` hands a message to the kernel in the caller's own step; what
the kernel does not take is left to the task in `drain`, in order. So a round trip costs two wakings of a task
and no more, a third of what `trio.SSLStream` needs with its locks and checkpoints. Frames carry their length,
so a connection cut short is seen as such and no close_notify is awaited.

Whatever goes wrong with the connection is `Broken`, with a reason for people.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from typing import Final, Self

import trio

_RECEIVE: Final = 1 << 16
_PUSH: Final = 1 << 17  # bytes that one step may write, so that a large Sync leaves the data path air
_ALERT: Final = "_ALERT_"  # in OpenSSL's names of what the other side says; here it speaks of certificates
_FLAWS: Final = {  # X509_V_ERR_… -> what that means here
    10: "it has expired",
    18: "it is of another CA than ours",
    19: "it is of another CA than ours",
    20: "it is of another CA than ours",
}
_EAGER: Final = 8  # receives in a row without letting other tasks run


class Broken(Exception):
    """The connection is of no use any more; the text says why."""


class Rejected(Broken):
    """The other side does not take our certificate."""


class TlsStream:
    """One TLS connection; `handshake` first. One task may `receive`, one may `drain`, any may `send`."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._queue: deque[memoryview] = deque()
        self._more = trio.Event()
        self._failure = ""
        self._eager = 0

    @classmethod
    def wrap(cls, tcp: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool = False) -> Self:
        """Take over a TCP connection. Raises Broken."""
        plain = socket.socket(fileno=tcp.socket.detach())
        try:
            plain.setblocking(False)
            return cls(context.wrap_socket(plain, server_side=server_side, do_handshake_on_connect=False))
        except OSError as error:
            plain.close()
            raise Broken(_reason(error)) from error

    async def handshake(self) -> None:
        """Raises Broken. The other side's certificate is verified afterwards; what it states is not."""
        while True:
            try:
                self._sock.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._sock)
            except OSError as error:
                raise Broken(_reason(error)) from error
            else:
                return

    def peer_certificate(self) -> bytes | None:
        """DER, after the handshake."""
        return self._sock.getpeercert(binary_form=True)

    async def receive(self) -> bytes:
        """What has arrived, or nothing when the other side has closed. Raises Broken."""
        self._eager += 1
        if self._eager >= _EAGER:
            self._eager = 0
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._sock.recv(_RECEIVE)
            except ssl.SSLWantReadError:
                self._eager = 0
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as error:
                raise _broken(error) from error

    @property
    def backlog(self) -> bool:
        """Whether there is something that the kernel has not taken yet."""
        return bool(self._queue)

    def send(self, data: bytes) -> None:
        """Write behind what was written before. Never waits and never raises: `drain` tells of failure."""
        self._queue.append(memoryview(data))
        if len(self._queue) == 1:
            self._push()
        if self._queue or self._failure:
            self._more.set()

    async def drain(self) -> None:
        """Write, for ever, what `send` could not. Raises Broken."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._queue:
                await trio.lowlevel.wait_writable(self._sock)
                self._push()
            if self._failure:
                raise Broken(self._failure)

    def _push(self) -> None:
        budget = _PUSH
        try:
            while self._queue and budget > 0:
                head = self._queue[0]
                # After SSLWantWriteError OpenSSL demands the very same bytes again: the head stays.
                sent = self._sock.send(head[:_PUSH])
                budget -= sent
                if sent == len(head):
                    self._queue.popleft()
                else:
                    self._queue[0] = head[sent:]
        except ssl.SSLWantWriteError:
            pass
        except OSError as error:
            self._failure = _reason(error)
            self._queue.clear()

    def close(self) -> None:
        """Close at once; tasks that wait here get trio.ClosedResourceError. Idempotent."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


def _broken(error: OSError) -> Broken:
    kind = Rejected if isinstance(error, ssl.SSLError) and _ALERT in (error.reason or "") else Broken
    return kind(_reason(error))


def _reason(error: OSError) -> str:
    """What broke a connection, as text for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {_FLAWS.get(error.verify_code, error.verify_message)}"
    if isinstance(error, ssl.SSLError) and error.reason:
        before, alert, what = error.reason.partition(_ALERT)
        said = (what if alert else before).replace("_", " ").lower()
        return f"the other side refuses our certificate: {said}" if alert else said
    return "the connection broke"
