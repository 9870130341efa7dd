"""A data node's side of the control channel: it takes desired state, and reports.

1. Dial the GMNs of the cluster file in turn, for ever, with a growing pause (0.1-2 s); prove who they are.
   Certificates that have been renewed meanwhile are taken up then.
2. `Hello`, `Welcome`; then the GMN's `Sync`, and `Update`s. `desired.Holding` refuses an epoch below the
   highest this process has ever seen and turns the rest into `put` and `drop` of the role's `DataPlane`.
3. An answer comes when the data path acts on what was told (`settle`), and after the echoes of an Update's
   barriers: in the step that read the message where nothing is to be waited for, else beside the link's other
   traffic. Barriers leave in that step.
4. A `Report` every second; notices (`notify`) at once. A notice that meets no GMN is kept, one for each
   kind and SPI, and sent after the next Sync.
5. When the connection goes, the data plane keeps all it has: nothing here ever stops forwarding.

The log has a line when the connection's state changes, not for every try.
"""

from __future__ import annotations

import logging
import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec
import trio

from protego_cli import __version__
from protego_cli.config.model import Cluster, Node
from protego_cli.control.channel.desired import Holding
from protego_cli.control.channel.desired_records import AnyRecord
from protego_cli.control.channel.frames import GMN_LIMIT
from protego_cli.control.channel.message import Failed, Key, Reply
from protego_cli.control.channel.messages import AnyRequest
from protego_cli.control.channel.node_messages import (
    Applied,
    GetMarks,
    Hello,
    Marks,
    Notice,
    Report,
    Sync,
    Update,
    Welcome,
)
from protego_cli.control.channel.pki import Identity, client_context
from protego_cli.control.channel.rpc import SILENCE, Link, connect
from protego_cli.control.channel.tls import TlsStream
from protego_cli.control.waiting import together
from protego_cli.errors import EnvironmentFault, ProtegoError, Refused, Unreachable

log = logging.getLogger(__name__)

REPORT_INTERVAL: Final = 1.0
BARRIER_TIMEOUT: Final = 0.8  # below the GMN's deadline: a dead GPN must not get its GEN withdrawn
CONNECT_TIMEOUT: Final = 3.0
NOTICES: Final = 4096  # kept while there is no GMN
NOTICES_AT_ONCE: Final = 64
_BACKOFF: Final = (0.1, 2.0)


class DataPlane(Protocol):
    """What a role gives the agent. What is put and dropped acts by the time that `settle` names."""

    def welcome(self, welcome: Welcome) -> None:
        """A GMN was reached: its epoch and, for a GIN, the envelope key (a new one when the GMN is)."""
        ...

    def put(self, record: AnyRecord) -> None:
        """Add the record, or replace the one of its key, atomically for the data path.

        Raises ProtegoError or ValueError when it cannot be acted on. The records of one message come in the
        order Neighbour, Tenant, Tun, Park, Limit, Sa, Rule, Peer, Steer, Route, and are dropped in the
        reverse one.
        """
        ...

    def drop(self, key: Key) -> None:
        """Forget the record of this key; it was put before."""
        ...

    def settle(self) -> Awaitable[None] | None:
        """Over once the data path acts on all that was put and dropped so far; None when it does already."""
        ...

    def barrier(self, gpn: str) -> Awaitable[None]:
        """GEN: send a barrier to a GPN behind all that was forwarded to it; over on its echo.

        Cancelled when the echo takes too long. Raises ProtegoError for a GPN that is no neighbour.
        """
        ...

    def marks(self, spis: tuple[int, ...]) -> dict[int, int]:
        """GIN: the highest sequence number forwarded so far for each SPI, 0 for none."""
        ...

    def report(self) -> Report:
        """The figures of this moment."""
        ...


