"""A GEN's data path: whose VNI it is, which tunnel the destination belongs to, and what is dropped why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.config.model import Rate
from protego_cli.counters import Counters
from protego_cli.net import egress
from protego_cli.net.egress import MuxEgress, fields, uniform
from protego_cli.net.gso import segments
from protego_cli.net.steering import HERE, Gpn
from protego_cli.net.udp import LONG, Address, Batch
from protego_cli.wire.prefixes import PrefixTable
from tests.support.datagrams import vxlan
from tests.support.senders import RecordingSender

GPN1 = Gpn("gpn-1", ("10.10.0.21", 4789), bytes(32))
GPN2 = Gpn("gpn-2", ("10.10.0.22", 4789), bytes(32))
VTEP = ("10.20.0.5", 51111)
ACME, GLOBEX = 1001, 1002


class Kept(NamedTuple):
    """What stayed in the GEN."""

    vni: int
    vtep: str | None
    data: bytes
    size: int
    tos: int = 0


class Gen(NamedTuple):
    fabric: RecordingSender
    counters: Counters
    steering: MuxEgress
    kept: list[Kept]

    def receive(self, *packets: bytes, source: Address = VTEP, tos: int = 0) -> None:
        """A batch: equal packets, the last perhaps shorter."""
        self.steering.forward(Batch(memoryview(b"".join(packets)), len(packets[0]), source, tos))

    def goes_to(self, destination: str, vni: int = ACME) -> Address | None:
        self.fabric.sent.clear()
        self.receive(packet(destination, vni))
        return self.fabric.sent[0][2] if self.fabric.sent else None


@pytest.fixture
def gen() -> Gen:
    return _world()


def _world() -> Gen:
    fabric, counters = RecordingSender(), Counters()
    kept: list[Kept] = []
    steering = MuxEgress(
        fabric,
        counters,
        lambda vni, vtep, view, *rest: kept.append(Kept(vni, vtep, bytes(view), *rest)),
        lambda: 1.0,
    )
    for gpn in (GPN1, GPN2):
        steering.put_gpn(gpn)
    steering.put_tenant(ACME, [VTEP[0]])
    steering.put_tenant(GLOBEX, ["10.20.0.6"])
    steering.put_route("acme/hq", ACME, ["10.2.0.0/24", "2001:db8:2::/48"], "gpn-1")
    steering.put_route("acme/lab", ACME, ["10.3.0.0/24"], "gpn-2")
    return Gen(fabric, counters, steering, kept)


def packet(destination: str, vni: int = ACME, length: int = 120, ethertype: int | None = None) -> bytes:
    return vxlan(destination, vni, length, ethertype)


def test_a_batch_of_one_flow_goes_on_whole_and_untouched(gen: Gen) -> None:
    packets = [packet("10.2.0.9")] * 43 + [packet("10.2.0.9", length=80)]
    gen.receive(*packets, tos=0x28)
    assert gen.fabric.sent == [(b"".join(packets), 120, GPN1.address, 0x28)]
    assert gen.counters.nonzero() == {"gen_forwarded": 44}


def test_several_flows_are_sorted_each_in_order(gen: Gen) -> None:
    hq, lab = packet("10.2.0.1"), packet("10.3.0.1")
    short = packet("10.3.0.1", length=70)
    gen.receive(hq, lab, hq, short)
    assert sorted(gen.fabric.sent) == sorted(
        [(hq + hq, 120, GPN1.address, 0), (lab + short, 120, GPN2.address, 0)]
    )


@pytest.mark.parametrize("first", [4, 6])
def test_both_versions_in_one_batch(gen: Gen, first: int) -> None:
    packets = [packet("10.2.0.1"), packet("2001:db8:2::1"), packet("2001:db8:3::1")]
    gen.receive(*(packets if first == 4 else packets[1:] + packets[:1]))
    assert gen.counters.nonzero() == {"gen_forwarded": 2, "gen_drop_no_route": 1}


def test_ipv6(gen: Gen) -> None:
    assert gen.goes_to("2001:db8:2::1") == GPN1.address
    assert gen.goes_to("2001:db8:3::1") is None


def test_the_longest_prefix_decides_and_the_lower_tunnel_id_breaks_a_tie(gen: Gen) -> None:
    gen.steering.put_route("acme/default", ACME, ["0.0.0.0/0"], "gpn-2")
    gen.steering.put_route("acme/host", ACME, ["10.2.0.7/32"], "gpn-2")
    gen.steering.put_route("acme/zulu", ACME, ["10.2.0.0/24"], "gpn-2")
    assert gen.goes_to("10.2.0.7") == GPN2.address
    assert gen.goes_to("10.2.0.8") == GPN1.address
    assert gen.goes_to("192.0.2.1") == GPN2.address
    gen.steering.put_route("acme/alpha", ACME, ["10.2.0.0/24"], "gpn-2")
    assert gen.goes_to("10.2.0.8") == GPN2.address


def test_a_route_is_replaced_as_a_whole(gen: Gen) -> None:
    assert gen.goes_to("10.2.0.1") == GPN1.address
    gen.steering.put_route("acme/hq", ACME, ["10.4.0.0/24"], "gpn-2")
    assert gen.goes_to("10.2.0.1") is None
    assert gen.goes_to("10.4.0.1") == GPN2.address
    gen.steering.drop_route("acme/hq")
    gen.steering.drop_route("acme/hq")
    assert gen.goes_to("10.4.0.1") is None
    assert gen.goes_to("10.3.0.1") == GPN2.address


def test_a_route_moves_between_vnis(gen: Gen) -> None:
    gen.steering.put_route("acme/hq", GLOBEX, ["10.2.0.0/24"], "gpn-1")
    assert gen.goes_to("10.2.0.1") is None


def test_a_route_costs_nothing_of_other_vnis(gen: Gen, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be tens of thousands, and all of them come with a Sync."""
    made: list[PrefixTable[Any]] = []

    def make(entries: Any) -> PrefixTable[Any]:
        made.append(PrefixTable(entries))
        return made[-1]

    monkeypatch.setattr(egress, "PrefixTable", make)
    assert gen.goes_to("10.2.0.1") == GPN1.address
    assert len(made) == 1
    for vni in range(2000, 2100):
        gen.steering.put_route(f"t{vni}/hq", vni, ["10.2.0.0/24"], "gpn-2")
    assert len(made) == 1, "made when a packet asks"
    assert gen.goes_to("10.2.0.1") == GPN1.address
    assert len(gen.steering._flows) == 1
    assert len(made) == 1
    gen.steering.put_route("acme/hq", ACME, ["10.2.0.0/24"], "gpn-2")
    assert gen.goes_to("10.2.0.1") == GPN2.address
    assert len(made) == 2


