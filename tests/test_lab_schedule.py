"""When which tunnel moves where."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest

from protego_cli.lab.schedule import next_gpn, schedule

TUNNELS = tuple(f"t{i}/hq" for i in range(1, 9))


@pytest.mark.parametrize(
    ("migrations", "duration", "pps"), [(24, 20, 200), (100, 20, 200), (100, 1, 200), (3, 1, 1)]
)
def test_a_tunnel_stays_long_enough_to_carry_packets(migrations: int, duration: float, pps: int) -> None:
    timetable = schedule(TUNNELS, migrations=migrations, duration=duration, pps=pps)
    times: dict[str, list[float]] = defaultdict(lambda: [0.0])
    for turn in timetable.turns:
        times[turn.tunnel].append(turn.at)
    assert sum(len(moved) - 1 for moved in times.values()) == migrations
    for moved in times.values():
        for before, after in pairwise([*moved, timetable.ends]):
            assert after - before >= 0.249
            assert (after - before) * pps >= 19.9


def test_migrations_fill_the_duration_and_no_more_where_there_is_time() -> None:
    assert schedule(TUNNELS, migrations=24, duration=20, pps=200).ends == 20
    assert schedule(TUNNELS, migrations=0, duration=5, pps=200) == ((), 5, 0.25)
    assert schedule(TUNNELS[:1], migrations=100, duration=1, pps=200).ends > 25


def test_targets_go_round() -> None:
    ring = ["gpn-1", "gpn-2", "gpn-3"]
    assert [next_gpn(name, ring) for name in ring] == ["gpn-2", "gpn-3", "gpn-1"]