class Agent:
    """Keeps one data node under its GMN. `run` once, for the process's life."""

    def __init__(
        self,
        cluster: Cluster,
        node: Node,
        plane: DataPlane,
        *,
        report_interval: float = REPORT_INTERVAL,
        barrier_timeout: float = BARRIER_TIMEOUT,
        silence: float = SILENCE,
        raw_esp: bool = False,
    ) -> None:
        """`raw_esp`: the data path sends and receives ESP without UDP."""
        self.informed = trio.Event()  # the first Sync in this process's life was taken
        self._cluster = cluster
        self._node = node
        self._plane = plane
        self._report_interval = report_interval
        self._barrier_timeout = barrier_timeout
        self._silence = silence
        self._raw_esp = raw_esp
        self._holding = Holding(plane)
        self._boot = secrets.token_hex(8)
        self._link: Link | None = None
        self._tasks: trio.Nursery | None = None
        self._notices: dict[tuple[type[Notice], int], Notice] = {}
        self._slots = trio.Semaphore(NOTICES_AT_ONCE)
        self._urgent = trio.Event()
        self._synced = False  # on the present connection
        self._said = ""

    @property
    def connected(self) -> bool:
        """Whether a GMN's Sync has been applied on a connection that stands."""
        return self._link is not None and self._link.closed is None and self._synced

    @property
    def epoch(self) -> int:
        """The highest epoch ever seen."""
        return self._holding.epoch

    @property
    def records(self) -> dict[Key, AnyRecord]:
        """What this node holds; not to be changed."""
        return self._holding.records

    # ---- the role's side

    def notify(self, notice: Notice) -> None:
        """Tell the GMN, now or as soon as there is one. The latest of a kind and SPI stands."""
        key = (type(notice), notice.spi_in)
        if key not in self._notices and len(self._notices) >= NOTICES:
            del self._notices[next(iter(self._notices))]
        self._notices[key] = notice
        if self.connected and self._tasks is not None:
            self._tasks.start_soon(self._deliver, notice)

    def report_now(self) -> None:
        """Something the GMN should know cannot wait for the second to end (a silent GPN)."""
        self._urgent.set()

    # ---- running

    async def run(self) -> None:
        """Connect, serve, connect again, until cancelled. Raises EnvironmentFault for bad certificates."""
        certificates = _Certificates(self._cluster, self._node)
        shortest, longest = _BACKOFF
        pause = shortest
        async with trio.open_nursery() as tasks:
            self._tasks = tasks
            while True:
                for gmn in self._cluster.nodes_of("gmn"):
                    expected = Identity(self._cluster.name, "gmn", gmn.name)
                    try:
                        context = certificates.context()
                        stream = await connect(
                            gmn.address, gmn.ports.control, context, expected, CONNECT_TIMEOUT
                        )
                        await self._serve(stream, expected, tasks)
                    except Refused as error:
                        self._say("refused", error)
                    except Unreachable as error:
                        self._say("lost" if self._synced else "unreachable", error)
                    if self._synced:
                        self._synced, pause = False, shortest
                await trio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, longest)

    async def run_with(
        self, serve: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[None]
    ) -> None:
        """`run`, and beside it the data path as soon as there is a desired state. Started at once."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            task_status.started()
            await self.informed.wait()
            nursery.start_soon(serve)

    async def _serve(self, stream: TlsStream, gmn: Identity, tasks: trio.Nursery) -> None:
        """One connection, from Hello to its end, which is a Refused or an Unreachable."""
        self._holding.expect_sync()
        link = Link(stream, gmn, self._handle, tasks, limit=GMN_LIMIT, silence=self._silence)
        outcome: list[ProtegoError] = []

        async def converse() -> None:
            try:
                await self._greet(link)
                await self._report(link)
            except ProtegoError as error:
                outcome.append(error)
                link.close(str(error))

        self._link = link
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(converse)
                await link.run()
                nursery.cancel_scope.cancel()
        finally:
            self._link = None
        if link.rejected:
            raise Refused(f"{gmn.name}: {link.closed}; `protego doctor` says what is wrong with it")
        raise next((e for e in outcome if isinstance(e, Refused)), Unreachable(f"{gmn.name}: {link.closed}"))

    async def _greet(self, link: Link) -> None:
        welcome = await link.call(Hello(self._boot, __version__, self._holding.epoch, self._raw_esp))
        if not isinstance(welcome, Welcome):
            raise Refused(f"{link.peer.name} answered Hello with {type(welcome).__name__}")
        if welcome.epoch < self._holding.epoch:
            raise Refused(
                f"{link.peer.name} is at epoch {welcome.epoch}, below {self._holding.epoch}, which this node "
                "has seen: another GMN has taken over"
            )
        self._plane.welcome(welcome)

    async def _report(self, link: Link) -> None:
        while True:
            report = msgspec.structs.replace(self._plane.report(), clock=time.time())
            await link.call(report, self._silence)
            with trio.move_on_after(self._report_interval):
                await self._urgent.wait()
            self._urgent = trio.Event()

    # ---- what the GMN asks

    def _handle(self, request: AnyRequest) -> Reply | Awaitable[Reply]:
        match request:
            case Sync():
                reply = self._holding.sync(request)
                if isinstance(reply, Applied):
                    self._begin(request)
                if self._holding.epoch == request.epoch:  # taken, be it without some records
                    self.informed.set()
                return self._acted(reply)
            case Update():
                return self._acted(self._holding.update(request), request.barriers)
            case GetMarks():
                return Marks(self._plane.marks(request.spis))
        return Failed(f"{self._node.name} is a data node: no {type(request).__name__} here")

    def _begin(self, sync: Sync) -> None:
        self._synced = True
        self._say("connected", f"epoch {sync.epoch}, {len(sync.records)} records")
        if self._tasks is not None:
            for notice in self._notices.values():
                self._tasks.start_soon(self._deliver, notice)

    def _acted(self, reply: Reply, barriers: tuple[str, ...] = ()) -> Reply | Awaitable[Reply]:
        """The reply to a message of desired state, when the data path acts on it."""
        settling = self._plane.settle()
        if settling is not None:
            return self._settle(settling, reply, barriers)
        return self._pass_barriers(barriers, reply)

    async def _settle(self, settling: Awaitable[None], reply: Reply, barriers: tuple[str, ...]) -> Reply:
        await settling
        passing = self._pass_barriers(barriers, reply)
        return passing if isinstance(passing, Reply) else await passing

    def _pass_barriers(self, gpns: tuple[str, ...], reply: Reply) -> Reply | Awaitable[Reply]:
        if not gpns or not isinstance(reply, Applied) or reply.refused:
            return reply
        missing: list[str] = []
        echoes: dict[str, Awaitable[None]] = {}
        for gpn in gpns:
            try:
                echoes[gpn] = self._plane.barrier(gpn)
            except ProtegoError as error:
                missing.append(f"{gpn} ({error})")
        return self._await_echoes(echoes, missing, reply)

    async def _await_echoes(
        self, echoes: dict[str, Awaitable[None]], missing: list[str], applied: Applied
    ) -> Reply:
        async def await_one(gpn: str, echo: Awaitable[None]) -> None:
            with trio.move_on_after(self._barrier_timeout) as scope:
                try:
                    await echo
                except ProtegoError as error:
                    missing.append(f"{gpn} ({error})")
            if scope.cancelled_caught:
                missing.append(f"{gpn} (no echo within {self._barrier_timeout:g} s)")

        await together(*(partial(await_one, gpn, echo) for gpn, echo in echoes.items()))
        return (
            Failed(f"{self._node.name}: barrier not passed by {', '.join(missing)}") if missing else applied
        )

    async def _deliver(self, notice: Notice) -> None:
        async with self._slots:
            key = (type(notice), notice.spi_in)
            if self._link is None or not self._synced or self._notices.get(key) is not notice:
                return
            try:
                await self._link.call(notice)
            except Unreachable:
                return  # it waits for the next Sync
            except ProtegoError as error:
                log.warning("notice refused node=%s notice=%r reason=%s", self._node.name, notice, error)
            if self._notices.get(key) is notice:
                del self._notices[key]

    def _say(self, state: str, detail: object) -> None:
        """One line for each change of state; a node that keeps trying stays quiet."""
        if state != self._said:
            self._said = state
            level = logging.INFO if state == "connected" else logging.WARNING
            log.log(level, "control channel %s node=%s reason=%s", state, self._node.name, detail)


class _Certificates:
    """The node's TLS context, made anew when its files have changed."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        """Raises EnvironmentFault."""
        self._cluster = cluster
        self._node = node
        self._files = [cluster.pki / name for name in ("ca.pem", f"{node.name}.pem", f"{node.name}.key")]
        self._seen = self._look()
        self._context = client_context(cluster, node.name)

    def context(self) -> ssl.SSLContext:
        """As the files are now; while they are of no use, as they were: data flows on meanwhile."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = client_context(self._cluster, self._node.name)
            except EnvironmentFault as error:
                log.warning("certificates not taken up node=%s reason=%s", self._node.name, error)
        return self._context

    def _look(self) -> list[tuple[int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, int] | None:
    """Another one when the file is written anew."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
