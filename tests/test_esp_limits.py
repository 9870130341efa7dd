"""Rate limits: the buckets by themselves against one packet at a time, and where a GPN asks them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.config.model import Rate
from protego_cli.esp.limits import CLOCK_STEP, Bucket, Limits, admit, admit_below, admit_row
from protego_cli.esp.pairs import Pair
from tests.support.esp_packets import ipv4, passed
from tests.support.esp_reference import ReferenceSa, padded, seal
from tests.support.esp_world import ACME, BLUE, GEN, GIN, NOW, VTEP_MAC, World, datagrams, entry, world

SIZE = 1000  # of an inner packet
IN = ipv4("10.2.0.9", "10.1.0.5", bytes(SIZE - 20))
ANNEX = ipv4("10.2.9.9", "10.1.0.5", bytes(SIZE - 20))
OUT = ipv4("10.1.0.5", "10.2.0.9", bytes(SIZE - 20))
OUT_ANNEX = ipv4("10.1.0.5", "10.2.9.9", bytes(SIZE - 20))
TEN = Rate(8 * 10 * SIZE, 10 * SIZE)  # ten packets at once, and ten each second
PLENTY = Rate(10**9, 10**9)


class OneByOne:
    """The plain idea: exact numbers, and every packet by itself."""

    def __init__(self, rate: Rate) -> None:
        self.rate, self.burst = Fraction(rate.bits, 8), Fraction(rate.burst)
        self.tokens, self.at = self.burst, None

    def passes(self, others: list[OneByOne], size: int, now: float) -> bool:
        everybody = [self, *others]
        for bucket in everybody:
            if bucket.at is not None:
                gained = (Fraction(now) - bucket.at) * bucket.rate
                bucket.tokens = min(bucket.burst, bucket.tokens + gained)
            bucket.at = Fraction(now)
        if any(bucket.tokens < size for bucket in everybody):
            return False
        for bucket in everybody:
            bucket.tokens -= size
        return True

    at: Fraction | None


# Powers of two as rates and steps of 1/1024 s: then floats are exact, and so is the comparison.
RATES = st.builds(Rate, st.integers(6, 30).map(lambda n: 8 << n), st.integers(1, 100_000))
PAUSES = st.integers(0, 4096).map(lambda n: n / 1024)
ROWS = st.lists(
    st.tuples(PAUSES, st.integers(1, 9000), st.integers(1, 64)),
    max_size=40,
)


@given(st.lists(RATES, min_size=1, max_size=2), ROWS)
def test_a_row_fares_as_its_packets_would_one_by_one(
    rates: list[Rate], rows: list[tuple[float, int, int]]
) -> None:
    buckets = [Bucket(rate) for rate in rates]
    first, *others = [OneByOne(rate) for rate in rates]
    now = 0.0
    for pause, size, count in rows:
        now += pause
        fates = [first.passes(others, size, now) for _ in range(count)]
        admitted = admit(buckets, size, count, now)
        assert fates == [True] * admitted + [False] * (count - admitted)


@given(
    st.lists(RATES, min_size=1, max_size=2),
    st.lists(
        st.tuples(st.integers(0, 4096).map(lambda n: n / 1024), st.lists(st.integers(1, 9000), min_size=1))
    ),
)
def test_so_does_a_row_of_any_sizes(rates: list[Rate], rows: list[tuple[float, list[int]]]) -> None:
    buckets = [Bucket(rate) for rate in rates]
    first, *others = [OneByOne(rate) for rate in rates]
    now = 0.0
    for pause, sizes in rows:
        now += pause
        expected = [place for place, size in enumerate(sizes) if first.passes(others, size, now)]
        assert list(admit_row(buckets, sizes, now)) == expected


@given(RATES, st.lists(st.tuples(st.floats(0, 2), st.integers(1, 9000), st.integers(1, 64)), max_size=60))
def test_no_window_holds_more_than_rate_and_burst(rate: Rate, rows: list[tuple[float, int, int]]) -> None:
    for admits in (admit, admit_below):
        bucket, now, passed = Bucket(rate), 0.0, []
        for pause, size, count in rows:
            now += pause
            passed.append((now, size * admits((bucket,), size, count, now)))
        bounded(rate, passed)


def bounded(rate: Rate, passed: list[tuple[float, int]]) -> None:
    for start, (begin, _) in enumerate(passed):
        for end in range(start, len(passed)):
            total = sum(size for _, size in passed[start : end + 1])
            assert total <= rate.bits / 8 * (passed[end][0] - begin) + rate.burst + 1e-3


def test_a_row_that_one_bucket_cuts_short_takes_no_more_from_the_other() -> None:
    small, large = Bucket(TEN), Bucket(Rate(8000, 30 * SIZE))
    assert admit((large, small), SIZE, 25, NOW) == 10
    assert (small.tokens, large.tokens) == (0, 20 * SIZE)
    assert admit((large, small), SIZE, 5, NOW) == 0
    assert large.tokens == 20 * SIZE


def test_packets_that_were_held_up_gain_nothing_twice_but_a_clock_may_be_set_back() -> None:
    bucket = Bucket(TEN)
    assert admit((bucket,), SIZE, 10, NOW) == 10
    assert admit((bucket,), SIZE, 1, NOW - CLOCK_STEP / 2) == 0
    assert admit((bucket,), SIZE, 10, NOW + 0.25) == 2  # and not five
    assert admit((bucket,), SIZE, 1, NOW - 3600) == 0
    assert admit((bucket,), SIZE, 10, NOW - 3599.5) == 5


def test_another_rate_holds_from_now_on_and_saves_nothing_above_its_burst() -> None:
    bucket = Bucket(TEN)
    bucket.set(Rate(TEN.bits * 2, 4 * SIZE), NOW)
    assert admit((bucket,), SIZE, 10, NOW) == 4
    assert admit((bucket,), SIZE, 10, NOW + 0.125) == 2


def test_a_ceiling_that_cut_a_row_short_waits_for_half_its_burst() -> None:
    ceiling, roomy = Bucket(TEN), Bucket(PLENTY)
    assert admit_below((ceiling, roomy), SIZE, 12, NOW) == 10
    assert admit_below((ceiling, roomy), SIZE, 12, NOW + 0.375) == 0  # three are there
    assert admit_below((roomy,), SIZE, 12, NOW + 0.375) == 12
    assert admit_below((ceiling, roomy), SIZE, 3, NOW + 0.5) == 3
    assert admit_below((ceiling, roomy), SIZE, 3, NOW + 0.5) == 2


def test_limits_are_found_by_tunnel_and_by_vni_and_say_when_the_answer_changes() -> None:
    limits = Limits()
    assert limits.find("acme/hq", ACME) == ()
    assert limits.put("acme/hq", TEN, NOW)
    assert limits.put(ACME, TEN, NOW)
    assert not limits.put(ACME, PLENTY, NOW)
    own, tenants = limits.find("acme/hq", ACME)
    assert limits.find("acme/annex", ACME) == (tenants,)
    assert limits.find("acme/annex", BLUE) == ()
    assert own is not tenants
    assert limits.put("acme/hq", None, NOW)
    assert not limits.put("acme/hq", None, NOW)


# ---- a GPN


def esp(sa: ReferenceSa, inner: bytes, count: int, first: int = 1) -> list[bytes]:
    return [seal(sa.key_in, sa.spi_in, first + n, padded(inner, 4)) for n in range(count)]


def vxlan(inner: bytes, count: int, vni: int = ACME) -> list[bytes]:
    head = bytes((8, 0, 0, 0)) + vni.to_bytes(3) + bytes(1) + VTEP_MAC + VTEP_MAC + b"\x08\x00"
    return [head + inner] * count


@pytest.fixture
def w() -> World:
    return world()


def test_what_opens_above_the_limit_is_dropped_and_the_first_packets_pass_in_order(w: World) -> None:
    w.gateway.put_limit("acme/hq", TEN, None, NOW)
    inners = [ipv4("10.2.0.9", "10.1.0.5", bytes([n]) * (SIZE - 20)) for n in range(14)]
    packets = [esp(w.sa(), inner, 1, first=1 + n)[0] for n, inner in enumerate(inners)]
    sent = datagrams(w.receive_esp(*packets))
    assert [data[22:] for _, data in sent] == [passed(inner) for inner in inners[:10]]
    assert w.counters.nonzero() == {"gpn_drop_limit_in": 4}
    usage = w.gateway.usage()[0]
    assert (usage.packets_in, usage.bytes_in) == (10, 10 * SIZE)
    assert (usage.limited_packets_in, usage.limited_bytes_in, usage.limited_packets_out) == (4, 4 * SIZE, 0)
    assert len(datagrams(w.receive_esp(*esp(w.sa(), IN, 9, first=15), now=NOW + 0.5))) == 5


def test_what_is_not_sealed_uses_up_no_number(w: World) -> None:
    w.gateway.put_limit("acme/hq", None, TEN, NOW)
    assert len(datagrams(w.receive_vxlan(*vxlan(OUT, 44)))) == 10
    assert w.receive_vxlan(*vxlan(OUT, 3)) == []
    assert w.counters.nonzero() == {"gpn_drop_limit_out": 37}
    usage = w.gateway.usage()[0]
    assert (usage.packets_out, usage.next_out, usage.limited_packets_out) == (10, 11, 37)
    assert usage.limited_bytes_out == 37 * SIZE


def test_trains_of_mixed_sizes_fare_as_their_packets_would(w: World) -> None:
    """Short batches that are worked on together meet the same limit, both ways."""
    w.gateway.put_limit("acme/hq", TEN, TEN, NOW)
    sizes = [400, 900, 1400] * 8  # 21,600 bytes, of which 10,000 may pass
    plain = OneByOne(TEN)
    passing = [place for place, size in enumerate(sizes) if plain.passes([], size, NOW)]
    inners = [ipv4("10.2.0.9", "10.1.0.5", bytes([n]) * (size - 20)) for n, size in enumerate(sizes)]
    packets = [esp(w.sa(), inner, 1, first=1 + n)[0] for n, inner in enumerate(inners)]
    train = [(memoryview(packet), len(packet), GIN, 0) for packet in packets]
    sent = datagrams(w.gateway.receive_esp_train(train, NOW))
    assert [data[22:] for _, data in sent] == [passed(inners[place]) for place in passing]
    frames = [vxlan(ipv4("10.1.0.5", "10.2.0.9", inner[20:]), 1)[0] for inner in inners]
    train = [(memoryview(frame), len(frame), GEN, 0) for frame in frames]
    sent = datagrams(w.gateway.receive_vxlan_train(train, NOW))
    numbers = [int.from_bytes(data[4:8]) for _, data in sent]
    assert numbers == list(range(1, 1 + len(passing)))
    dropped = len(sizes) - len(passing)
    assert w.counters.nonzero() == {"gpn_drop_limit_in": dropped, "gpn_drop_limit_out": dropped}
    usage = w.gateway.usage()[0]
    assert usage.bytes_in + usage.limited_bytes_in == usage.bytes_out + usage.limited_bytes_out == sum(sizes)
    assert (usage.packets_in, usage.packets_out) == (len(passing), len(passing))


def test_the_two_directions_have_buckets_of_their_own(w: World) -> None:
    w.gateway.put_limit("acme/hq", TEN, TEN, NOW)
    assert len(datagrams(w.receive_esp(*esp(w.sa(), IN, 20)))) == 10
    assert len(datagrams(w.receive_vxlan(*vxlan(OUT, 20)))) == 10


def test_forged_replayed_and_foreign_packets_spend_no_tokens(w: World) -> None:
    w.gateway.put_limit("acme/hq", TEN, None, NOW)
    sa = w.sa()
    forged = [packet[:-1] + bytes([packet[-1] ^ 1]) for packet in esp(sa, IN, 40, first=100)]
    assert w.receive_esp(*forged) == []
    foreign = ipv4("10.9.0.9", "10.1.0.5", bytes(SIZE - 20))
    assert w.receive_esp(*esp(sa, foreign, 40)) == []
    good = esp(sa, IN, 5, first=41)
    assert len(datagrams(w.receive_esp(*good))) == 5
    assert w.receive_esp(*good, *good) == []
    assert len(datagrams(w.receive_esp(*esp(sa, IN, 6, first=46)))) == 5
    assert w.counters.nonzero() == {
        "gpn_drop_auth": 40,
        "gpn_drop_selector_in": 40,
        "gpn_drop_replay": 10,
        "gpn_drop_limit_in": 1,
    }


def test_a_tenants_limit_is_the_sum_over_its_tunnels_and_nobody_elses(w: World) -> None:
    w.gateway.put_limit(ACME, TEN, TEN, NOW)
    assert len(datagrams(w.receive_esp(*esp(w.sa(), IN, 6)))) == 6
    assert len(datagrams(w.receive_esp(*esp(w.sa("acme/annex"), ANNEX, 6)))) == 4
    assert len(datagrams(w.receive_esp(*esp(w.sa("blue/hq"), IN, 30)))) == 30
    assert len(datagrams(w.receive_vxlan(*vxlan(OUT_ANNEX, 7)))) == 7
    assert len(datagrams(w.receive_vxlan(*vxlan(OUT, 7)))) == 3
    assert len(datagrams(w.receive_vxlan(*vxlan(OUT, 30, BLUE)))) == 30
    assert w.counters.nonzero() == {"gpn_drop_limit_in": 2, "gpn_drop_limit_out": 4}


def test_a_packet_that_its_tunnels_limit_drops_spends_nothing_of_its_tenants(w: World) -> None:
    w.gateway.put_limit(ACME, Rate(8 * SIZE, 15 * SIZE), None, NOW)
    w.gateway.put_limit("acme/hq", TEN, None, NOW)
    assert len(datagrams(w.receive_esp(*esp(w.sa(), IN, 40)))) == 10
    assert len(datagrams(w.receive_esp(*esp(w.sa("acme/annex"), ANNEX, 40)))) == 5


def test_a_limit_holds_for_sas_that_come_later_and_goes_on_through_a_rekey(w: World) -> None:
    w.gateway.put_limit("acme/hq", TEN, None, NOW)
    old = w.sa()
    new = replace(old, spi_in=old.spi_in + 0x100, spi_out=old.spi_out + 0x100)
    assert w.gateway.put_sa(entry(new)) == []
    assert len(datagrams(w.receive_esp(*esp(old, IN, 6)))) == 6
    assert len(datagrams(w.receive_esp(*esp(new, IN, 6)))) == 4


def test_a_limit_or_a_tenant_costs_nothing_of_others_sas(w: World) -> None:
    """A GPN may hold thousands of SAs, and each that comes may bring a limit."""

    class NotGoneThrough(dict[int, Pair]):
        def values(self) -> NoReturn:
            raise AssertionError("all SAs were looked at")

    pairs = w.gateway._pairs = NotGoneThrough(w.gateway._pairs)
    w.gateway.put_limit("acme/annex", TEN, TEN, NOW)
    w.gateway.put_limit(BLUE, TEN, TEN, NOW)
    w.gateway.put_tenant(BLUE, bytes(6), ())
    limited = {pair.entry.tunnel: len(pair.inbound.limits) for pair in map(pairs.__getitem__, pairs)}
    assert limited == {"acme/hq": 0, "acme/annex": 1, "blue/hq": 1}
    w.gateway.drop_sa(w.sa("acme/annex").spi_in)
    w.gateway.drop_limit("acme/annex")
    w.gateway.put_sa(entry(w.sa("acme/annex")))
    w.gateway.put_limit(ACME, TEN, TEN, NOW)
    assert [len(pairs[w.sa(tunnel).spi_in].outbound.limits) for tunnel in limited] == [1, 1, 1]


def test_a_limit_changes_and_goes_without_touching_the_sas(w: World) -> None:
    w.gateway.put_limit("acme/hq", TEN, TEN, NOW)
    assert len(datagrams(w.receive_esp(*esp(w.sa(), IN, 10)))) == 10
    w.gateway.put_limit("acme/hq", replace_rate(TEN, 2), TEN, NOW)
    assert len(datagrams(w.receive_esp(*esp(w.sa(), IN, 10, first=11), now=NOW + 0.25))) == 5
    w.gateway.drop_limit("acme/hq")
    assert len(datagrams(w.receive_esp(*esp(w.sa(), IN, 40, first=21), now=NOW + 0.25))) == 40
    assert len(datagrams(w.receive_vxlan(*vxlan(OUT, 40)))) == 40
    assert w.gateway.usage()[0].highest_in == 60


def replace_rate(rate: Rate, factor: int) -> Rate:
    return Rate(rate.bits * factor, rate.burst)


def test_parked_packets_count_as_of_when_they_came(w: World) -> None:
    """Else a migration would make one burst of them, and lose what is above it."""
    w.gateway.put_limit("acme/hq", TEN, None, NOW)
    sa = w.sa()
    w.gateway.drop_sa(sa.spi_in)
    w.gateway.park(sa.spi_in)
    for tenth in range(30):
        assert w.receive_esp(*esp(sa, IN, 1, first=1 + tenth), now=NOW + tenth / 10) == []
    assert len(datagrams(w.gateway.put_sa(entry(sa)))) == 30
    assert w.counters.nonzero() == {"gpn_parked": 30}
