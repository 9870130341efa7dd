"""Synthetic traces: tunnels of very different size, by day and night, with noise and bursts.

The load of tunnel i in step t is mean_i · day_i(t) · noise_i(t) · burst_i(t), but never more than `line`.

1. Means are heavy-tailed: Pareto distributed with the shape `tail`, none above `largest` times the average,
   scaled so that they average `mean`.
2. `day` is a wave of 24 hours about 1 with the amplitude `diurnal`; it peaks at `peak` o'clock, each tunnel
   `spread` hours (a standard deviation) earlier or later.
3. `noise` is the exponential of an AR(1) process with the standard deviation `sigma` and the correlation
   `phi` from one minute to the next, divided by its mean.
4. `burst` is 1 but for bursts: they come `bursts` times a day to each tunnel, last `length` minutes
   (geometrically distributed), and multiply its load by 1 + an exponentially distributed number of the mean
   `height`.

Everything follows from the seed. Values are rounded to kbit/s: a file holds exactly what was generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from protego_cli.errors import UsageError
from protego_cli.sim.trace import MOST_MBITS, MOST_VALUES, STEP, Trace, make

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats

DAY: Final = 24.0  # hours
_HOUR: Final = 3600.0
_MINUTE: Final = 60.0


@dataclass(frozen=True)
class Recipe:
    tunnels: int = 170
    duration: float = 86400.0  # seconds
    step: float = STEP  # seconds
    mean: float = 90.0  # Mbit/s of a tunnel, on average
    line: float = 1000.0  # Mbit/s
    tail: float = 1.5
    largest: float = 8.0
    diurnal: float = 0.3
    peak: float = 14.0  # o'clock
    spread: float = 2.0  # hours
    sigma: float = 0.25
    phi: float = 0.9
    bursts: float = 2.0  # a day
    length: float = 5.0  # minutes
    height: float = 2.0

    @property
    def steps(self) -> int:
        return round(self.duration / self.step)

    def check(self) -> None:
        """Raises UsageError, which names the first parameter that makes no sense."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name}: expected a number from {low:g} to {high:g}, got {value:g}")
        if self.steps * self.tunnels > MOST_VALUES:
            raise UsageError(
                f"{self.steps:,} steps of {self.tunnels:,} tunnels are more than {MOST_VALUES:,} values"
            )


RANGES: Final = {
    "tunnels": (1, MOST_VALUES),
    "step": (0.001, 86400.0),
    "duration": (0.001, 1e9),
    "mean": (0.0, MOST_MBITS),
    "line": (0.0, MOST_MBITS),
    "tail": (0.1, 100.0),
    "largest": (1.0, 1e6),
    "diurnal": (0.0, 1.0),
    "peak": (0.0, 24.0),
    "spread": (0.0, 24.0),
    "sigma": (0.0, 5.0),
    "phi": (0.0, 0.9999),
    "bursts": (0.0, 1440.0),
    "length": (0.0, 1440.0),
    "height": (0.0, 1000.0),
}
PRESETS: Final = {
    "default": Recipe(),
    # Calibrated, by search: on it the policy `protego` shows the figures that the paper has of its own trace,
    # which is private (docs/elasticity.md). The paper tells neither these parameters nor this model.
    "paper": Recipe(
        mean=107.5, tail=1.25, largest=7.5, diurnal=0.32, spread=1.2, sigma=0.48, phi=0.31, bursts=8.2,
        length=2.85, height=2.0,
    ),
}  # fmt: skip


def generate(recipe: Recipe, seed: int, name: str = "generated") -> Trace:
    """The same recipe and seed always make the same trace. Raises UsageError."""
    recipe.check()
    steps = recipe.steps
    random = np.random.default_rng(seed)
    demand: Floats = _means(recipe, random) * _days(recipe, steps, random)
    demand *= _noise(recipe, steps, random)
    demand *= _bursts(recipe, steps, random)
    return make(name, np.minimum(demand, recipe.line).round(3), recipe.step)


def _means(recipe: Recipe, random: np.random.Generator) -> Floats:
    """Mbit/s of each tunnel."""
    sizes = (1 - random.random(recipe.tunnels)) ** (-1 / recipe.tail)
    for _ in range(8):  # what is cut off the largest goes to the others
        sizes = np.minimum(sizes / sizes.mean(), recipe.largest)
    means: Floats = sizes / sizes.mean() * recipe.mean
    return means


def _days(recipe: Recipe, steps: int, random: np.random.Generator) -> Floats:
    hours = np.arange(steps)[:, np.newaxis] * (recipe.step / _HOUR)
    peaks = recipe.peak + recipe.spread * random.standard_normal(recipe.tunnels)
    days: Floats = 1 + recipe.diurnal * np.cos(2 * np.pi * (hours - peaks) / DAY)
    return days


def _noise(recipe: Recipe, steps: int, random: np.random.Generator) -> Floats:
    kept = recipe.phi ** (recipe.step / _MINUTE)
    noise: Floats = random.standard_normal((steps, recipe.tunnels))
    noise[1:] *= np.sqrt(1 - kept * kept)
    for step in range(1, steps):
        noise[step] += kept * noise[step - 1]
    np.exp(recipe.sigma * noise - recipe.sigma**2 / 2, out=noise)
    return noise


def _bursts(recipe: Recipe, steps: int, random: np.random.Generator) -> Floats:
    bursts: Floats = np.ones((steps, recipe.tunnels))
    expected = recipe.bursts * steps * recipe.step / (DAY * _HOUR)
    for tunnel, count in enumerate(random.poisson(expected, recipe.tunnels).tolist()):
        begins = random.integers(0, steps, count)
        lasts = random.geometric(min(1.0, recipe.step / _MINUTE / max(recipe.length, 1e-9)), count)
        heights = random.exponential(recipe.height, count)
        for begin, last, height in zip(begins.tolist(), lasts.tolist(), heights.tolist(), strict=True):
            bursts[begin : begin + last, tunnel] += height
    return bursts
