"""Several policies at several intervals on several traces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from protego_cli.control.packing.placement import Packer
from protego_cli.sim.engine import Run, Setting, simulate
from protego_cli.sim.trace import Trace

# Hears what is simulated next, and of how many steps; gives what hears of each one.
Watch = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True, eq=False)
class Outcome:
    trace: Trace
    policy: str
    setting: Setting
    run: Run
    seconds: float

    @property
    def minutes(self) -> float:
        return self.setting.interval / 60

    @property
    def interval(self) -> str:
        return shown(self.setting.interval)

    def document(self) -> dict[str, object]:
        """As `protego simulate --json` prints it."""
        found = self.run.measures
        return {
            "trace": self.trace.name,
            "policy": self.policy,
            "interval_min": int(self.minutes) if self.minutes.is_integer() else self.minutes,
            "saving": found.saving,
            "guarantee": found.guarantee,
            "served": found.served,
            "mean_gpns": found.mean_gpns,
            "lower_bound": found.lower_bound,
            "over": found.over,
            "moves_per_hour": found.moves_per_hour,
            "seconds": self.seconds,
        }


def shown(seconds: float) -> str:
    """In minutes where these are whole."""
    return f"{seconds:g} s" if seconds % 60 else f"{seconds / 60:g} min"


def compare(
    traces: Sequence[Trace], packers: Sequence[Packer], settings: Sequence[Setting], watch: Watch
) -> Iterator[Outcome]:
    """Each policy at each setting on each trace. Raises as `simulate` does, for settings before it begins."""
    for trace in traces:
        for setting in settings:
            setting.every(trace)
            setting.share(trace)
    for trace in traces:
        for packer in packers:
            named = replace(packer, told=lambda fault, tunnel: None)  # it is raised, and need not be logged
            for setting in settings:
                what = f"{trace.name}: {packer.policy.name} every {shown(setting.interval)}"
                progress = watch(what, trace.steps)
                began = time.perf_counter()
                run = simulate(trace, named, setting, progress)
                yield Outcome(trace, packer.policy.name, setting, run, time.perf_counter() - began)
