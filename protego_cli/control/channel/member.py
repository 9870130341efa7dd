"""One data node as the GMN knows it: what it should hold, and what it has been sent of that.

1. `desire` changes the desired state and notes what of it the node has yet to hear (`_pending`).
2. `sync` sends the whole state on a new link; from its sending on, Updates go behind it.
3. `push` sends all that is pending as one Update, in the step that calls it; `flush` also waits until the
   node has applied all that is desired. While an Update is on its way, what is desired meanwhile gathers for
   the next one, which leaves when the answer is read: the busier the GMN, the more changes share an Update.
   Updates with barriers, which take their time, go beside.
4. A node names the records that it cannot act on and acts on the rest. Such a record does not count as held:
   it is the error of those who need it (`flush`), whoever has put it and with whatever else it went, and of
   nobody else. It is sent again when it is put again, and with the next Sync.
5. Nothing leaves before what it reveals is stored (`instruct`).
6. A node that answers `Stale` gets a Sync. One that does not answer within the deadline loses its link: it
   comes back, and its Sync makes it whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final

import trio

from protego_cli.config.model import Node
from protego_cli.control.channel.desired_records import AnyRecord
from protego_cli.control.channel.message import Key
from protego_cli.control.channel.messages import AnyReply
from protego_cli.control.channel.node_messages import Applied, Report, Stale, Sync, Update
from protego_cli.control.channel.rpc import Link, LinkClosed, Unanswered
from protego_cli.control.state.journal import Release, at_once
from protego_cli.control.waiting import holding
from protego_cli.errors import ProtegoError, Refused, Unreachable

log = logging.getLogger(__name__)

DEADLINE: Final = 1.0  # seconds for an Update; above the agent's time for a barrier
SYNC_DEADLINE: Final = 10.0
_UPDATES: Final = 64  # on their way to one node beside the common one


class NodeDown(Unreachable):
    """The node is not connected, or went while it was being waited for. What was desired of it still is."""


class _Round:
    """An Update on its way, or one that gathers, and what came of it for those who wait."""

    __slots__ = ("done", "error", "following", "link", "revision", "stale", "waiting")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.revision = 0  # once it is sent, as the next
        self.following: _Round | None = None  # it leaves when this one has ended
        self.done = trio.Event()
        self.waiting = 0
        self.error: ProtegoError | None = None
        self.stale = False  # nothing came of it: a Sync has to come first

    @property
    def failed(self) -> bool:
        """Whether the node has answered that it did not do it, or not all of it."""
        return self.error is not None and not isinstance(self.error, NodeDown)


class Member:
    """Desired state of one data node, and its delivery."""

    def __init__(self, node: Node, epoch: int, deadline: float, release: Release = at_once) -> None:
        self.node = node
        self._release = release
        self.boot: str | None = None  # of the process whose node_connecting was last told
        self.displaced: str | None = None  # that of the process whose connection the present one's ended
        self.twins: set[str] = set()  # those of processes that run beside the one that is connected
        self.report: Report | None = None
        self.raw_esp: bool | None = None  # of a GIN, as it said last
        self._epoch = epoch
        self._deadline = deadline
        self._desired: dict[Key, AnyRecord] = {}
        self._pending: dict[Key, AnyRecord | None] = {}  # None: to be dropped
        self._common: _Round | None = None  # the Update without barriers that is on its way
        self._refused: dict[Key, str] = {}  # what of it the node cannot act on, and why
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
                self._refused.pop(key, None)

    async def sync(self, link: Link) -> None:
        """Send the whole state on a new link, and Updates there from now on. Raises ProtegoError."""
        async with holding(self._syncing):
            self._link = link  # in the step that sends the Sync: what is ahead of one is in vain
            await self._send_sync(link)
        self._whole = True

    def detach(self, link: Link) -> None:
        """The link is gone."""
        if self._link is link:
            self._link, self._whole = None, False

    @property
    def up(self) -> bool:
        """Whether the node holds what is desired and its link stands."""
        return self._whole and self._link is not None and self._link.closed is None

    @property
    def refused(self) -> Mapping[Key, str]:
        """What is desired of the node and it cannot act on, and why."""
        return self._refused

    def live(self) -> Link:
        """The link over which this node can be reached. Raises NodeDown."""
        if self._link is None or self._link.closed is not None:
            raise NodeDown(f"{self.node.name}: not connected")
        return self._link

    def push(self) -> None:
        """Send all that is desired now, if the node is there; nobody waits for it."""
        if self._pending and self._link is not None and self._link.closed is None:
            self._join(self._link)

    async def flush(self, needs: Iterable[Key] = (), barriers: tuple[str, ...] = ()) -> None:
        """Return when the node has applied all that is desired now, and has passed the barriers.

        Raises NodeDown, Refused when the node cannot act on one of the records in `needs`, or what its
        refusal of the whole message means.
        """
        link = self.live()
        while self._pending or barriers or self._applied < self._revision:
            if self.live() is not link:
                raise NodeDown(f"{self.node.name}: connected anew meanwhile")
            sent = await (self._beside(link, barriers) if barriers else self._wait(self._join(link)))
            if sent.error is not None:
                raise type(sent.error)(str(sent.error)) from sent.error
            if not sent.stale:
                break
            async with holding(self._syncing):  # one Sync serves all that wait for it
                if self._synced <= sent.revision:
                    await self._send_sync(link)
        if self._syncing.locked():
            async with holding(self._syncing):
                pass  # what its answer says is noted by then
        if self._refused:
            for key in needs:
                if (reason := self._refused.get(key)) is not None:
                    raise Refused(f"{self.node.name}: {reason}")

    async def _beside(self, link: Link, barriers: tuple[str, ...]) -> _Round:
        """An Update of one's own."""
        async with holding(self._slots):
            return await self._wait(self._send(_Round(link), barriers))

    async def _wait(self, sent: _Round) -> _Round:
        sent.waiting += 1
        await sent.done.wait()
        return sent

    def _join(self, link: Link) -> _Round:
        """The Update whose answer tells that all that is desired now is applied."""
        common = self._common
        if common is None or common.link is not link:
            self._common = _Round(link)
            return self._send(self._common)
        if common.following is None:
            if not self._pending and common.revision == self._revision:
                return common
            common.following = _Round(link)
        return common.following

    def _send(self, sent: _Round, barriers: tuple[str, ...] = ()) -> _Round:
        """Send what is pending; what becomes of it is told in the step in which the answer is read."""
        update = self._next_update(barriers)
        sent.revision = update.revision

        def answered(reply: AnyReply | ProtegoError) -> None:
            if isinstance(reply, ProtegoError):
                sent.error = self._failed(sent.link, update, reply)
            elif isinstance(reply, Stale):
                log.warning("an update was missed, a sync follows node=%s", self.node.name)
                sent.stale = True
            else:
                self._applied = max(self._applied, update.revision)
                if self._note(update.put, reply) and barriers:
                    sent.error = Refused(f"{self.node.name}: a record was refused, so no barrier was sent")
            self._end(sent)

        try:
            sent.link.send(update, answered, self._deadline, self._release)
        except ProtegoError as error:
            answered(error)
        return sent

    def _end(self, sent: _Round) -> None:
        if sent.failed and not sent.waiting:
            log.warning("change not confirmed node=%s reason=%s", self.node.name, sent.error)
        sent.done.set()
        if self._common is sent:
            self._common = None
        following = sent.following
        if following is None:
            return
        if sent.stale or (sent.error is not None and not sent.failed):
            following.error, following.stale, following.revision = sent.error, sent.stale, sent.revision
            self._end(following)
        else:
            self._common = following
            self._send(following)

    def _next_update(self, barriers: tuple[str, ...]) -> Update:
        self._revision += 1
        put = tuple(record for record in self._pending.values() if record is not None)
        drop = tuple(key for key, record in self._pending.items() if record is None)
        for key in self._pending.keys() & self._refused.keys():
            del self._refused[key]
        self._pending.clear()
        return Update(self._epoch, self._revision, put, drop, barriers)

    def _failed(self, link: Link, request: Sync | Update, error: ProtegoError) -> ProtegoError:
        """A request was not applied, or only in part: what that is for those who wait."""
        name = self.node.name
        if isinstance(error, Unanswered):
            deadline = SYNC_DEADLINE if isinstance(request, Sync) else self._deadline
            reason = f"withdrawn: {type(request).__name__} not applied within {deadline:g} s"
            log.warning("node withdrawn node=%s reason=%s", name, reason)
            link.close(reason)
            return NodeDown(f"{name}: {reason}")
        if isinstance(error, LinkClosed):
            return NodeDown(str(error))
        if isinstance(request, Sync):
            link.close(f"the Sync was refused: {error}")
        else:
            self._applied = max(self._applied, request.revision)
            if not request.barriers:  # else these were not echoed, which tells nothing of the records
                self._mark(request.put, {record.key: str(error) for record in request.put})
        return error

    def _note(self, put: Iterable[AnyRecord], reply: AnyReply) -> bool:
        """What of these records the node does not act on; whether there is any."""
        if not isinstance(reply, Applied) or not reply.refused:
            return False
        name, count, first = self.node.name, len(reply.refused), reply.refused[0].reason
        log.warning("records refused node=%s count=%d reason=%s", name, count, first)
        unsaid = f"refused with {count - 1} others; the first: {first}"
        self._mark(put, {each.key: each.reason or unsaid for each in reply.refused})
        return True

    def _mark(self, put: Iterable[AnyRecord], reasons: Mapping[Key, str]) -> None:
        """These of the records do not count as held; what was desired anew meanwhile has its own answer."""
        for record in put:
            if record.key in reasons and self._desired.get(record.key) is record:
                self._refused[record.key] = reasons[record.key]

    async def _send_sync(self, link: Link) -> None:
        """Send all that is desired; the caller holds `_syncing`."""
        self._revision += 1
        self._synced = revision = self._revision
        self._pending.clear()
        self._refused.clear()
        sync = Sync(self._epoch, revision, tuple(self._desired.values()))
        try:
            reply = await link.call(sync, SYNC_DEADLINE, self._release)
        except ProtegoError as error:
            raise self._failed(link, sync, error) from error
        self._applied = max(self._applied, revision)
        self._note(sync.records, reply)
