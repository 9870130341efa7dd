"""Following a job of the control node to its end, as a progress bar on a terminal.

1. Ask how far it is; the answer comes when there is something new (long poll), over one connection.
2. When that breaks, the control node is tried again for a while: the job goes on without us. One that has
   restarted meanwhile knows no such job; what it has gone on with, it is asked for by the same request again.
3. Ctrl-C asks the job to begin nothing more, and its end is awaited; a second one ends the command at once.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import trio
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from protego_cli.config.model import Cluster
from protego_cli.control.channel.client import Ask, converse, expect
from protego_cli.control.channel.message import Request
from protego_cli.control.channel.pool_messages import GetJob, JobStatus, StopJob
from protego_cli.errors import NotFound, ProtegoError, Unreachable

WAIT = 0.5  # seconds that an answer may wait for news; Ctrl-C is noticed as often
PAUSE = 0.1  # between questions: a job has news more often than anybody can read
AWAY = 15.0  # seconds for which the control node may be gone
RETRY = 0.5

Show = Callable[[JobStatus], None]


def follow(
    cluster: Cluster, job: str, *, quiet: bool, again: Request | None = None
) -> tuple[JobStatus, bool]:
    """How the job has ended, and whether it was interrupted from here. Raises as `converse` does.

    `again` is what asks for it where the control node has restarted, and gone on with it under another name.
    """
    console = Console()
    with _progress(console) if console.is_terminal and not quiet else _nothing() as show:
        return trio.run(JobFollower(cluster, job, show, again).run)


class JobFollower:
    def __init__(self, cluster: Cluster, job: str, show: Show, again: Request | None = None) -> None:
        self._cluster = cluster
        self._job = job
        self._show = show
        self._again = again
        self._revision = -1
        self._interrupts = 0
        self._told = False

    async def run(self) -> tuple[JobStatus, bool]:
        outcome: JobStatus | ProtegoError
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
            try:
                outcome = await self._follow()
            except ProtegoError as error:
                outcome = error
            nursery.cancel_scope.cancel()
        if isinstance(outcome, ProtegoError):
            raise outcome
        return outcome, self._told and outcome.state == "stopped"

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                self._interrupts += 1
                if self._interrupts > 1:
                    raise KeyboardInterrupt

    async def _follow(self) -> JobStatus:
        deadline = trio.current_time() + AWAY
        while True:
            known = self._revision
            try:
                return await converse(self._cluster, self._talk)
            except Unreachable:
                if self._revision != known:
                    deadline = trio.current_time() + AWAY
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(RETRY)

    async def _talk(self, ask: Ask) -> JobStatus:
        while True:
            try:
                status = await self._look(ask)
            except NotFound:
                if self._again is None:
                    raise
                status = await expect(ask, self._again, JobStatus)
                self._job, self._told = status.id, False
            self._revision = status.revision
            self._show(status)
            if status.state != "running":
                return status
            await trio.sleep(PAUSE)

    async def _look(self, ask: Ask) -> JobStatus:
        if self._interrupts and not self._told:
            await expect(ask, StopJob(self._job), JobStatus)
            self._told = True
        return await expect(ask, GetJob(self._job, self._revision, WAIT), JobStatus)


@contextlib.contextmanager
def _nothing() -> Iterator[Show]:
    yield lambda status: None


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Show]:
    """A bar that goes away when the job is done: the last word is the command's."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, note="")

        def show(status: JobStatus) -> None:
            failed = f"{len(status.failed)} failed" if status.failed else ""
            bar.update(
                task,
                description=escape(f"{status.kind} {status.subject}"),
                total=status.total or None,
                completed=status.done,
                note=escape("; ".join(filter(None, (failed, status.note)))),
            )

        yield show
