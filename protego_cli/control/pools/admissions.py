"""Who of the pools' nodes may come in: join tokens, and which certificate is a node's in its present life.

1. `issue` makes a token for a node (`joining.py`). The journal keeps its hash, never itself.
2. `serve` takes a connection that has shown no certificate. It may ask for the CA, or join: the token is
   compared in constant time and is good once, for one key, until it expires. Until it is proven nothing is
   kept, and of a request only its length is believed. At most `GUESTS` are served at once, `RATE` a second.
3. What is issued is bound: of a pool's node only the certificate of its last joining is let in (`objection`).
4. `revoke` ends a node's life: its certificate and its tokens are good for nothing any more, and the next
   life of its name needs a new token."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel import pki
from protego_cli.control.channel.tls import Broken, TlsStream
from protego_cli.control.operating.events import EventLog
from protego_cli.control.pools.joining import (
    ID_LENGTH,
    SECRET_LENGTH,
    TIMEOUT,
    Ca,
    Denied,
    GetCa,
    Join,
    Joined,
    JoinReply,
    Token,
    frame,
    parse_csr_untrusted,
    parse_request_untrusted,
    receive,
)
from protego_cli.control.state.journal import Journal
from protego_cli.errors import EnvironmentFault, Malformed, NotFound, ProtegoError, Refused

log = logging.getLogger(__name__)

TOKEN: Final = "token"  # noqa: S105 - kinds of records: a token's id -> what is kept of it
BOUND: Final = "bound"  # a node -> the fingerprint of its certificate
VALID: Final = 900.0  # seconds for which a token is good unless it is said otherwise
LONGEST: Final = 86400.0
TOKENS: Final = 4096
GUESTS: Final = 8
RATE: Final = 20.0  # connections without a certificate that are served in a second
BURST: Final = 40.0


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a token."""

    node: str
    hash: bytes  # of its secret
    expires: float  # wall time
    key: bytes = b""  # the hash of the public key that it was used for; empty: not used