def test_long_batches_that_look_alike_in_two_vnis_go_by_their_own_tables(gen: Gen) -> None:
    gen.steering.put_tenant(GLOBEX, [VTEP[0]])
    gen.steering.put_route("globex/hq", GLOBEX, ["10.2.0.0/24"], "gpn-1")

    def go(vni: int) -> Address:
        gen.fabric.sent.clear()
        for _ in range(3):
            gen.receive(*[packet("10.2.0.1", vni)] * (LONG + 1))
        (dest,) = {dest for _, _, dest, _ in gen.fabric.sent}
        return dest

    assert go(ACME) == go(GLOBEX) == GPN1.address
    for vni, tunnel in ((GLOBEX, "globex/hq"), (ACME, "acme/hq")):
        gen.steering.put_route(tunnel, vni, ["10.2.0.0/24"], "gpn-2")
        assert go(vni) == GPN2.address


def test_a_route_to_a_gpn_that_goes_and_comes_back_elsewhere(gen: Gen) -> None:
    assert gen.goes_to("10.2.0.1") == GPN1.address
    gen.steering.drop_gpn("gpn-1")
    assert gen.goes_to("10.2.0.1") is None
    moved = Gpn("gpn-1", ("10.10.0.31", 4789), bytes(32))
    gen.steering.put_gpn(moved)
    assert gen.goes_to("10.2.0.1") == moved.address


