"""What the GMN makes of the GPNs' reports: rates, shares of the CPU, their history."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.control.channel.node_messages import OfferedLoad, SaUsage, SuiteCost
from protego_cli.control.packing.load import (
    HISTORY,
    IDLE,
    MOST_OFFERED,
    Average,
    Loads,
    Passed,
    Rates,
    Regression,
    cost_of,
    modelled,
)
from protego_cli.control.packing.offered import Offers
from protego_cli.control.sas.tunnel import Meter, Totals
from protego_cli.roles.calibration import LONG, ROW, SHORT, TRIES, calibrate
from tests.support.network import REGISTRY

GCM = "aes256gcm16-x25519"
SECOND = Totals(100_000, 140_000_000, 50_000, 70_000_000)


def steady(
    loads: Loads, seconds: int, cpu: float, *tunnels: str, start: int = 0, gpn: str = "gpn-1"
) -> float:
    """Reports every second, in which each tunnel carries the same; the time afterwards."""
    for second in range(start + 1, start + seconds + 1):
        loads.report(gpn, cpu, [Passed(tunnel, GCM, SECOND) for tunnel in tunnels], float(second))
    return float(start + seconds)


def test_rates_are_true_from_the_first_report_on() -> None:
    for seconds in (1, 2, 7, 100):
        loads = Loads()
        now = steady(loads, seconds, 0.5, "a")
        assert loads.rates("a", now) == pytest.approx(Rates(*SECOND[:4]))


def test_rates_follow_within_the_window_and_fade_when_nothing_comes() -> None:
    loads = Loads()
    now = steady(loads, 100, 0.5, "a")
    loads.report("gpn-1", 0.5, [Passed("a", GCM, Totals(200_000, 0, 0, 0))], now + 1)
    assert 109_000 < loads.rates("a", now + 1).packets_in < 110_000
    assert loads.rates("a", now + 2).packets_in == loads.rates("a", now + 1).packets_in  # not due yet
    assert loads.rates("a", now + 12).packets_in < 45_000
    assert loads.rates("a", now + 100).packets_in < 10


def test_reports_of_two_gpns_add_up_while_a_tunnel_moves() -> None:
    loads = Loads()
    half = Totals(500, 0, 0, 0)
    for second in range(1, 60):
        loads.report("gpn-1", 0.1, [Passed("a", GCM, half)], second)
        loads.report("gpn-2", 0.1, [Passed("a", GCM, half)], second + 0.5)
    assert loads.rates("a", 59.5).packets_in == pytest.approx(1000, rel=0.05)


def test_an_unknown_tunnel_has_no_load() -> None:
    loads = Loads()
    assert loads.rates("none", 1.0) == Rates()
    assert loads.share("none", "gpn-1", 1.0) == 0
    assert loads.history(["none"], 1.0).shape == (0, 1)
    assert loads.own("gpn-1", 1.0) == 0


def test_shares_on_a_gpn_add_up_to_its_cpu() -> None:
    loads = Loads()
    for second in range(1, 40):
        big = Passed("big", GCM, Totals(300_000, 300_000_000, 0, 0))
        small = Passed("small", GCM, Totals(100_000, 100_000_000, 0, 0))
        loads.report("gpn-1", 0.6, [big, small], second)
    big_share, small_share = (loads.share(name, "gpn-1", 39.0) for name in ("big", "small"))
    assert big_share + small_share == pytest.approx(0.6)
    assert big_share == pytest.approx(3 * small_share)
    assert loads.own("gpn-1", 39.0) == pytest.approx(0, abs=1e-9)


def test_a_move_takes_the_share_along_and_leaves_the_others_theirs() -> None:
    loads = Loads()
    now = steady(loads, 60, 0.6, "a", "b")
    before = loads.share("b", "gpn-1", now)
    steady(loads, 5, 0.3, "b", start=60)
    now = steady(loads, 5, 0.3, "a", start=60, gpn="gpn-2")
    assert loads.share("b", "gpn-1", now) == pytest.approx(before, rel=0.05)
    assert loads.share("a", "gpn-2", now) == pytest.approx(0.3, rel=0.05)


def test_an_idle_process_teaches_nothing() -> None:
    loads = Loads()
    now = steady(loads, 60, 0.5, "a")
    learned = loads.scale("gpn-1")
    for second in range(200):
        loads.report("gpn-1", IDLE / 2, [Passed("a", GCM, Totals(1, 100, 0, 0))], now + 1 + second)
    # while the averages of busy times faded it went on learning from them, never from idleness
    assert loads.scale("gpn-1") >= learned
    assert loads.share("a", "gpn-1", now + 200) <= IDLE
    assert Loads().scale("gpn-9") == 1.0


def test_what_packets_cannot_explain_is_the_process_own() -> None:
    loads = Loads()
    for second in range(1, 60):
        loads.report("gpn-1", 0.3, [Passed("a", GCM, Totals(10, 1000, 0, 0))], second)
    share, own = loads.share("a", "gpn-1", 59.0), loads.own("gpn-1", 59.0)
    assert share < 0.01
    assert share + own == pytest.approx(0.3)


def test_counts_of_a_time_before_this_gmn_are_not_rates() -> None:
    loads = Loads()
    loads.report("gpn-1", 0.3, [Passed("a", GCM, Totals(10**9, 10**12, 0, 0))], 1.0)
    assert loads.share("a", "gpn-1", 1.0) == 0


def test_a_new_process_is_measured_anew() -> None:
    loads = Loads()
    steady(loads, 30, 0.9, "a")
    loads.forget_gpn("gpn-1")
    assert loads.scale("gpn-1") == 1.0
    assert loads.rates("a", 30.0).packets_in == pytest.approx(100_000)
    loads.forget("a")
    assert loads.rates("a", 30.0) == Rates()


def test_history_is_the_mean_of_each_whole_minute() -> None:
    loads = Loads()
    now = steady(loads, 600, 0.5, "a")
    history = loads.history(["a", "none"], now)
    assert history.shape == (9, 2)  # the minute in which reports began is not whole
    assert history[:, 0] == pytest.approx([0.5] * 9, rel=0.03)
    assert not history[:, 1].any()
    assert loads.history(["a"], now + 60)[-2, 0] == history[-1, 0]
    assert loads.history(["a"], now + 120)[-1] == 0
    late = loads.history(["a"], now + 86400)
    assert late.shape == (HISTORY - 1, 1)
    assert not late.any()


@pytest.mark.parametrize(
    ("suite", "direction"),
    [(GCM, Totals(10, 14000, 0, 0)), ("aes256-sha256-modp2048", Totals(0, 0, 10, 14000)), ("new", SECOND)],
)
def test_every_suite_costs_something(suite: str, direction: Totals) -> None:
    assert modelled(suite, direction) > 0


def test_the_parts_of_a_suite_add_up() -> None:
    assert cost_of("aes256-sha256").sealing.byte > cost_of("aes256gcm16").sealing.byte
    assert cost_of("aes256-sha256").opening.byte < cost_of("aes256-sha256").sealing.byte
    assert cost_of("aes256gcm16-x25519") == cost_of("aes256gcm16")


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.05, 30)), min_size=1, max_size=50))
def test_an_average_lies_between_what_was_fed(samples: list[tuple[float, float]]) -> None:
    average, now = Average(1, 0.0), 0.0
    for rate, interval in samples:
        now += interval
        average.feed([rate * interval], interval, now)
    (found,) = average.read(now)
    rates = [rate for rate, _ in samples]
    assert min(rates) * (1 - 1e-6) - 1e-6 <= found <= max(rates) * (1 + 1e-6) + 1e-6


def usage(packets: int) -> SaUsage:
    return SaUsage(1, packets, 100 * packets, 0, 0, packets, 0)


def test_a_meter_tells_what_passed_since_the_last_report() -> None:
    meter = Meter()
    assert meter.read(usage(5)) == Totals(5, 500)
    assert meter.read(usage(5)) is None
    assert meter.read(usage(8)) == Totals(3, 300)
    assert meter.read(usage(2)) == Totals(2, 200)  # another process began to count from zero
    assert meter.total == Totals(10, 1000)
    assert meter.highest_in == 8


def test_ten_thousand_tunnels_are_cheap() -> None:
    """CPU time, with much to spare for a slow machine: what it takes per second is some ten milliseconds."""
    loads = Loads()
    passed = [Passed(f"t{i}/hq", GCM, Totals(100, 140_000, 50, 70_000)) for i in range(10_000)]
    loads.report("gpn-1", 0.5, passed[:10], 1.0)
    began = time.process_time()
    for part in range(10):
        loads.report(f"gpn-{part}", 0.5, passed[part * 1000 : part * 1000 + 1000], 2.0)
    assert time.process_time() - began < 0.5
    assert loads.rates("t9999/hq", 2.0).packets_in > 0


def offered(loads: Loads, seconds: int, cpu: float, times: float, *, overflow: bool = False) -> float:
    """Reports of a GPN that passes SECOND, while `times` as much comes; the time afterwards."""
    coming = round(times * (SECOND.bytes_in + SECOND.bytes_out))
    for second in range(1, seconds + 1):
        drops = 1000 * second if overflow else 0
        loads.report("gpn-1", cpu, [Passed("a", GCM, SECOND)], float(second), overflow=drops)
        loads.offer("a", coming, 1.0, float(second))
    return float(seconds)


def test_what_a_saturated_gpn_drops_counts_as_load() -> None:
    calm, full = Loads(), Loads()
    now = offered(calm, 60, 0.5, 1.0)
    offered(full, 60, 0.98, 3.0)
    assert calm.share("a", "gpn-1", now) == pytest.approx(0.5, rel=0.02)
    assert full.share("a", "gpn-1", now) == pytest.approx(3 * 0.98, rel=0.02)


def test_drops_of_its_sockets_say_that_a_gpn_is_saturated() -> None:
    loads = Loads()
    now = offered(loads, 60, 0.4, 2.0, overflow=True)
    assert loads.share("a", "gpn-1", now) == pytest.approx(2 * 0.4, rel=0.02)


def test_what_is_offered_to_a_gpn_that_is_not_saturated_changes_nothing() -> None:
    loads = Loads()
    now = offered(loads, 60, 0.5, 3.0)  # as when a peer sends what its selectors forbid
    assert loads.share("a", "gpn-1", now) == pytest.approx(0.5, rel=0.02)


def test_what_a_rate_limit_drops_is_not_offered_again() -> None:
    loads = Loads()
    half = SECOND._replace(limited_bytes_in=SECOND.bytes_in, limited_bytes_out=SECOND.bytes_out)
    for second in range(1, 60):
        loads.report("gpn-1", 0.95, [Passed("a", GCM, half)], float(second))
        loads.offer("a", 2 * (SECOND.bytes_in + SECOND.bytes_out), 1.0, float(second))
    assert loads.share("a", "gpn-1", 59.0) == pytest.approx(0.95, rel=0.02)


def test_what_is_offered_is_believed_within_bounds() -> None:
    loads = Loads()
    now = offered(loads, 60, 1.0, 1000.0)
    assert loads.share("a", "gpn-1", now) <= MOST_OFFERED * 1.01
    loads.offer("nobody", 10**9, 1.0, now)
    assert loads.share("nobody", "gpn-1", now) == 0.0


def test_counts_of_gins_and_gens_become_differences() -> None:
    names: dict[int | str, str] = {7: "acme/hq", "acme/hq#2": "acme/hq"}
    offers = Offers(names.get)

    def report(node: str, now: float, **counts: int) -> list[tuple[str, int, float]]:
        loads = [
            OfferedLoad(int(of[1:]) if of[1:].isdecimal() else "acme/hq#2", n) for of, n in counts.items()
        ]
        return [tuple(each) for each in offers.report(node, loads, now)]  # type: ignore[misc]

    assert report("gin-1", 1.0, s7=500, s8=100) == [], "a first count says nothing; 8 is nobody's"
    assert report("gin-1", 2.0, s7=800) == [("acme/hq", 300, 1.0)]
    assert report("gin-2", 2.0, s7=900) == [], "another GIN counts by itself"
    assert report("gen-1", 2.0, strand=5) == []
    assert report("gen-1", 4.0, strand=25) == [("acme/hq", 20, 2.0)]
    assert report("gin-1", 3.0, s7=100) == [], "it has started anew"
    assert report("gin-1", 4.0, s7=150) == [("acme/hq", 50, 1.0)]
    assert report("gin-1", 400.0, s7=950) == [], "too long ago to be a rate"


def test_counts_of_what_is_gone_are_forgotten() -> None:
    living: set[int | str] = set(range(10_000))
    offers = Offers(lambda of: "acme/hq" if of in living else None)
    assert list(offers.report("gin-1", [OfferedLoad(spi, 1) for spi in range(10_000)], 1.0)) == []
    living = {1, 2}
    assert list(offers.report("gin-1", [OfferedLoad(1, 2)], 2.0)) == [("acme/hq", 1, 1.0)]
    assert len(offers._counts) == 2


def test_a_process_s_own_work_is_told_apart_where_loads_vary() -> None:
    """CPU is 0.1 and 2 times what the model says; loads run up and down."""
    loads = Loads()
    for second in range(1, 400):
        packets = 20_000 + 60_000 * (second % 40) // 40
        totals = Totals(packets, 1000 * packets, 0, 0)
        loads.report("gpn-1", 0.1 + 2.0 * modelled(GCM, totals), [Passed("a", GCM, totals)], float(second))
    assert loads.scale("gpn-1") == pytest.approx(2.0, rel=0.02)
    assert loads.own("gpn-1", 399.0) == pytest.approx(0.1, rel=0.1)


def test_where_loads_do_not_vary_all_is_the_tunnels() -> None:
    loads = Loads()
    now = steady(loads, 400, 0.6, "a")
    assert loads.share("a", "gpn-1", now) == pytest.approx(0.6, rel=0.01)


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0.0, 1.0)), min_size=30, max_size=60))
def test_a_regression_is_never_nonsense(points: list[tuple[float, float]]) -> None:
    line = Regression(0.0)
    for second, (x, y) in enumerate(points, start=1):
        line.feed(x, y, float(second))
    slope = line.slope()
    assert slope is None or 0.0 <= slope < 1001.0


def test_what_a_gpn_has_measured_of_a_suite_replaces_the_table() -> None:
    slow = SuiteCost("aes256gcm16", 50e-6, 0.0, 100e-6, 0.0)
    loads = Loads()
    loads.calibrated("gpn-1", [slow])  # it has not reported yet
    for second in range(1, 30):
        cheap = Passed("cheap", "chacha20poly1305", Totals(1000, 1_000_000, 0, 0))
        dear = Passed("dear", GCM, Totals(1000, 1_000_000, 0, 0))
        loads.report("gpn-1", 0.5, [cheap, dear], float(second))
        if second == 1:
            loads.calibrated("gpn-1", [slow, SuiteCost("aes256gcm16", 1.0, 1.0, 1.0, 1.0)])
    assert loads.share("dear", "gpn-1", 29.0) > 8 * loads.share("cheap", "gpn-1", 29.0)


@pytest.mark.parametrize("wrong", [-1e-6, 1.0, float("nan"), float("inf")])
def test_a_cost_that_no_processor_has_is_not_believed(wrong: float) -> None:
    loads = Loads()
    steady(loads, 1, 0.5, "a")
    loads.calibrated("gpn-1", [SuiteCost("aes256gcm16", 1e-6, 0.0, wrong, 0.0)])
    assert not loads._processes["gpn-1"].ways


@pytest.mark.parametrize(
    ("encryption", "integrity"), [("aes256gcm16", None), ("chacha20poly1305", None), ("aes256", "sha512")]
)
def test_a_suite_is_measured_in_some_milliseconds(encryption: str, integrity: str | None) -> None:
    name = "-".join(filter(None, (encryption, integrity)))
    suite = REGISTRY.esp_suite(encryption, integrity, esn=True)
    began = time.perf_counter()
    cost = calibrate(name, suite)
    assert time.perf_counter() - began < 1.0
    assert cost.suite == name
    for packet, byte in ((cost.open_packet, cost.open_byte), (cost.seal_packet, cost.seal_byte)):
        assert 0.0 < packet + 1000 * byte < 1e-3


def test_a_measurement_tells_packets_from_bytes() -> None:
    """By a clock that says: short rows take 96 units to open and 192 to seal, long ones 1440 and 2880."""
    moments, now = [], 0.0
    for opening, sealing in ((96.0, 192.0), (1440.0, 2880.0)):
        for _ in range(TRIES):
            moments += [now, now + sealing, now + sealing + opening]
            now += sealing + opening
    clock = iter(moments)
    cost = calibrate("aes256gcm16", REGISTRY.esp_suite("aes256gcm16", None, esn=False), lambda: next(clock))
    byte = (1440 - 96) / ROW / (LONG - SHORT)
    assert cost.open_byte == pytest.approx(byte)
    assert cost.open_packet == pytest.approx(96 / ROW - SHORT * byte)
    assert (cost.seal_packet, cost.seal_byte) == pytest.approx((2 * cost.open_packet, 2 * cost.open_byte))
