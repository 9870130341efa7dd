"""A trace replayed at `SPEED` times its speed: what each tunnel sends in each step. Pure.

A trace says Mbit/s; a GPN of a trace carries `capacity` of them. On this machine a GPN carries `BANDWIDTH`,
which the cluster file says, so a tunnel's demand becomes bytes per second, half of them each way. The loads
that the gateway measures are then those of the trace, whatever else the machine does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protego_cli.errors import UsageError
from protego_cli.lab.plan import Replay

if TYPE_CHECKING:
    from protego_cli.sim.trace import Trace

SPEED: Final = 60.0
BANDWIDTH: Final = 5_600_000  # bits per second, both ways together: 1000 packets of those that are sent here
MOST_GPNS: Final = 8  # that this machine runs side by side
SHORTEST: Final = 1.0  # seconds of a step here: as often as GPNs report

TUNNELS: Final = 16  # of the trace that is made up
STEPS: Final = 60


def sample() -> Trace:
    """A trace where none is given: an hour in which the load rises from one GPN to three and falls again."""
    import numpy as np

    from protego_cli.sim.trace import make

    random = np.random.default_rng(7)
    weights = random.lognormal(0.0, 0.7, TUNNELS)
    phases = random.uniform(-0.4, 0.4, TUNNELS)
    minutes = np.arange(STEPS)[:, None]
    shape = 1.0 - np.cos(2 * np.pi * minutes / STEPS + phases)
    noise = np.exp(random.normal(0.0, 0.08, (STEPS, TUNNELS)))
    demand = weights / weights.sum() * (600.0 + 1000.0 * shape) * noise
    return make("a made-up hour", np.minimum(demand, 900.0))


def cut(trace: Trace, duration: float | None) -> Trace:
    """The beginning of a trace that is replayed in so many seconds."""
    from protego_cli.sim.trace import Trace

    if duration is None:
        return trace
    steps = max(2, int(duration * SPEED / trace.step))
    return Trace(trace.name, trace.tunnels, trace.demand[:steps].copy(), trace.step)


def replay(trace: Trace, capacity: float) -> Replay:
    """Raises UsageError for a trace that this machine cannot replay."""
    step = trace.step / SPEED
    if step < SHORTEST:
        raise UsageError(
            f"{trace.name}: a step of {trace.step:g} s would pass in {step:g} s here; loads are measured "
            f"every second, so steps of {SHORTEST * SPEED:g} s or more can be replayed"
        )
    loads = trace.demand / capacity
    most = float(loads.sum(axis=1).max())
    if most > MOST_GPNS:
        raise UsageError(
            f"{trace.name}: it needs {most:.1f} GPNs at once, and this machine runs {MOST_GPNS}: say a "
            f"larger --capacity than {capacity:g} Mbit/s, such as {capacity * most / (MOST_GPNS / 2):.0f}"
        )
    each_way = (loads * (BANDWIDTH / 16)).round(3)
    return Replay(step, tuple(tuple(row) for row in each_way.tolist()))
