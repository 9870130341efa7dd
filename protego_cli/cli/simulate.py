"""`protego simulate`: what packing policies would have done with a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protego_cli.cli.options import AsJson, complete_policies

if TYPE_CHECKING:
    from protego_cli.control.packing.placement import Packer


def simulate(
    trace: Annotated[
        list[Path],
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Mbit/s of each tunnel (columns) in each step (rows): CSV, gzipped or not, or Parquet. "
            "May be given several times.",
            show_default=False,
        ),
    ],
    policy: Annotated[
        str,
        typer.Option(
            metavar="P[,P2...]", help="Packing policies to compare.", autocompletion=complete_policies
        ),
    ] = "protego",
    interval: Annotated[
        str, typer.Option(metavar="3m[,10m...]", help="Times between two consolidations.")
    ] = "3m,10m,60m",
    capacity: Annotated[float, typer.Option(metavar="MBITS", help="Mbit/s that one GPN carries.")] = 1000.0,
    reaction: Annotated[
        str | None,
        typer.Option(
            metavar="6s",
            help="Time from a measured load to the new placement that it leads to [default: a whole step].",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            metavar="60s",
            help="Time between two rows [default: what the trace's times say, or 60s].",
            show_default=False,
        ),
    ] = None,
    max_moves: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="The most moves of one tunnel in an hour [default: any].", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw pictures into this directory.", show_default=False),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            "--cluster",
            "-c",
            metavar="FILE",
            help="A cluster file, for the policies of its plugins.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run packing policies on a trace of loads: how many GPNs, how much served, how many moves.

    The policies are the very objects that place tunnels in a live cluster. Every figure is defined below the
    table. `protego trace generate` makes a trace, `protego trace record` takes one from a live cluster.
    """
    import math

    from protego_cli.cli.simulation_view import Watcher, print_outcomes
    from protego_cli.cli.times import durations, seconds
    from protego_cli.errors import UsageError
    from protego_cli.sim.comparison import compare
    from protego_cli.sim.engine import Setting
    from protego_cli.sim.plots import check_matplotlib, draw
    from protego_cli.sim.reading import read
    from protego_cli.sim.trace import MOST_MBITS

    if not 0.001 <= capacity <= MOST_MBITS:
        raise UsageError(f"--capacity: expected Mbit/s from 0.001 to {MOST_MBITS:g}, got {capacity:g}")
    if max_moves is not None and max_moves < 0:
        raise UsageError(f"--max-moves: expected a number from 0, got {max_moves}")
    reacted = None if reaction is None else seconds(reaction, "--reaction")
    most = math.inf if max_moves is None else max_moves
    settings = [Setting(each, capacity, reacted, most) for each in durations(interval, "--interval")]
    told = None if step is None else seconds(step, "--step")
    if told == 0:
        raise UsageError("--step: expected a duration above 0")
    packers = _packers(policy, cluster)
    if plot is not None:
        check_matplotlib()
    with Watcher() as watcher:
        traces = []
        for path in dict.fromkeys(trace):
            watcher(f"reading {path}")
            traces.append(read(path, told))
        outcomes = list(compare(traces, packers, settings, watcher.of_steps))
        if plot is not None:
            watcher("drawing")
            for picture in draw(outcomes, plot):
                watcher.say(f"drew {picture}")
    print_outcomes(outcomes, as_json=as_json)


def _packers(policy: str, cluster: Path | None) -> list[Packer]:
    from protego_cli.config.load import load_plugins_section
    from protego_cli.errors import UsageError
    from protego_cli.plugins.manager import load_plugins

    plugins = load_plugins(load_plugins_section(cluster) if cluster else None)
    known = plugins.packing_policies()
    names = list(dict.fromkeys(name.strip() for name in policy.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(
                f"no plugin provides the packing policy {name!r}; known: {', '.join(sorted(known))}"
            )
    return [known[name] for name in names]
