"""When which tunnel moves where: a pure plan.

Tunnels take turns, and each goes to the next GPN of the ring, so that every GPN gives and receives. Two
migrations of one tunnel lie far enough apart that the node in between carries packets to be counted by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_SHORTEST_STAY = 0.25  # seconds a tunnel stays on a GPN at least
_FEWEST_PACKETS = 20  # and how many packets should pass meanwhile


class Turn(NamedTuple):
    at: float  # seconds after the start of traffic
    tunnel: str


class Schedule(NamedTuple):
    turns: tuple[Turn, ...]
    ends: float  # when traffic may stop
    stay: float  # how long a tunnel needs on a GPN before its traffic may stop or move on


def schedule(tunnels: Sequence[str], *, migrations: int, duration: float, pps: int) -> Schedule:
    """Spread migrations over `duration`, or over longer where they would come too close."""
    stay = max(_SHORTEST_STAY, _FEWEST_PACKETS / pps)
    if not migrations:
        return Schedule((), duration, stay)
    interval = max((duration - 2 * stay) / migrations, stay / len(tunnels))
    turns = tuple(Turn(stay + k * interval, tunnels[k % len(tunnels)]) for k in range(migrations))
    return Schedule(turns, max(duration, turns[-1].at + stay), stay)


def next_gpn(current: str, gpns: Sequence[str]) -> str:
    """The ring's next node after `current`."""
    return gpns[(gpns.index(current) + 1) % len(gpns)]
