"""The receipt's arithmetic and its verdict; pacing without drift."""

from __future__ import annotations

import msgspec

from protego_cli.lab.endpoint import TICK, Pacer
from protego_cli.lab.protocol import SiteCount, Snapshot
from protego_cli.lab.receipt import Move, Receipt, make_receipt, percentile

TUNNELS = ("t1/hq", "t2/hq")


def ends(*, lost: int = 0, **tenant_faults: int) -> tuple[Snapshot, Snapshot]:
    peers = Snapshot((SiteCount(sent=1000, received=900), SiteCount(sent=1000, received=900)), seconds=5.0)
    tenants = Snapshot(
        (
            SiteCount(sent=900, received=1000 - lost, via={"gpn-1": 600, "gpn-2": 400}),
            SiteCount(sent=900, received=1000, reordered=2, via={"gpn-2": 1000}),
        ),
        seconds=4.5,
        **tenant_faults,
    )
    return peers, tenants


MOVES = (
    Move("t1/hq", "gpn-1", "gpn-2", 8.0, {"gpn-1": 300}),
    Move("t1/hq", "gpn-2", "gpn-1", 12.0, {"gpn-1": 310, "gpn-2": 400}),
)


def test_a_clean_run() -> None:
    receipt = make_receipt(*ends(), TUNNELS, MOVES)
    assert receipt.faults() == []
    assert (receipt.sent, receipt.received, receipt.lost, receipt.reordered) == (3800, 3800, 0, 2)
    assert receipt.pps == 200.0
    assert [(m.via_old, m.via_new) for m in receipt.per_migration] == [(300, 400), (400, 290)]


def test_the_json_is_the_contract() -> None:
    receipt = msgspec.to_builtins(make_receipt(*ends(), TUNNELS, MOVES))
    assert list(receipt) == [
        *("tunnels", "migrations", "sent", "received", "lost", "misdelivered", "corrupted", "duplicated"),
        *("reordered", "pps", "migration_ms", "per_migration"),
    ]
    assert receipt["migration_ms"] == {"p50": 8.0, "p99": 12.0, "max": 12.0}
    assert receipt["per_migration"][0] == {
        "tunnel": "t1/hq",
        "from": "gpn-1",
        "to": "gpn-2",
        "via_old": 300,
        "via_new": 400,
    }


def test_each_fault_fails_the_run() -> None:
    def faults(**broken: int) -> list[str]:
        return make_receipt(*ends(**broken), TUNNELS, MOVES).faults()

    assert faults(lost=1) == ["1 packet was lost"]
    assert faults(misdelivered=2) == ["2 packets were misdelivered"]
    assert faults(corrupted=1) == ["1 packet was corrupted"]
    peers, tenants = ends()
    again = msgspec.structs.replace(
        peers, sites=(SiteCount(sent=1000, received=900, duplicated=3), peers.sites[1])
    )
    assert make_receipt(again, tenants, TUNNELS, MOVES).faults() == ["3 packets were duplicated"]


def test_a_loss_in_one_flow_is_not_hidden_by_another() -> None:
    """More received than sent can't happen, so each flow's loss adds up."""
    peers, tenants = ends(lost=5)
    assert make_receipt(peers, tenants, TUNNELS, ()).lost == 5


def test_a_migration_that_carried_nothing_fails_the_run() -> None:
    idle = Move("t2/hq", "gpn-1", "gpn-2", 8.0, {"gpn-1": 0, "gpn-2": 0})
    receipt = make_receipt(*ends(), TUNNELS, (idle,))
    assert receipt.faults() == ["migration 1 of t2/hq: gpn-1 carried no packet"]


def test_a_run_without_traffic_fails() -> None:
    nothing = Snapshot((SiteCount(),))
    receipt: Receipt = make_receipt(nothing, nothing, TUNNELS[:1], ())
    assert receipt.faults() == ["no packet arrived at all"]


def test_percentiles_are_by_nearest_rank() -> None:
    times = [float(n) for n in range(1, 101)]
    assert [percentile(times, p) for p in (50, 99, 100)] == [50.0, 99.0, 100.0]
    assert percentile([], 50) == 0.0
    assert percentile([3.14159], 50) == 3.14


def test_the_pacer_keeps_its_rate_whatever_the_ticks() -> None:
    pacer = Pacer(pps=200, flows=8)
    assert not pacer.due(0, 1.0)
    pacer.start(10.0)
    sent, now = 0, 10.0
    for jitter in (0.0, 0.003, 0.011, 0.005, 0.001, 0.02) * 50:
        now += jitter
        sent = max(sent, pacer.due(sent, now).stop)
    assert sent == 1 + int((now - 10.0) * 200)
    assert sent / pacer.seconds >= 200
    pacer.running = False
    assert not pacer.due(sent, now + 1)


def test_a_stall_is_made_up_for_in_small_bursts() -> None:
    pacer = Pacer(pps=200, flows=8)
    pacer.start(0.0)
    sent, bursts = 0, []
    for tick in range(200):
        numbers = pacer.due(sent, 1.0 + tick * TICK)
        bursts.append(len(numbers))
        sent = numbers.stop
    assert max(bursts) == 16
    assert sent == 1 + int((1 + 199 * TICK) * 200)