def test_gpns_that_take_over_each_others_addresses_are_known_by_them(gen: Gen) -> None:
    """What a message of the GMN puts comes before what it drops."""
    gen.steering.put_gpn(Gpn("renamed", GPN1.address, bytes(32)))
    gen.steering.drop_gpn("gpn-1")
    gen.steering.put_route("acme/hq", ACME, ["10.2.0.0/24"], "renamed")
    gen.receive(packet("10.2.0.1"), source=GPN1.address)
    gen.steering.put_gpn(Gpn("renamed", GPN2.address, bytes(32)))
    gen.steering.put_gpn(Gpn("gpn-2", GPN1.address, bytes(32)))
    for source in (GPN1.address, GPN2.address):
        gen.receive(packet("10.2.0.1"), source=source)
    assert [dest for _, _, dest, _ in gen.fabric.sent] == [GPN1.address, GPN2.address, GPN2.address]
    assert gen.counters.nonzero() == {"gen_forwarded": 3}


def test_tenants_with_the_same_addresses_stay_apart(gen: Gen) -> None:
    gen.steering.put_route("globex/hq", GLOBEX, ["10.2.0.0/24"], "gpn-2")
    gen.receive(packet("10.2.0.1", ACME), packet("10.2.0.1", ACME))
    gen.receive(packet("10.2.0.1", GLOBEX), source=("10.20.0.6", 40000))
    assert [dest for _, _, dest, _ in gen.fabric.sent] == [GPN1.address, GPN2.address]
    gen.receive(packet("10.2.0.1", GLOBEX))  # acme's VTEP speaking globex's VNI
    assert gen.counters["gen_drop_vtep"] == 1


def test_what_a_gpn_passes_on_is_routed_and_back_if_it_seals_meanwhile(gen: Gen) -> None:
    for source in (GPN2.address, GPN1.address):
        gen.receive(packet("10.2.0.1"), source=source)
    assert gen.fabric.sent == [(packet("10.2.0.1"), 120, GPN1.address, 0)] * 2
    assert gen.counters.nonzero() == {"gen_forwarded": 2}
    gen.receive(packet("10.2.0.1"), source=(GPN2.address[0], 9))  # its address, not its socket
    assert gen.counters["gen_drop_vtep"] == 1


@pytest.mark.parametrize(
    ("data", "source", "counted"),
    [
        (packet("10.2.0.1"), ("10.20.0.99", 51111), "gen_drop_vtep"),
        (packet("10.2.0.1", 7), VTEP, "gen_drop_vtep"),
        (packet("10.9.0.1"), VTEP, "gen_drop_no_route"),
        (packet("10.2.0.1", ethertype=0x0806), VTEP, "gen_drop_not_ip"),
        (packet("10.2.0.1")[:41], VTEP, "gen_drop_malformed"),
        (packet("2001:db8:2::1")[:61], VTEP, "gen_drop_malformed"),
        (packet("10.2.0.1")[:12], VTEP, "gen_drop_malformed"),
        (b"", VTEP, "gen_drop_malformed"),
        (bytes(120), VTEP, "gen_drop_malformed"),
        (bytes([0, 0, 0, 3]) + bytes(28), VTEP, "gen_drop_tag"),
    ],
)
def test_what_is_dropped_is_counted_by_its_reason(
    gen: Gen, data: bytes, source: Address, counted: str
) -> None:
    for _ in range(2):  # decided, and then out of the cache
        gen.receive(data, source=source)
    assert gen.counters.nonzero() == {counted: 2}


