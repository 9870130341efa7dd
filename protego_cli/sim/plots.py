"""Pictures of simulations, by matplotlib, which is an extra: `pip install 'protego-ipsec[plot]'`.

For each trace and interval the GPNs over time against the lower bound; for all together saving against
guarantee, a line for each policy on each trace, through its intervals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from protego_cli.errors import EnvironmentFault
from protego_cli.sim.comparison import Outcome
from protego_cli.sim.measures import lower_bound

SIZE: Final = (8.0, 4.5)  # inches
DPI: Final = 110


def check_matplotlib() -> None:
    """Asked before the work. Raises EnvironmentFault."""
    try:
        import matplotlib.figure  # noqa: F401  # whether it is there
    except ImportError:
        raise EnvironmentFault(
            "--plot needs matplotlib, which is not here: pip install 'protego-ipsec[plot]'"
        ) from None


def draw(outcomes: Sequence[Outcome], directory: Path) -> list[Path]:
    """The pictures, as they were written. Raises EnvironmentFault."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        over_time = dict.fromkeys((outcome.trace.name, outcome.interval) for outcome in outcomes)
        paths = []
        for number, (name, interval) in enumerate(over_time):
            shown = [each for each in outcomes if (each.trace.name, each.interval) == (name, interval)]
            paths.append(directory / f"gpns-{number + 1}-{_slug(Path(name).name)}-{_slug(interval)}.png")
            gpns_over_time(shown).savefig(paths[-1], dpi=DPI)
        paths.append(directory / "saving-guarantee.png")
        saving_against_guarantee(outcomes).savefig(paths[-1], dpi=DPI)
    except OSError as error:
        raise EnvironmentFault(f"{directory}: cannot be written: {error.strerror or error}") from None
    return paths


def gpns_over_time(outcomes: Sequence[Outcome]) -> Any:
    """Of policies on one trace at one interval."""
    trace = outcomes[0].trace
    figure, axes = _figure(
        f"{Path(trace.name).name}, consolidated every {outcomes[0].interval}", "hours", "GPNs"
    )
    hours = np.arange(trace.steps) * trace.step / 3600
    for outcome in outcomes:
        mean = outcome.run.measures.mean_gpns
        axes.step(hours, outcome.run.gpns, where="post", lw=1, label=f"{outcome.policy}, mean {mean:.1f}")
    bound = lower_bound(trace.demand / outcomes[0].setting.capacity)
    axes.step(hours, bound, where="post", lw=1, color="black", label=f"lower bound, mean {bound.mean():.1f}")
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.legend(loc="lower right")
    return figure


def saving_against_guarantee(outcomes: Sequence[Outcome]) -> Any:
    figure, axes = _figure(
        "throughput guarantee (99 % of the tunnels) against saving", "saving, %", "guarantee, %"
    )
    for name, policy in dict.fromkeys((each.trace.name, each.policy) for each in outcomes):
        line = [each for each in outcomes if (each.trace.name, each.policy) == (name, policy)]
        x = [100 * each.run.measures.saving for each in line]
        y = [100 * each.run.measures.guarantee for each in line]
        axes.plot(x, y, marker="o", lw=1, label=f"{policy}, {Path(name).name}")
        for each, at in zip(line, zip(x, y, strict=True), strict=True):
            axes.annotate(each.interval, at, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.legend(loc="best")
    return figure


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "trace"
