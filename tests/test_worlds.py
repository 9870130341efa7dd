"""Whole gateways from seeds keep their promises, and worlds that break one are caught.

PROTEGO_WORLDS=5000 runs so many seeds; `python -m tests.worlds SEED` one alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import trio

from protego_cli.control.channel.desired_records import Park
from protego_cli.control.procedures.parting import Parting
from protego_cli.control.sas.ranges import SealingRange, SealingRanges
from protego_cli.control.sas.tunnel import Placed
from protego_cli.esp.outbound import Outbound
from protego_cli.esp.replay import ReplayWindow
from protego_cli.net.egress import MuxEgress
from protego_cli.roles.gen import GenPlane
from protego_cli.roles.gpn import GpnPlane
from tests.worlds.scenario import play

SEEDS = int(os.environ.get("PROTEGO_WORLDS", "400"))
FOUND = (  # by hunting
    70149,  # an SA that nobody rekeyed although it might open nothing
    70693,
    200639,  # a GEN that would not give a packet back to the GPN that sealed for it meanwhile
    1204461,  # an IKE_AUTH that came again to a new life, when its first SA had sealed already
    1270720,  # a rekey of ours, answered behind the peer's own to a GMN that died then: both SAs stayed
)


@pytest.mark.parametrize("seed", [*range(SEEDS), *FOUND])
def test_a_world(seed: int) -> None:
    play(seed)


def test_a_seed_repeats_exactly() -> None:
    """In any process: whatever strings hash to there."""
    seeds = [str(seed) for seed in range(12)]

    def run(hashing: str) -> str:
        command = [sys.executable, "-m", "tests.worlds", *seeds]
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    first = run("1")
    assert first.count("delivered") == len(seeds)
    assert run("2") == first


# ---- worlds that break a promise


def no_barrier(patch: pytest.MonkeyPatch) -> None:
    async def barrier(self: GenPlane, gpn: str) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(GenPlane, "barrier", barrier)


def no_round_trip(patch: pytest.MonkeyPatch) -> None:
    begin = Parting.begin

    def at_once(self: Parting, *olds: Placed) -> None:
        for trip in self._trips.values():
            trip.withdraw()
        self._trips.clear()
        begin(self, *olds)

    patch.setattr(Parting, "begin", at_once)


def no_diverting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbound, "divert", lambda self, tunnel, diverted: None)


def no_parking(patch: pytest.MonkeyPatch) -> None:
    put = GpnPlane.put
    patch.setattr(GpnPlane, "put", lambda self, record: isinstance(record, Park) or put(self, record))


def one_range_for_all(patch: pytest.MonkeyPatch) -> None:
    def grant(self: SealingRanges, spi_in: int, *, esn: bool = False, used: int = 0) -> SealingRange:
        self._granted[spi_in] = 1
        return SealingRange(1, 1 << 30)

    patch.setattr(SealingRanges, "grant", grant)
    patch.setattr("tests.support.gmn_fabric.DataNodes._check_numbers", lambda self, node, sa: None)


def no_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplayWindow, "commit", lambda self, number: None)
    patch.setattr(ReplayWindow, "commit_row", lambda self, numbers: None)


def one_tenant_for_all(patch: pytest.MonkeyPatch) -> None:
    put = MuxEgress.put_route

    def put_route(self: MuxEgress, tunnel: str, vni: int, prefixes: Sequence[str], gpn: str) -> None:
        put(self, tunnel, 1001, prefixes, gpn)

    patch.setattr(MuxEgress, "put_route", put_route)


SABOTAGES: dict[Callable[[pytest.MonkeyPatch], None], tuple[str, int]] = {
    no_barrier: ("lost in a calm world", 420),  # only a peer's own rekey that moves its tunnel can tell
    no_round_trip: ("lost in a calm world", 0),
    no_diverting: ("lost in a calm world", 0),
    no_parking: ("lost in a calm world", 0),
    one_range_for_all: ("seals twice", 0),
    no_commit: ("a second time", 0),
    one_tenant_for_all: ("lost in a calm world", 0),
}
"""What they are caught for, and the first seed that is tried."""


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.__name__)
def test_a_broken_promise_is_caught(sabotage: Callable[[pytest.MonkeyPatch], None]) -> None:
    """By one of some seeds, and for that reason."""
    reason, first = SABOTAGES[sabotage]
    with pytest.MonkeyPatch.context() as patch:
        sabotage(patch)
        for seed in range(first, first + SEEDS):
            try:
                play(seed)
            except BaseExceptionGroup as error:
                if reason in " ".join(map(str, broken(error))):
                    return
    pytest.fail(f"{SEEDS} seeds do not notice")


def broken(error: BaseException) -> list[BaseException]:
    """What a run ended with."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in broken(part)]
    return [error]