def test_a_dropped_tenant_is_no_longer_taken(gen: Gen) -> None:
    assert gen.goes_to("10.2.0.1") == GPN1.address
    gen.steering.drop_tenant(ACME)
    assert gen.goes_to("10.2.0.1") is None
    assert gen.counters["gen_drop_vtep"] == 1


def test_what_asks_for_the_gateway_stays_and_only_that(gen: Gen) -> None:
    gateway = bytes((10, 1, 0, 1))
    gen.steering.put_tenant(ACME, [VTEP[0]], [gateway])
    question, ping, data = packet("10.1.0.9", ethertype=0x0806), packet("10.1.0.1"), packet("10.2.0.1")
    gen.receive(question, data, ping, ping)
    assert sorted(gen.kept) == sorted(
        [Kept(ACME, VTEP[0], question, 120), Kept(ACME, VTEP[0], ping + ping, 120)]
    )
    assert gen.fabric.sent == [(data, 120, GPN1.address, 0)]
    gen.kept.clear()
    gen.receive(question, source=GPN1.address)  # a GPN passes it on
    assert gen.kept == [Kept(ACME, None, question, 120)]
    gen.kept.clear()
    gen.receive(question, source=("10.20.0.99", 1))
    other_tenants = packet("10.1.0.1", GLOBEX)
    gen.receive(other_tenants, source=("10.20.0.6", 1))
    assert gen.kept == []
    assert gen.counters.nonzero() == {"gen_forwarded": 1, "gen_drop_vtep": 1, "gen_drop_no_route": 1}


def test_where_the_vtep_is_here_what_gpns_send_stays(gen: Gen) -> None:
    gen.steering.put_tenant(ACME, [HERE])
    inward, outward = packet("10.1.0.5"), packet("10.2.0.1")
    gen.receive(inward, inward, source=GPN1.address)
    gen.receive(outward, source=GPN2.address)  # the VNI's only VTEP is here: this too is for it
    assert gen.kept == [Kept(ACME, None, inward + inward, 120), Kept(ACME, None, outward, 120)]
    gen.receive(outward, outward, source=(HERE, 0))
    assert gen.fabric.sent == [(outward + outward, 120, GPN1.address, 0)]
    for stranger in (VTEP, (GPN1.address[0], 1), ("10.20.0.99", 4789)):
        gen.receive(inward, source=stranger)
    gen.receive(packet("10.1.0.5", ethertype=0x0806), source=GPN1.address)
    assert len(gen.kept) == 2
    assert gen.counters.nonzero() == {"gen_forwarded": 2, "gen_drop_vtep": 3, "gen_drop_not_ip": 1}


def test_arp_is_for_gateways_with_an_ipv4_address(gen: Gen) -> None:
    gen.steering.put_tenant(ACME, [VTEP[0]], [bytes(16)])
    gen.receive(packet("10.1.0.9", ethertype=0x0806))
    assert gen.counters.nonzero() == {"gen_drop_not_ip": 1}


def test_what_the_kernel_refuses_is_counted(gen: Gen) -> None:
    gen.fabric.accepting = False
    gen.receive(packet("10.2.0.1"), packet("10.2.0.1"))
    assert gen.counters.nonzero() == {"gen_drop_send": 2}


def test_the_flow_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "MAX_FLOWS", 8)
    gen = _world()
    for host in range(100):
        assert gen.goes_to(f"10.2.0.{host}") == GPN1.address
    assert len(gen.steering._flows) <= 8


