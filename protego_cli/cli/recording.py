"""Recording a trace: the control node is asked for its counters at even intervals, until Ctrl-C."""

from __future__ import annotations

import signal

import trio
from rich.console import Console

from protego_cli.cli.asking import ask_status
from protego_cli.cli.counting import counted
from protego_cli.config.model import Cluster
from protego_cli.errors import Unreachable
from protego_cli.sim.recorder import Recorder
from protego_cli.sim.trace import Trace

PATIENCE = 5.0  # seconds for one answer


def record(cluster: Cluster, name: str, interval: float, duration: float | None) -> Trace:
    """Raises Unreachable when nobody answers the first question, TraceError when nothing was recorded."""
    recording = _Recording(cluster, interval, duration)
    trio.run(recording.run)
    return recording.recorder.trace(name)


class _Recording:
    def __init__(self, cluster: Cluster, interval: float, duration: float | None) -> None:
        self.recorder = Recorder(interval)
        self._cluster = cluster
        self._interval = interval
        self._steps = None if duration is None else int(duration / interval)
        self._console = Console(stderr=True, highlight=False, markup=False)

    async def run(self) -> None:
        self.recorder.feed(await self._counts())
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen, nursery.cancel_scope)
            await self._record(began)
            nursery.cancel_scope.cancel()

    async def _listen(self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                scope.cancel()

    async def _record(self, began: float) -> None:
        recorder, away = self.recorder, False
        with self._console.status("recording; Ctrl-C ends it") as shown:
            passed = 0
            while not recorder.full and (self._steps is None or recorder.steps < self._steps):
                await trio.sleep_until(began + (passed + 1) * self._interval)
                passed = int((trio.current_time() - began) / self._interval + 1e-6)
                try:
                    counts = await self._counts()
                except Unreachable as error:
                    if not away:
                        self._console.print(
                            f"the control node is gone: {error}; waiting for it", soft_wrap=True
                        )
                    away = True
                    continue
                away = False
                recorder.feed(counts, passed - recorder.steps)
                shown.update(
                    f"recording; Ctrl-C ends it: {counted(recorder.steps, 'step')} of "
                    f"{counted(recorder.tunnels, 'tunnel')}"
                )

    async def _counts(self) -> dict[str, int]:
        """Bytes of each tunnel, both ways."""
        with trio.move_on_after(PATIENCE):
            status = await ask_status(self._cluster)
            return {tunnel.id: tunnel.bytes_in + tunnel.bytes_out for tunnel in status.tunnels}
        raise Unreachable(f"no answer within {PATIENCE:g} s")
