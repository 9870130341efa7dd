"""What `protego simulate` shows: progress, the table of outcomes, and what its figures mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from protego_cli.cli.counting import extent
from protego_cli.cli.render import UNBOUNDED, print_json, show, wide_console
from protego_cli.sim.comparison import Outcome
from protego_cli.sim.measures import DEFINITIONS
from protego_cli.sim.trace import Trace

EVERY = 64  # steps between two looks at the progress
COLUMNS: dict[str, Callable[[Outcome], str]] = {
    "trace": lambda outcome: outcome.trace.name,
    "policy": lambda outcome: outcome.policy,
    "interval": lambda outcome: outcome.interval,
    "saving": lambda outcome: f"{outcome.run.measures.saving:.1%}",
    "guarantee": lambda outcome: f"{outcome.run.measures.guarantee:.2%}",
    "served": lambda outcome: f"{outcome.run.measures.served:.3%}",
    "GPNs": lambda outcome: f"{outcome.run.measures.mean_gpns:.1f}",
    "LB": lambda outcome: f"{outcome.run.measures.lower_bound:.1f}",
    "over": lambda outcome: f"{outcome.run.measures.over:.1%}",
    "moves/h": lambda outcome: f"{outcome.run.measures.moves_per_hour:.2f}",
    "seconds": lambda outcome: f"{outcome.seconds:.2f}",
}
SPARE = ("seconds", "LB", "over")  # hidden in this order where narrow


class Watcher:
    """Progress on stderr, where that is a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Watcher:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, doing: str, total: int | None = None) -> None:
        self._progress.reset(self._task, description=doing, total=total)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, soft_wrap=True)

    def of_steps(self, doing: str, steps: int) -> Callable[[int], None]:
        self(doing, steps)

        def progress(done: int) -> None:
            if not done % EVERY:
                self._progress.update(self._task, completed=done)

        return progress


def print_outcomes(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    if as_json:
        print_json({"runs": [outcome.document() for outcome in outcomes]})
        return
    traces = {outcome.trace.name: outcome for outcome in outcomes}
    show(
        *(Text(_about(outcome.trace, outcome)) for outcome in traces.values()),
        Text(),
        _outcomes(outcomes, several=len(traces) > 1),
        Text(),
        _definitions(),
    )


def _about(trace: Trace, outcome: Outcome) -> str:
    setting = outcome.setting
    return (
        f"{trace.name}: {extent(trace)}, GPNs of {setting.capacity:g} Mbit/s, ρ = {setting.share(trace):.3g}"
    )


def _outcomes(outcomes: Sequence[Outcome], *, several: bool) -> Table:
    """With as many columns as there is room for: rather without one than with cells cut off."""
    console = wide_console()
    unbounded = console.options.update(max_width=UNBOUNDED)
    for hidden in range(len(SPARE) + 1):
        shown = _table(outcomes, SPARE[:hidden], several=several)
        if console.measure(shown, options=unbounded).maximum <= console.width:
            break
    return shown


def _table(outcomes: Sequence[Outcome], hidden: Sequence[str], *, several: bool) -> Table:
    columns = [name for name in COLUMNS if name not in hidden and (several or name != "trace")]
    shown = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for name in columns:
        shown.add_column(name, justify="left" if name in ("trace", "policy") else "right", overflow="fold")
    for outcome in outcomes:
        shown.add_row(*(COLUMNS[name](outcome) for name in columns))
    return shown


def _definitions() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, meaning in DEFINITIONS:
        grid.add_row(Text(name, style="bold"), Text(meaning, style="dim"))
    return grid