@given(st.binary(max_size=400), st.integers(1, 150))
def test_every_packet_of_a_hostile_batch_is_counted_once(data: bytes, size: int) -> None:
    counters = Counters()
    steering = MuxEgress(RecordingSender(), counters, lambda *_: None)
    steering.forward(Batch(memoryview(data), min(size, len(data)), VTEP))
    assert sum(counters.values()) == max(1, -(-len(data) // size))


addresses = st.sampled_from(["10.2.0.1", "10.2.1.1", "10.2.0.2", "2001:db8::1", "2001:db9::1", "2001:db8::2"])


@given(st.lists(addresses, min_size=1, max_size=5), st.sampled_from([ACME, GLOBEX]), st.integers(62, 130))
def test_a_batch_is_uniform_if_its_packets_agree(found: list[str], last: int, size: int) -> None:
    packets = [packet(address, length=size) for address in found] + [packet(found[0], last, 62)]
    rows = [fields(memoryview(each), len(each)) for each in packets]
    assert uniform(memoryview(b"".join(packets)), size, len(packets), rows[0]) == (len(set(rows)) == 1)


STRANGE = packet("10.3.0.1"), packet("10.2.0.1", GLOBEX), bytes(120), bytes((0, 0, 0, 1)) * 30
ODD = st.sampled_from([packet("10.2.0.9"), *STRANGE])
COMING = st.tuples(
    st.sampled_from(["10.2.0.1", "10.2.0.9", "2001:db8:2::1", "10.9.0.1"]),
    st.integers(LONG + 1, LONG + 2),
    st.integers(20, 120),  # bytes of the last
    st.integers(1, 3),  # times
    st.lists(st.tuples(st.integers(0, LONG + 2), ODD), max_size=1),
    st.sampled_from([VTEP, VTEP, ("10.20.0.6", 51111), GPN1.address]),
)
CHANGES = "route", "no route", "tenant", "gpn"


@given(st.lists(st.one_of(COMING, st.sampled_from(CHANGES)), max_size=12))
def test_batches_that_come_again_and_again_go_as_each_of_their_packets_would(steps: list[Any]) -> None:
    worlds = [_world(), _world()]
    for step in steps:
        for gen, singly in zip(worlds, (False, True), strict=True):
            if isinstance(step, str):
                _change(gen.steering, step)
                continue
            destination, count, last, times, odd, source = step
            packets = [packet(destination)] * count
            for place, other in odd:
                packets[place % count] = other
            packets[-1] = packets[-1][:last]
            gen.fabric.sent.clear()
            for some in times * ([[each] for each in packets] if singly else [packets]):
                gen.receive(*some, source=source)
        whole, one_by_one = worlds
        assert whole.counters.nonzero() == one_by_one.counters.nonzero()
        assert _by_flow(whole.fabric) == _by_flow(one_by_one.fabric)


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_makes_of_batches_that_came_again_and_again(change: str) -> None:
    fresh, gen = _world(), _world()
    batch = [packet("10.2.0.9")] * 44
    for _ in range(3):
        gen.receive(*batch)
    before = gen.fabric.sent.pop()
    gen.fabric.sent.clear()
    for one in (fresh, gen):
        _change(one.steering, change)
        one.receive(*batch)
    assert gen.fabric.sent == fresh.fabric.sent != [before]


def _by_flow(fabric: RecordingSender) -> dict[tuple[Address, bytes], list[bytes]]:
    """What was sent, in order, of each flow to each destination."""
    found: dict[tuple[Address, bytes], list[bytes]] = {}
    for data, size, dest, _ in fabric.sent:
        for segment in map(bytes, segments(memoryview(data), size)):
            found.setdefault((dest, segment[4:8] + segment[20:22] + segment[38:62]), []).append(segment)
    return found


def _change(steering: MuxEgress, what: str) -> None:
    match what:
        case "route":
            steering.put_route("acme/hq", ACME, ["10.2.0.0/24"], "gpn-2")
        case "no route":
            steering.drop_route("acme/hq")
        case "tenant":
            steering.put_tenant(ACME, ["10.20.0.6"])
        case "gpn":
            steering.put_gpn(replace(GPN1, address=("10.10.0.29", 4789)))


def test_what_stays_keeps_its_tos(gen: Gen) -> None:
    gen.steering.put_tenant(GLOBEX, [HERE])
    gen.receive(packet("10.1.0.5", GLOBEX), source=GPN1.address, tos=3)
    assert [(kept.vni, kept.tos) for kept in gen.kept] == [(GLOBEX, 3)]


def test_what_goes_to_a_tunnel_is_counted_and_told_when_it_has_changed(gen: Gen) -> None:
    gen.receive(*[packet("10.2.0.9")] * 9, packet("10.2.0.9", length=80))
    gen.receive(packet("10.3.0.9"), packet("10.2.0.7"))
    found = {each.of: (each.packets, each.bytes) for each in gen.steering.offered()}
    assert found == {"acme/hq": (11, 9 * 120 + 80 + 120), "acme/lab": (1, 120)}
    gen.receive(packet("10.3.0.9"))
    assert [(each.of, each.packets) for each in gen.steering.offered()] == [("acme/lab", 2)]
    gen.steering.put_route("acme/lab", ACME, ["10.3.0.0/24"], "gpn-1")
    gen.receive(packet("10.3.0.9"))
    assert [(each.of, each.packets) for each in gen.steering.offered()] == [("acme/lab", 3)], "it has moved"
    gen.receive(packet("10.3.0.9"))
    gen.steering.drop_route("acme/lab")
    gen.receive(packet("10.3.0.9"))
    assert gen.steering.offered() == []


def test_what_is_above_a_ceiling_is_not_offered(gen: Gen) -> None:
    gen.steering.limit("acme/hq", Rate(8_000, 1_000))
    gen.receive(*[packet("10.2.0.9")] * 100)
    (offered,) = gen.steering.offered()
    assert offered.packets == gen.counters["gen_forwarded"] < 100


SHORT = st.tuples(
    st.sampled_from(
        [packet("10.2.0.1"), packet("10.2.0.1"), packet("2001:db8:2::1"), packet("10.9.0.1"), *STRANGE]
    ),
    st.integers(1, 3),
    st.integers(1, 120),  # bytes of the last
    st.sampled_from([VTEP, VTEP, VTEP, ("10.20.0.6", 51111), GPN1.address]),
    st.sampled_from([0, 0, 0x28]),
)


@given(st.lists(SHORT, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_short_batches_go_together_as_they_would_one_by_one(
    shapes: list[tuple[bytes, int, int, Address, int]], limited: bool, accepting: bool
) -> None:
    train = []
    for data, count, last, source, tos in shapes:
        packets = (data * count)[: len(data) * (count - 1) + last]
        train.append(Batch(memoryview(packets), min(len(data), len(packets)), source, tos))
    together, singly = _world(), _world()
    for gen in (together, singly):
        gen.fabric.accepting = accepting
        if limited:
            gen.steering.limit("acme/hq", Rate(8_000, 1_000))
    if not together.steering.forward_row(train):
        assert not together.fabric.sent
        assert together.counters.nonzero() == {}
        for batch in train:
            together.steering.forward(batch)
    for batch in train:
        singly.steering.forward(batch)
    assert together.fabric.sent == singly.fabric.sent
    assert together.kept == singly.kept
    assert together.counters.nonzero() == singly.counters.nonzero()
    assert together.steering.offered() == singly.steering.offered()


@pytest.mark.parametrize("destination", ["10.2.0.1", "2001:db8:2::1"])
def test_short_batches_of_one_flow_are_looked_at_together(gen: Gen, destination: str) -> None:
    train = [
        Batch(memoryview(packet(destination, length=size)), size, VTEP, tos)
        for size, tos in ((90, 1), (70, 2))
    ]
    assert gen.steering.forward_row(train)
    assert [(size, dest, tos) for _, size, dest, tos in gen.fabric.sent] == [
        *((90, GPN1.address, 1), (70, GPN1.address, 2))
    ]
    assert gen.counters.nonzero() == {"gen_forwarded": 2}
