"""One data node as the GMN knows it: what it should hold, and what it has been sent of that.

1. `desire` changes the desired state and notes what of it the node has yet to hear (`_pending`).
2. `sync` sends the whole state on a new link; from its sending on, `flush` sends Updates behind it.
3. `flush` sends all that is pending as one Update and returns when the node has applied it. With nothing
   pending and nothing on its way there is nothing to send; with something on its way an empty Update is sent,
   because its answer means that all before it is applied too.
4. Nothing leaves before what it reveals is stored (`instruct`).
5. A node that answers `Stale` gets a Sync. One that does not answer within the deadline loses its link: it
   comes back, and its Sync makes it whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import trio

from protego_cli.config.model import Node
from protego_cli.control.channel.messages import AnyRecord, AnyReply, Key, Report, Stale, Sync, Update
from protego_cli.control.channel.rpc import Link, LinkClosed, Unanswered
from protego_cli.control.state.journal import Release, at_once
from protego_cli.control.waiting import holding
from protego_cli.errors import ProtegoError, Unreachable

log = logging.getLogger(__name__)

DEADLINE: Final = 1.0  # seconds for an Update; above the agent's time for a barrier
SYNC_DEADLINE: Final = 10.0
_UPDATES: Final = 64  # on their way to one node


class NodeDown(Unreachable):
    """The node is not connected, or went while it was being waited for. What was desired of it still is."""


class Member:
    """Desired state of one data node, and its delivery."""

    def __init__(self, node: Node, epoch: int, deadline: float, release: Release = at_once) -> None:
        self.node = node
        self._release = release
        self.boot: str | None = None  # of the process whose node_connecting was last told
        self.report: Report | None = None
        self.raw_esp: bool | None = None  # of a GIN, as it said last
        self._epoch = epoch
        self._deadline = deadline
        self._desired: dict[Key, AnyRecord] = {}
        self._pending: dict[Key, AnyRecord | None] = {}  # None: to be dropped
        self._refused: set[Key] = set()  # in an Update that failed: not elided when put again
        self._revision = 0  # of what was sent last
        self._applied = 0  # the highest that is known to be applied
        self._synced = 0  # of the Sync sent last
        self._link: Link | None = None
        self._whole = False  # the Sync on this link is applied
        self._slots = trio.Semaphore(_UPDATES)
        self._syncing = trio.Lock()

    def desire(self, put: Iterable[AnyRecord], drop: Iterable[Key]) -> None:
        """Change the desired state; what is so already is no change."""
        for record in put:
            if self._desired.get(record.key) != record or record.key in self._refused:
                self._desired[record.key] = self._pending[record.key] = record
        for key in drop:
            if self._desired.pop(key, None) is not None:
                self._pending[key] = None

    async def sync(self, link: Link) -> None:
        """Send the whole state on a new link, and Updates there from now on. Raises ProtegoError."""
        self._link = link
        await self._send_sync(link, 0)
        self._whole = True

    def detach(self, link: Link) -> None:
        """The link is gone."""
        if self._link is link:
            self._link, self._whole = None, False

    @property
    def up(self) -> bool:
        """Whether the node holds what is desired and its link stands."""
        return self._whole and self._link is not None and self._link.closed is None

    def live(self) -> Link:
        """The link over which this node can be reached. Raises NodeDown."""
        if self._link is None or self._link.closed is not None:
            raise NodeDown(f"{self.node.name}: not connected")
        return self._link

    async def flush(self, barriers: tuple[str, ...] = ()) -> None:
        """Return when the node has applied all that is desired now, and has passed the barriers.

        Raises NodeDown, or what the node's refusal means.
        """
        link = self.live()
        async with holding(self._slots):
            await self._flush(link, barriers)

    async def _flush(self, link: Link, barriers: tuple[str, ...]) -> None:
        while self._pending or barriers or self._applied < self._revision:
            if self.live() is not link:
                raise NodeDown(f"{self.node.name}: connected anew meanwhile")
            update = self._next_update(barriers)
            reply = await self._call(link, update, self._deadline)
            if not isinstance(reply, Stale):
                self._applied = max(self._applied, update.revision)
                return
            log.warning("an update was missed, a sync follows node=%s", self.node.name)
            await self._send_sync(link, update.revision)

    def _next_update(self, barriers: tuple[str, ...]) -> Update:
        self._revision += 1
        put = tuple(record for record in self._pending.values() if record is not None)
        drop = tuple(key for key, record in self._pending.items() if record is None)
        self._refused.difference_update(self._pending)
        self._pending.clear()
        return Update(self._epoch, self._revision, put, drop, barriers)

    async def _send_sync(self, link: Link, stale: int) -> None:
        """Make a node whole that has not applied revision `stale`; one Sync serves all that wait for it."""
        async with self._syncing:
            if stale and self._synced > stale:
                return
            self._revision += 1
            self._synced = revision = self._revision
            self._pending.clear()
            self._refused.clear()
            records = tuple(self._desired.values())
            await self._call(link, Sync(self._epoch, revision, records), SYNC_DEADLINE)
            self._applied = max(self._applied, revision)

    async def _call(self, link: Link, request: Sync | Update, deadline: float) -> AnyReply:
        name = self.node.name
        try:
            return await link.call(request, deadline, self._release)
        except Unanswered as error:
            reason = f"withdrawn: {type(request).__name__} not applied within {deadline:g} s"
            log.warning("node withdrawn node=%s reason=%s", name, reason)
            link.close(reason)
            raise NodeDown(f"{name}: {reason}") from error
        except LinkClosed as error:
            raise NodeDown(str(error)) from error
        except ProtegoError as error:
            if isinstance(request, Sync):
                link.close(f"the Sync was refused: {error}")
            else:
                self._applied = max(self._applied, request.revision)
                self._refused.update(record.key for record in request.put if record.key in self._desired)
            raise
