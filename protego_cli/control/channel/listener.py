"""The GMN's front door: TCP connections in, authenticated TLS streams out.

1. A connection has `HANDSHAKE` seconds to finish its TLS handshake. At most `GUESTS` may be at it; when one
   more comes, the oldest is thrown out, so that idle connections never keep a node out.
2. The certificate must be the cluster's (OpenSSL has verified the chain by then), state a node that the
   cluster file knows in that role, or the operator. Any other is closed.
   Of a node of a pool it must be the one of its present life. Who shows none may join, where there are pools.
3. Refusals are logged at most once a second, with the number of those not logged.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from protego_cli.config.model import Cluster
from protego_cli.control.channel.pki import OPERATOR, Identity
from protego_cli.control.channel.rpc import peer_identity
from protego_cli.control.channel.tls import Broken, TlsStream
from protego_cli.control.pools.admissions import Admissions
from protego_cli.errors import EnvironmentFault

log = logging.getLogger(__name__)

HANDSHAKE: Final = 5.0
GUESTS: Final = 64
_LOG_INTERVAL: Final = 1.0


class Listener:
    """Accepts connections on a node's control port and hands those it knows to `welcome`."""

    def __init__(
        self,
        cluster: Cluster,
        context: ssl.SSLContext,
        welcome: Callable[[TlsStream, Identity], Awaitable[None]],
        admissions: Admissions | None = None,
        *,
        handshake: float = HANDSHAKE,
        guests: int = GUESTS,
    ) -> None:
        """`welcome` runs for as long as the connection does; `admissions` knows the pools' nodes."""
        self._admissions = admissions
        self.cluster = cluster  # whose nodes may connect; replaced when the file is read again
        self._context = context
        self._welcome = welcome
        self._handshake = handshake
        self._limit = guests
        self._guests: dict[trio.CancelScope, None] = {}  # oldest first
        self._refusals = 0
        self._logged = float("-inf")

    async def serve(
        self,
        address: str,
        port: int,
        *,
        task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve for ever; started with the address and port that are bound. Raises EnvironmentFault."""
        try:
            listeners = await trio.open_tcp_listeners(port, host=address)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot listen on {address}:{port} (TCP, control): {error.strerror or error}; stop what "
                "holds the port, or give this node another address or `ports.control` in the cluster file"
            ) from error
        bound = listeners[0].socket.getsockname()
        task_status.started((bound[0], bound[1]))
        await trio.serve_listeners(self._accept, listeners)

    async def _accept(self, tcp: trio.SocketStream) -> None:
        source = _source(tcp)
        try:
            stream = TlsStream.wrap(tcp, self._context, server_side=True)
        except Broken as error:
            self._log_refusal(source, str(error))
            return
        try:
            identity, reason = await self._receive_guest(stream)
            if not reason and identity is None and self._admissions is not None:
                reason = await self._admissions.serve(stream)
                if not reason:
                    return
            if identity is None or reason:
                self._log_refusal(source, reason)
            else:
                await self._welcome(stream, identity)
        finally:
            stream.close()

    async def _receive_guest(self, stream: TlsStream) -> tuple[Identity | None, str]:
        """The handshake: who it is, and why it may not come in."""
        if len(self._guests) >= self._limit:
            oldest = next(iter(self._guests))
            del self._guests[oldest]
            oldest.cancel()
        with trio.move_on_after(self._handshake) as guest:
            self._guests[guest] = None
            try:
                await stream.handshake()
            except Broken as error:
                return None, str(error)
            finally:
                self._guests.pop(guest, None)
            certificate = stream.peer_certificate()
            if certificate is None and self._admissions is not None:
                return None, ""
            identity = peer_identity(stream)
            return identity, self.objection(identity, certificate or b"")
        return None, "no handshake in time"

    def objection(self, identity: Identity | None, certificate: bytes = b"") -> str:
        """Why the holder of this certificate may not connect; empty when it may."""
        if identity is None:
            return "the certificate states no identity of Protego"
        if identity.cluster != self.cluster.name:
            return f"{identity} is of another cluster"
        if identity.role == OPERATOR:
            return "" if identity.name == OPERATOR else f"{identity} is no operator"
        node = next((node for node in self.cluster.nodes if node.name == identity.name), None)
        if node is None or node.role != identity.role or node.role == "gmn":
            unused = self.cluster.pooled(identity.name) is not None
            return f"{identity} is {'not in use' if unused else 'no data node of the cluster file'}"
        if node.pool:
            unknown = f"{node.name} is of a pool, and there is nobody who admits it"
            return self._admissions.objection(node, certificate) if self._admissions else unknown
        return ""

    def _log_refusal(self, source: str, reason: str) -> None:
        now = trio.current_time()
        if now - self._logged < _LOG_INTERVAL:
            self._refusals += 1
            return
        log.warning("connection refused from=%s reason=%s unlogged=%d", source, reason, self._refusals)
        self._logged, self._refusals = now, 0


def _source(tcp: trio.SocketStream) -> str:
    try:
        return str(tcp.socket.getpeername()[0])
    except OSError:  # gone already
        return "unknown"
