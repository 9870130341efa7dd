"""`python -m benchmarks.elasticity`: what docs/elasticity.md says of packing policies, measured anew.

- `paper`: the policy `protego` on the calibrated preset, against the figure of the paper;
- `predictive`: the policy `predictive` on synthetic traces of some 15 GPNs, beside the others;
- `speed`: the CPU time of every policy on 170 tunnels, on 10,000, and of one decision for 10,000 tunnels on
  500 GPNs.

Each ends with exit code 1 when a target is missed. Traces come from seeds; nothing is read or kept.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.bench import machine
from benchmarks.decision import live_decision
from protego_cli.control.packing.placement import GpnView, Packer, PackingView, TunnelView
from protego_cli.plugins.manager import load_plugins
from protego_cli.sim.comparison import Outcome, compare
from protego_cli.sim.engine import Setting, simulate
from protego_cli.sim.generator import PRESETS, Recipe, generate
from protego_cli.sim.measures import DEFINITIONS, Measures
from protego_cli.sim.plots import DPI, gpns_over_time, saving_against_guarantee

INTERVALS: Final = (3, 5, 10, 15, 30, 60)  # minutes
PAPER_SEEDS: Final = range(10)

PREDICTIVE: Final = "predictive"
BESIDE: Final = ("protego", "best-fit", "sticky", PREDICTIVE)
SEEDS: Final = 10  # traces of the default recipe
_DEFAULT: Final = PRESETS["default"]
OTHERS: Final = {  # what tunnels may be like, too; three traces of each
    "little noise (sigma 0.1)": replace(_DEFAULT, sigma=0.1),
    "slow noise (phi 0.98)": replace(_DEFAULT, phi=0.98),
    "1,000 small tunnels": replace(_DEFAULT, tunnels=1000, mean=15.3, largest=40.0),
    "tunnels alike (tail 4)": replace(_DEFAULT, tail=4.0),
    "some large tunnels (tail 1.1)": replace(_DEFAULT, tail=1.1, largest=10.0),
    "100 large tunnels": replace(_DEFAULT, tunnels=100, mean=153.0),
    "deep nights (diurnal 0.6)": replace(_DEFAULT, diurnal=0.6),
    "8 bursts a day": replace(_DEFAULT, bursts=8.0),
    "much noise (sigma 0.4)": replace(_DEFAULT, sigma=0.4),
    "fast noise (phi 0.5)": replace(_DEFAULT, phi=0.5),
}


@dataclass(frozen=True)
class Target:
    """What a figure is to be, and how far from it it may be."""

    what: str
    found: float
    low: float
    high: float

    @property
    def met(self) -> bool:
        return self.low <= self.found <= self.high


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every target was met."""
    options = _options().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    targets = list(options.run(options, console))
    shown = Table("target", "figure", "from", "to", box=None, header_style="bold")
    for target in targets:
        cells = (target.what, f"{target.found:.4g}", f"{target.low:g}", f"{target.high:g}")
        shown.add_row(*cells, style="" if target.met else "red")
    console.print(shown)
    missed = [target.what for target in targets if not target.met]
    console.print(f"missed: {', '.join(missed)}" if missed else "every target was met")
    return 1 if missed else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elasticity", description=__doc__)
    commands = parser.add_subparsers(required=True)
    paper = commands.add_parser("paper", help="the paper's figure, on the calibrated preset")
    paper.add_argument("--plot", type=Path, metavar="DIR", help="draw the pictures of docs/elasticity.md")
    paper.set_defaults(run=_paper)
    predictive = commands.add_parser("predictive", help="the policy predictive beside the others")
    predictive.add_argument("--first", type=int, default=100, metavar="SEED", help="of ten; default 100")
    predictive.set_defaults(run=_predictive)
    speed = commands.add_parser("speed", help="how long simulations and decisions take")
    speed.add_argument("--policy", metavar="P[,P2...]", help="only these")
    speed.set_defaults(run=_speed)
    return parser


# ---- what the subcommands share


