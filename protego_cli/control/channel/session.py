"""One connection of a data node at the GMN: `Hello`, then the observer hears of it in order, to its end.

What a node says on its own account is acknowledged once the observer has heard it and what follows from it is
stored, so that the node says it again when the GMN has gone between the two.

For one node the observer's calls come one after another, also across connections: the newest connection of a
node ends the one before and waits until its `node_down` has returned. Two processes that run as one node
would end each other's for ever: when the one that was here first comes back, it stays; the other is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from protego_cli.config.model import Node
from protego_cli.control.channel.frames import NODE_LIMIT
from protego_cli.control.channel.member import Member
from protego_cli.control.channel.message import Reply
from protego_cli.control.channel.messages import AnyRequest
from protego_cli.control.channel.node_messages import (
    Hello,
    Noted,
    Notice,
    Report,
)
from protego_cli.control.channel.pki import Identity
from protego_cli.control.channel.rpc import Link
from protego_cli.control.channel.tls import TlsStream
from protego_cli.control.state.journal import NODE, Journal
from protego_cli.errors import ProtegoError, Refused

log = logging.getLogger(__name__)

Reported = Report | Notice

_TWINS: Final = 8  # processes that are remembered as others than the one that is let in
_UNHEARD: Final = 4096  # what one node may have said that the observer has not heard yet


class FabricObserver(Protocol):
    """Who is told of membership: the GMN. No call may wait for what a later one for that node brings."""

    async def node_connecting(self, node: str, restarted: bool) -> None:
        """Before its Sync: what is desired now goes into it. `restarted`: a new process since last time."""
        ...

    async def node_up(self, node: str) -> None:
        """Its Sync is applied."""
        ...

    async def reported(self, node: str, request: Reported) -> None:
        """It said something. Only GPNs say other than Report; whether an SPI is theirs is yours to check."""
        ...

    async def node_down(self, node: str, reason: str = "") -> None:
        """A node that was up is gone, or is about to come anew."""
        ...


class Session:
    """Owns the link of one connection; `run` is its life."""

    def __init__(
        self,
        member: Member,
        observer: FabricObserver,
        newest: dict[str, Session],
        greet: Callable[[Hello, Node], Reply],
        journal: Journal,
    ) -> None:
        """`newest`: the latest session of each node, kept here. `greet` answers a Hello or raises Refused."""
        self._journal = journal
        self._member = member
        self._observer = observer
        self._newest = newest
        self._greet = greet
        self._link: Link | None = None
        self._boot: str | None = None
        self._greeted = trio.Event()  # a Hello was welcomed, or none will come
        self._finished = trio.Event()
        self._say, self._said = trio.open_memory_channel[Reported](_UNHEARD)
        self._unheard: dict[Notice, trio.Event] = {}
        self._report_waits = False

    async def run(self, stream: TlsStream, identity: Identity, silence: float) -> None:
        async with trio.open_nursery() as nursery:
            link = Link(stream, identity, self._handle, nursery, limit=NODE_LIMIT, silence=silence)
            self._link = link
            nursery.start_soon(self._attend, link)
            await link.run()
            self._member.detach(link)
            self._greeted.set()
            self._say.close()

    def dismiss(self, reason: str) -> None:
        """End it: the node has no place here any more."""
        if self._link is not None:
            self._link.close(reason)

    def _handle(self, request: AnyRequest) -> Reply | Awaitable[Reply]:
        node = self._member.node
        if isinstance(request, Hello):
            if self._boot is not None:
                raise Refused("Hello comes once")
            self._tell_from_twin(request.boot)
            welcome = self._greet(request, node)
            self._boot = request.boot
            self._greeted.set()
            return welcome
        if self._boot is None:
            raise Refused("Hello comes first")
        if not isinstance(request, Reported) or (node.role != "gpn" and not isinstance(request, Report)):
            raise Refused(f"a {node.role} may not send {type(request).__name__}")
        self._hear(request)
        return Noted() if isinstance(request, Report) else self._noted(request)

    def _tell_from_twin(self, boot: str) -> None:
        """Raises Refused for a process beside which the one that is connected runs as the same node."""
        member = self._member
        holder = self._newest.get(member.node.name)
        if holder is None or holder._boot in (None, boot) or not holder._stands:
            return
        if boot in member.twins:
            raise Refused(
                f"another process runs as {member.node.name}, and was here before: stop one of the two"
            )
        if boot == member.displaced and len(member.twins) < _TWINS:
            member.twins.add(holder._boot)
            log.error("two processes run as one node node=%s reason=%s", member.node.name, "stop one of them")

    @property
    def _stands(self) -> bool:
        return self._link is not None and self._link.closed is None

    async def _noted(self, notice: Notice) -> Reply:
        heard = self._unheard.setdefault(notice, trio.Event())
        await heard.wait()
        await self._journal.stored()
        return Noted()

    def _hear(self, request: Reported) -> None:
        if isinstance(request, Report):
            self._member.report = request
            if self._report_waits:
                return  # the observer will get this one in the place of that
            self._report_waits = True
        try:
            self._say.send_nowait(request)
        except trio.WouldBlock:
            raise Refused(f"{_UNHEARD} messages of this node wait already") from None

    async def _attend(self, link: Link) -> None:
        await self._greeted.wait()
        if self._boot is None:
            return
        name = self._member.node.name
        previous = self._newest.get(name)
        self._newest[name] = self
        try:
            if previous is not None:
                if previous._boot != self._boot and previous._stands:
                    self._member.displaced = previous._boot
                await previous._end("the node connected anew")
            if link.closed is None:
                await self._tell(link, name, self._boot)
        finally:
            self._finished.set()
            for heard in self._unheard.values():
                heard.set()  # in vain: the link is closed, and the node will say it again
            if self._newest.get(name) is self:
                del self._newest[name]
                self._member.displaced = None
                self._member.twins.clear()

    async def _end(self, reason: str) -> None:
        self.dismiss(reason)
        await self._finished.wait()

    async def _tell(self, link: Link, name: str, boot: str) -> None:
        member, observer = self._member, self._observer
        restarted = member.boot is not None and member.boot != boot
        await observer.node_connecting(name, restarted)
        member.boot = boot
        self._journal.put(NODE, name.encode(), boot)
        try:
            await member.sync(link)
        except ProtegoError as error:
            log.warning("sync failed node=%s reason=%s", name, error)
            return
        await observer.node_up(name)
        async for request in self._said:
            if isinstance(request, Report):
                self._report_waits = False
                request = member.report or request
            await observer.reported(name, request)
            if not isinstance(request, Report) and (heard := self._unheard.pop(request, None)) is not None:
                heard.set()
        await observer.node_down(name, str(link.closed))
