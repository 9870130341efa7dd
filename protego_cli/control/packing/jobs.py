"""Work of the GMN that outlives the request which began it: it goes on whether or not anybody watches.

1. `Jobs.start` begins one and returns; its state is a `JobStatus`.
2. An operator follows it with `GetJob`, over as many connections as it takes: the answer comes when there is
   something new, or after a moment (long poll).
3. `Job.stop` asks it to end: what it has begun is completed, nothing more is begun.

Those that have ended can be asked for until `KEPT` others have.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import trio

from protego_cli.control.channel.pool_messages import JobFault, JobStatus
from protego_cli.errors import NotFound, ProtegoError

log = logging.getLogger(__name__)

KEPT: Final = 32
PATIENCE: Final = 5.0  # seconds that an answer waits for news at most

JobState = Literal["running", "done", "stopped", "failed"]


class Job:
    def __init__(self, name: str, kind: str, subject: str) -> None:
        self.id = name
        self.kind = kind
        self.subject = subject
        self.state: JobState = "running"
        self.total = 0  # things to do, as far as is known
        self.done = 0
        self.failed: dict[str, str] = {}  # thing -> why
        self.note = ""  # what it is at, where that is not the things themselves
        self.stopping = trio.Event()
        self._began = trio.current_time()
        self._ended: float | None = None
        self._revision = 0
        self._news = trio.Event()

    def finish(self, thing: str) -> None:
        """Done, perhaps in a second attempt."""
        self.failed.pop(thing, None)
        self.done += 1
        self.changed()

    def fail(self, thing: str, reason: str) -> None:
        self.failed[thing] = reason
        self.changed()

    def stop(self) -> None:
        self.stopping.set()
        self.changed()

    def end(self, state: JobState) -> None:
        self.state = state
        self._ended = trio.current_time()
        self.changed()

    def changed(self) -> None:
        """Tell those who follow."""
        self._revision += 1
        self._news.set()
        self._news = trio.Event()

    async def news(self, revision: int, wait: float) -> JobStatus:
        """The state, once it is newer than `revision` or `wait` seconds have passed."""
        with trio.move_on_after(min(wait, PATIENCE)):
            while self._revision <= revision and self.state == "running":
                await self._news.wait()
        return self.status()

    def status(self) -> JobStatus:
        ended = trio.current_time() if self._ended is None else self._ended
        return JobStatus(
            id=self.id,
            kind=self.kind,
            subject=self.subject,
            state=self.state,
            total=self.total,
            done=self.done,
            failed=tuple(JobFault(thing, reason) for thing, reason in self.failed.items()),
            note=self.note,
            seconds=round(ended - self._began, 3),
            revision=self._revision,
        )

    async def unless_stopped(self, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait, but no longer than until the job is to end."""
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await self.stopping.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            await wait()
            nursery.cancel_scope.cancel()


class Jobs:
    def __init__(self, epoch: int, tasks: trio.Nursery) -> None:
        """The jobs run in `tasks`. A job's name tells the GMN's life, too: another one does not know it."""
        self._epoch = epoch
        self._tasks = tasks
        self._jobs: dict[str, Job] = {}  # oldest first
        self._count = 0

    def start(self, kind: str, subject: str, work: Callable[[Job], Awaitable[None]]) -> Job:
        """Begin a job: `work` does it, counts in it what it does, and raises ProtegoError when it can't."""
        self._count += 1
        job = Job(f"{self._epoch}-{self._count}", kind, subject)
        ended = [name for name, each in self._jobs.items() if each.state != "running"]
        for name in ended[: max(0, len(ended) - KEPT + 1)]:
            del self._jobs[name]
        self._jobs[job.id] = job
        self._tasks.start_soon(self._run, job, work)
        return job

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        try:
            await work(job)
        except ProtegoError as error:
            log.warning("job failed kind=%s subject=%s reason=%s", job.kind, job.subject, error)
            job.note = str(error)
            job.end("failed")
        else:
            job.end("stopped" if job.stopping.is_set() else "done")

    def running(self, kind: str, subject: str | None = None) -> Job | None:
        """A job of this kind that runs, and asks nobody to end it."""
        for job in self._jobs.values():
            if job.state != "running" or job.stopping.is_set():
                continue
            if job.kind == kind and subject in (None, job.subject):
                return job
        return None

    def find(self, name: str) -> Job:
        """Raises NotFound."""
        try:
            return self._jobs[name]
        except KeyError:
            raise NotFound(
                f"there is no job {name!r}: it ended long ago, or the control node has restarted; "
                f"`protego status` shows where things stand"
            ) from None
