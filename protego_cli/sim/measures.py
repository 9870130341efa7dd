"""What a simulation comes to. `DEFINITIONS` says how; it is printed with every result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats, Ints

WORST: Final = 0.01  # share of the tunnels that the guarantee is about

DEFINITIONS: Final = (
    ("load", "d of a tunnel in a step: its Mbit/s over the capacity of a GPN, which is 1"),
    ("served", "of d: d / max(1, load of its GPN); in total ΣΣserved / ΣΣd"),
    (
        "reaction",
        "ρ of each step passes before its decision takes effect: served = ρ·old + (1-ρ)·new placement",
    ),
    ("GPNs", "those that a tunnel is on when the step's decision has taken effect"),
    ("saving", "1 - mean(GPNs) / tunnels"),
    ("guarantee", "mean of Σserved / Σd over the worst 1 % of the tunnels (rounded up); 1 where Σd is 0"),
    ("LB", "lower bound of the GPNs: mean over the steps of max(1, ⌈Σd⌉)"),
    ("over", "mean(GPNs) / LB - 1"),
    ("moves/h", "moves / tunnels / hours; the first placement is none"),
)


@dataclass(frozen=True)
class Measures:
    """`DEFINITIONS` says what each is."""

    saving: float
    guarantee: float
    served: float
    mean_gpns: float
    lower_bound: float
    over: float
    moves_per_hour: float


def measure(loads: Floats, lost: Floats, gpns: Ints, moves: int, step: float) -> Measures:
    """`loads` by step and tunnel in GPNs; what each tunnel lost of them; GPNs in each step; all moves."""
    steps, tunnels = loads.shape
    asked = loads.sum(axis=0)
    ratio = np.ones(tunnels)
    np.divide(asked - lost, asked, out=ratio, where=asked > 0)
    worst = np.sort(ratio)[: math.ceil(WORST * tunnels)]
    total = float(asked.sum())
    mean = float(gpns.mean())
    bound = float(lower_bound(loads).mean())
    return Measures(
        saving=1 - mean / tunnels,
        guarantee=float(worst.mean()),
        served=1 - float(lost.sum()) / total if total > 0 else 1.0,
        mean_gpns=mean,
        lower_bound=bound,
        over=mean / bound - 1,
        moves_per_hour=moves / tunnels / (steps * step / 3600.0),
    )


def lower_bound(loads: Floats) -> Floats:
    """No packing takes fewer GPNs in a step."""
    bound: Floats = np.maximum(1.0, np.ceil(loads.sum(axis=1)))
    return bound
