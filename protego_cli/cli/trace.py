"""`protego trace`: traces of loads, made up or taken from a live cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from protego_cli.cli.counting import extent
from protego_cli.cli.options import ClusterFile

app = typer.Typer(help="Traces of tunnels' loads, for `protego simulate`.", no_args_is_help=True)

Target = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="What to write: a .csv, .csv.gz or .parquet.", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
PRESETS = ("default", "paper")


def _knob(metavar: str, text: str) -> Any:
    """An option whose default is the preset's."""
    return typer.Option(metavar=metavar, help=text, show_default=False)


@app.command()
def generate(
    file: Target,
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Whatever no option says: default, or paper (calibrated to the paper's figure).",
            autocompletion=lambda incomplete: [name for name in PRESETS if name.startswith(incomplete)],
        ),
    ] = "default",
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed makes the same trace.")] = 0,
    tunnels: Annotated[int | None, _knob("N", "How many.")] = None,
    duration: Annotated[str | None, _knob("24h", "How long.")] = None,
    step: Annotated[str | None, _knob("60s", "Time between two rows.")] = None,
    mean: Annotated[float | None, _knob("MBITS", "Mbit/s of a tunnel, on average over all.")] = None,
    line: Annotated[float | None, _knob("MBITS", "Mbit/s that no tunnel exceeds.")] = None,
    tail: Annotated[
        float | None, _knob("A", "Shape of the tunnels' Pareto distributed means; small is heavy.")
    ] = None,
    largest: Annotated[float | None, _knob("X", "The most of a tunnel's mean, in averages.")] = None,
    diurnal: Annotated[float | None, _knob("A", "Amplitude of the daily wave, 0 to 1.")] = None,
    peak: Annotated[float | None, _knob("HOUR", "When that peaks.")] = None,
    spread: Annotated[float | None, _knob("HOURS", "How far tunnels' peaks lie apart (σ).")] = None,
    sigma: Annotated[float | None, _knob("S", "Standard deviation of the noise's logarithm.")] = None,
    phi: Annotated[float | None, _knob("R", "Its correlation from a minute to the next.")] = None,
    bursts: Annotated[float | None, _knob("N", "Bursts of a tunnel in a day.")] = None,
    length: Annotated[float | None, _knob("MINUTES", "How long one lasts, on average.")] = None,
    height: Annotated[float | None, _knob("X", "What one adds, on average, in loads of before.")] = None,
    force: Force = False,
) -> None:
    """Make a synthetic trace: tunnels of very different size, by day and night, with noise and bursts."""
    from dataclasses import replace

    from protego_cli.cli.simulation_view import Watcher
    from protego_cli.cli.times import seconds
    from protego_cli.errors import UsageError
    from protego_cli.sim.generator import PRESETS as RECIPES
    from protego_cli.sim.generator import generate as make
    from protego_cli.sim.writing import check_target, write

    check_target(file, force=force)
    if preset not in RECIPES:
        raise UsageError(f"--preset: there is no {preset!r}; known: {', '.join(RECIPES)}")
    given = {
        "tunnels": tunnels,
        "duration": None if duration is None else seconds(duration, "--duration"),
        "step": None if step is None else seconds(step, "--step"),
        "mean": mean,
        "line": line,
        "tail": tail,
        "largest": largest,
        "diurnal": diurnal,
        "peak": peak,
        "spread": spread,
        "sigma": sigma,
        "phi": phi,
        "bursts": bursts,
        "length": length,
        "height": height,
    }
    if seed < 0:
        raise UsageError(f"--seed: expected a number from 0, got {seed}")
    recipe = replace(RECIPES[preset], **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]  # each is of its field's type
    with Watcher() as watcher:
        watcher("generating")
        trace = make(recipe, seed, str(file))
        watcher(f"writing {file}")
        write(trace, file)
    typer.echo(f"{file}: {extent(trace)}, {trace.demand.sum(axis=1).mean():,.0f} Mbit/s on average")


@app.command()
def record(
    file: Target,
    interval: Annotated[str, typer.Option(metavar="10s", help="Time between two rows.")] = "10s",
    duration: Annotated[
        str | None,
        typer.Option(metavar="1h", help="How long [default: until Ctrl-C].", show_default=False),
    ] = None,
    force: Force = False,
    cluster: ClusterFile = None,
) -> None:
    """Record what each tunnel of the running cluster carries, both ways together.

    Asks the control node for the tunnels' byte counters again and again. Ctrl-C ends it; the file then holds
    all whole steps. While no control node answers it waits, and spreads what passed meanwhile evenly.
    """
    from protego_cli.cli.recording import record as run
    from protego_cli.cli.simulation_view import Watcher
    from protego_cli.cli.times import seconds
    from protego_cli.config.load import find, load
    from protego_cli.errors import UsageError
    from protego_cli.sim.writing import check_target, write

    check_target(file, force=force)
    every = seconds(interval, "--interval")
    if every < 1:
        raise UsageError("--interval: expected at least 1s; GPNs report once a second")
    lasts = None if duration is None else seconds(duration, "--duration")
    if lasts is not None and lasts < every:
        raise UsageError("--duration: expected at least one --interval")
    trace = run(load(find(cluster)), str(file), every, lasts)
    with Watcher() as watcher:
        watcher(f"writing {file}")
        write(trace, file)
    typer.echo(f"{file}: {extent(trace)}")