class Admissions:
    def __init__(
        self,
        cluster: Cluster,
        journal: Journal,
        events: EventLog,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.cluster = cluster  # replaced when the file is read again
        self._events = events
        self._journal = journal
        self._clock = clock
        self._random = random
        self._tokens = {
            identifier: msgspec.msgpack.decode(value, type=_Stored)
            for identifier, value in journal.found(TOKEN)
        }
        self._bound = {
            name.decode(): msgspec.msgpack.decode(value, type=bytes) for name, value in journal.found(BOUND)
        }
        self._guests = 0
        self._credit, self._credited = BURST, trio.current_time()

    # ---- the GMN's own

    def issue(self, node: Node, valid: float = VALID) -> str:
        """A token for a node; those before it are good for nothing any more. Raises EnvironmentFault where no
        certificate could be made, and Refused.
        """
        if not pki.can_certify(self.cluster):
            raise EnvironmentFault(
                f"{self.cluster.pki / 'ca.key'} is not on the GMN's machine, so no node can join: put it "
                "there, readable by the GMN alone"
            )
        now = self._clock()
        self._forget(lambda stored: stored.node == node.name or stored.expires <= now)
        if len(self._tokens) >= TOKENS:
            raise Refused(f"{TOKENS} tokens are waiting to be used already")
        identifier, secret = self._random(ID_LENGTH), self._random(SECRET_LENGTH)
        ca = pki.fingerprint(pki.authority(self.cluster).public_bytes(Encoding.DER))
        self._keep(identifier, _Stored(node.name, sha256(secret).digest(), now + min(valid, LONGEST)))
        return Token(self.cluster.name, node.name, ca, identifier, secret).text()

    def node(self, pool: str, name: str | None) -> Node:
        """The node of a pool to make a token for: that of this name, or the first that has no certificate.
        Raises NotFound or Refused.
        """
        found = self.cluster.pool(pool)
        if found is None:
            known = ", ".join(each.name for each in self.cluster.pools) or "none"
            raise NotFound(f"{self.cluster.file} has no pool {pool!r}; it has {known}")
        if name is not None:
            number = found.number(name)
            if number is None or number > found.maximum:
                raise NotFound(
                    f"the pool {pool} has no node {name!r}; it has {pool}-1 to {pool}-{found.maximum}"
                )
            return found.node(number)
        free = next((node for node in found.nodes() if node.name not in self._bound), None)
        if free is None:
            raise Refused(
                f"all {found.maximum} nodes of {pool} have joined; say which is to join anew: --node"
            )
        return free

    def bound(self, name: str) -> bool:
        """Whether the node has a certificate."""
        return name in self._bound

    def revoke(self, name: str) -> None:
        """This life of the node is over."""
        self._forget(lambda stored: stored.node == name)
        if self._bound.pop(name, None) is not None:
            self._journal.put(BOUND, name.encode(), None)

    def objection(self, node: Node, certificate: bytes) -> str:
        """Why the holder of this certificate, which names the node, may not come in; empty when it may."""
        if not node.pool:
            return ""
        bound = self._bound.get(node.name)
        if bound is None:
            return f"{node.name} has not joined in its present life"
        if not hmac.compare_digest(bound, pki.fingerprint(certificate)):
            return f"the certificate is of an earlier life of {node.name}"
        return ""

    # ---- guests

    async def serve(self, stream: TlsStream) -> str:
        """One request and its answer; why it was denied, or nothing."""
        if self._guests >= GUESTS or not self._afford():
            return "too many want to join at once"
        self._guests += 1
        try:
            with trio.move_on_after(TIMEOUT):
                try:
                    request = parse_request_untrusted(await receive(stream))
                    reply = await self._answer(request)
                    stream.send(frame(reply))
                    await _until_closed(stream)
                except (Broken, Malformed) as error:
                    return str(error)
                return reply.reason if isinstance(reply, Denied) else ""
            return "no request in time"
        finally:
            self._guests -= 1

    def _afford(self) -> bool:
        now = trio.current_time()
        self._credit = min(BURST, self._credit + RATE * (now - self._credited)) - 1.0
        self._credited = now
        if self._credit < 0.0:
            self._credit = 0.0
            return False
        return True

    async def _answer(self, request: GetCa | Join) -> JoinReply:
        if isinstance(request, GetCa):
            return Ca(pki.authority(self.cluster).public_bytes(Encoding.DER))
        try:
            node = self._proven(request)
            return await self._admit(node, request)
        except ProtegoError as error:
            return Denied(str(error))

    def _proven(self, request: Join) -> Node:
        """The node that the token is for. Raises Refused: all that is wrong with a token sounds the same."""
        stored = self._tokens.get(request.id)
        kept = stored.hash if stored is not None else bytes(32)
        right = hmac.compare_digest(kept, sha256(request.secret).digest())
        node = self.cluster.pooled(stored.node) if stored is not None else None
        if stored is None or node is None or not right or stored.expires <= self._clock():
            raise Refused("the token is not known here, is used up, or has expired: get another one")
        return node

    async def _admit(self, node: Node, request: Join) -> JoinReply:
        stored = self._tokens[request.id]
        try:
            public = parse_csr_untrusted(request.request)
        except Malformed as error:
            raise Refused(str(error)) from error
        key = sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        if stored.key and not hmac.compare_digest(stored.key, key):
            raise Refused("the token is not known here, is used up, or has expired: get another one")
        certificate = pki.certify(self.cluster, node, public)
        self._keep(request.id, msgspec.structs.replace(stored, key=key))
        self._bound[node.name] = pki.fingerprint(certificate)
        self._journal.put(BOUND, node.name.encode(), self._bound[node.name])
        await self._journal.stored()
        self._events.emit("node joined", node=node.name)
        return Joined(certificate)

    # ---- what is kept

    def _keep(self, identifier: bytes, stored: _Stored) -> None:
        self._tokens[identifier] = stored
        self._journal.put(TOKEN, identifier, stored)

    def _forget(self, goes: Callable[[_Stored], bool]) -> None:
        for identifier in [each for each, stored in self._tokens.items() if goes(stored)]:
            del self._tokens[identifier]
            self._journal.put(TOKEN, identifier, None)


async def _until_closed(stream: TlsStream) -> None:
    """Send what the kernel did not take at once, until the other side has it and closes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.drain)
        if await stream.receive():
            raise Malformed("more than one request")
        nursery.cancel_scope.cancel()