def figures(
    recipe: Recipe, seeds: Iterable[int], policies: Sequence[str], settings: Sequence[Setting]
) -> dict[tuple[str, float], list[Outcome]]:
    """The outcomes of each policy at each interval in minutes, one for each seed."""
    known = load_plugins().packing_policies()
    found: dict[tuple[str, float], list[Outcome]] = {}
    console = Console(stderr=True)
    for seed in track(list(seeds), "simulating", console=console, disable=not console.is_terminal):
        trace = generate(recipe, seed, f"seed {seed}")
        for outcome in compare([trace], [known[name] for name in policies], settings, _quiet):
            found.setdefault((outcome.policy, outcome.minutes), []).append(outcome)
    return found


def mean(outcomes: Sequence[Outcome]) -> Measures:
    return Measures(
        *(
            float(np.mean([getattr(outcome.run.measures, field.name) for outcome in outcomes]))
            for field in fields(Measures)
        )
    )


def print_means(found: dict[tuple[str, float], list[Outcome]], console: Console) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("policy")
    for column in ("interval", "saving", "guarantee", "served", "GPNs", "LB", "over", "moves/h", "s each"):
        table.add_column(column, justify="right")
    for (policy, minutes), outcomes in found.items():
        means = mean(outcomes)
        table.add_row(
            policy, f"{minutes:g} min",
            f"{means.saving:.1%}", f"{means.guarantee:.2%}", f"{means.served:.3%}",
            f"{means.mean_gpns:.1f}", f"{means.lower_bound:.1f}", f"{means.over:.1%}",
            f"{means.moves_per_hour:.2f}", f"{np.mean([outcome.seconds for outcome in outcomes]):.2f}",
        )  # fmt: skip
    console.print(table)
    for name, meaning in DEFINITIONS:
        console.print(f"  {name}: {meaning}", style="dim", markup=False)


def _quiet(_: str, __: int) -> Callable[[int], None]:
    return lambda step: None


# ---- paper


def _paper(options: argparse.Namespace, console: Console) -> Iterator[Target]:
    """Savings fall from 88 to 82 % and guarantees rise from 90 to 98.6 %, each end within 1.5 points."""
    settings = [Setting(minutes * 60.0) for minutes in INTERVALS]
    found = figures(PRESETS["paper"], PAPER_SEEDS, ["protego"], settings)
    print_means(found, console)
    means = [mean(outcomes) for outcomes in found.values()]
    if options.plot is not None:
        first = [outcomes[0] for outcomes in found.values()]
        named = replace(first[0].trace, name="preset paper")
        options.plot.mkdir(parents=True, exist_ok=True)
        gpns_over_time([first[0]]).savefig(options.plot / "elasticity-3min.png", dpi=DPI)
        gpns_over_time([first[-1]]).savefig(options.plot / "elasticity-60min.png", dpi=DPI)
        saving_against_guarantee(
            [
                replace(outcome, run=replace(outcome.run, measures=each), trace=named)
                for outcome, each in zip(first, means, strict=True)
            ]
        ).savefig(options.plot / "elasticity-paper.png", dpi=DPI)
    for what, at, percent in (
        (f"saving at {INTERVALS[0]} min, %", means[0].saving, 88),
        (f"saving at {INTERVALS[-1]} min, %", means[-1].saving, 82),
        (f"guarantee at {INTERVALS[0]} min, %", means[0].guarantee, 90),
        (f"guarantee at {INTERVALS[-1]} min, %", means[-1].guarantee, 98.6),
    ):
        yield Target(what, 100 * at, percent - 1.5, percent + 1.5)
    falls = -np.diff([each.saving for each in means])
    rises = np.diff([each.guarantee for each in means])
    yield Target("least fall of savings, points", 100 * falls.min(), 0, 100)
    yield Target("least rise of guarantees, points", 100 * rises.min(), 0, 100)


# ---- predictive


