"""Numbers of things, as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protego_cli.sim.trace import Trace


def counted(number: int, noun: str) -> str:
    """`1 tunnel`, `2 tunnels`, `12,000 tunnels`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def extent(trace: Trace) -> str:
    """How much there is in a trace."""
    return f"{counted(len(trace.tunnels), 'tunnel')}, {counted(trace.steps, 'step')} of {trace.step:g} s"
