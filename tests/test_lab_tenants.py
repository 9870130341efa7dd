"""A tenant's end: what it sends to the GEN, and how it judges what GPNs bring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protego_cli.lab import layout
from protego_cli.lab.plan import Plan
from protego_cli.lab.tally import Tally
from protego_cli.lab.tenants import VXLAN_PORT, Vtep
from protego_cli.lab.traffic import Direction, Flow, build, parse
from protego_cli.net.gso import segments
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, FRAME_LENGTH, build_frame_header

IN = Flow(1, 0, Direction.IN)


@pytest.fixture
def plan() -> Iterator[Plan]:
    block, holder = layout.claim()
    with holder:
        yield layout.plan(Path("/nowhere"), block, tenants=2, gpns=2, pps=200)


@pytest.fixture
def vtep(plan: Plan) -> Iterator[Vtep]:
    gpns = {plan.nodes[name]: name for name in plan.gpns}
    end = Vtep(plan.sites[0], plan.gen, gpns, Tally([IN]))
    yield end
    end.socket.close()


def carried(plan: Plan, vtep: Vtep, frame: bytes, by: str) -> tuple[int, int, int, dict[str, int]]:
    """Received, misdelivered, corrupted and via after this frame arrived from that address."""
    vtep.receive(Batch(memoryview(frame), len(frame), (by, VXLAN_PORT)), 0.0)
    tally = vtep.tally
    return tally.flows[IN].received, tally.misdelivered, tally.corrupted, vtep.count().via


def test_a_packet_of_this_tenant_counts_for_the_gpn_that_carried_it(plan: Plan, vtep: Vtep) -> None:
    site = plan.sites[0]
    frame = build_frame_header(site.vni, site.vtep_mac, site.gateway_mac, ETHERTYPE_IPV4) + build(IN, 0)
    assert carried(plan, vtep, frame, plan.nodes["gpn-2"]) == (1, 0, 0, {"gpn-1": 0, "gpn-2": 1})


def test_whatever_is_in_the_wrong_place_is_misdelivered(plan: Plan, vtep: Vtep) -> None:
    mine, other = plan.sites
    gpn, inner = plan.nodes["gpn-1"], build(IN, 0)
    ours = (mine.vtep_mac, mine.gateway_mac, ETHERTYPE_IPV4)
    wrong = [
        (build_frame_header(other.vni, *ours) + inner, gpn),
        (build_frame_header(mine.vni, other.vtep_mac, mine.gateway_mac, ETHERTYPE_IPV4) + inner, gpn),
        (build_frame_header(mine.vni, *ours) + inner, plan.gen),
        (build_frame_header(mine.vni, *ours) + build(IN._replace(tenant=2), 0), gpn),
    ]
    for count, (frame, by) in enumerate(wrong, 1):
        assert carried(plan, vtep, frame, by)[:3] == (0, count, 0)


def test_damage_is_seen(plan: Plan, vtep: Vtep) -> None:
    site = plan.sites[0]
    frame = build_frame_header(site.vni, site.vtep_mac, site.gateway_mac, ETHERTYPE_IPV4) + build(IN, 0)
    for count, damaged in enumerate((frame[:-1], frame[:-1] + b"?", frame[:7]), 1):
        assert carried(plan, vtep, damaged, plan.nodes["gpn-1"])[:3] == (0, 0, count)


async def test_what_it_sends_is_vxlan_for_the_gen(plan: Plan, vtep: Vtep) -> None:
    gen = UdpSocket.bind(plan.gen, VXLAN_PORT)
    vtep.send(range(8))
    site, numbers = plan.sites[0], []
    while len(numbers) < 8:
        await gen.wait_readable()
        while (batch := gen.receive()) is not None:
            for segment in segments(batch.view, batch.size):
                header = build_frame_header(site.vni, site.gateway_mac, site.vtep_mac, b"")
                assert bytes(segment[: len(header)]) == header
                numbered = parse(segment[FRAME_LENGTH:])
                assert numbered is not None
                assert numbered.flow == Flow(1, 0, Direction.OUT)
                numbers.append(numbered.number)
    assert numbers == list(range(8))
    assert (vtep.sent, vtep.refused) == (8, 0)
    gen.close()