def _predictive(options: argparse.Namespace, console: Console) -> Iterator[Target]:
    """Every three minutes, with six seconds from a measurement to its effect."""
    setting = Setting(180.0, reaction=6.0)
    seeds = range(options.first, options.first + SEEDS)
    found = figures(PRESETS["default"], seeds, BESIDE, [setting])
    print_means(found, console)
    outcomes = found[PREDICTIVE, setting.interval / 60]
    table = Table("predictive where", "served", "guarantee", "over", "moves/h", box=None, header_style="bold")
    for what, recipe in OTHERS.items():
        (others,) = figures(recipe, seeds[:3], [PREDICTIVE], [setting]).values()
        means = mean(others)
        table.add_row(
            what, f"{means.served:.3%}", f"{means.guarantee:.2%}", f"{means.over:.1%}",
            f"{means.moves_per_hour:.2f}",
        )  # fmt: skip
    console.print(table)
    each = [outcome.run.measures for outcome in outcomes]
    yield Target("served of the worst seed, %", 100 * min(one.served for one in each), 99.9, 100)
    yield Target("guarantee of the worst seed, %", 100 * min(one.guarantee for one in each), 99.6, 100)
    yield Target("over of the worst seed, %", 100 * max(one.over for one in each), 0, 6)
    yield Target("moves/h of the worst seed", max(one.moves_per_hour for one in each), 0, 1.8)


# ---- speed


def _speed(options: argparse.Namespace, console: Console) -> Iterator[Target]:
    on = machine()
    console.print(f"Linux {on['kernel']}, Python {on['python']}")
    known = load_plugins().packing_policies()
    packers = {name: known[name] for name in (options.policy.split(",") if options.policy else known)}
    for name, packer in packers.items():
        seconds = _simulated(PRESETS["paper"], packer)
        yield Target(f"170 tunnels, 1,440 steps, {name}, s", seconds, 0, 1)
        for question, seconds in decisions(packer):
            yield Target(f"10,000 tunnels on 500 GPNs, {name}.{question}, s", seconds, 0, 0.1)
        yield Target(f"10,000 tunnels on 500 GPNs, {name} in a GMN, s", live_decision(packer), 0, 0.1)
    large = replace(PRESETS["paper"], tunnels=10_000, mean=50.0)
    for name, packer in packers.items():
        yield Target(f"10,000 tunnels, 1,440 steps, {name}, s", _simulated(large, packer), 0, 60)


def _simulated(recipe: Recipe, packer: Packer) -> float:
    """The CPU seconds that a simulation takes, consolidated every three minutes."""
    trace = generate(recipe, 0)
    began = time.process_time()
    simulate(trace, packer, Setting(180.0))
    return time.process_time() - began


def decisions(packer: Packer, tunnels: int = 10_000, gpns: int = 500) -> Iterator[tuple[str, float]]:
    """The CPU seconds of a decision from the rows of a view on, its answer checked; the best of three."""
    trace = generate(replace(PRESETS["paper"], tunnels=tunnels, mean=40.0, duration=3600.0), 0)
    load = trace.demand[-1] / 1000
    where = np.arange(tunnels) % gpns
    sums, counts = np.bincount(where, load).tolist(), np.bincount(where).tolist()
    names = [f"gpn-{number + 1}" for number in range(gpns)]
    running = [GpnView(*row) for row in zip(names, [1.0] * gpns, sums, [True] * gpns, counts, strict=True)]
    spare = [GpnView(f"spare-{number + 1}", 1.0, 0.0, running=False) for number in range(gpns // 5)]
    rows = [
        TunnelView(name, each, names[at])
        for name, each, at in zip(trace.tunnels, load.tolist(), where.tolist(), strict=True)
    ]
    for question in ("plan", "mitigate"):
        best = math.inf
        for _ in range(3):
            began = time.process_time()
            view = PackingView(0.0, [*running, *spare], rows, lambda _: trace.demand / 1000)
            getattr(packer, question)(view)
            best = min(best, time.process_time() - began)
        yield question, best


if __name__ == "__main__":
    sys.exit(main())
