"""`protego lab-tenants PLAN`: every tenant's endpoint, in one process that counts what it sends and receives.

1. Each tenant has a VTEP: a socket at an address of its own, port 4789.
2. Numbered packets go in VXLAN (RFC 7348) to the GEN.
3. What arrives comes from a GPN. Its VNI and Ethernet addresses must be the tenant's, its inner packet intact
   and numbered for this tenant; the outer source says which GPN carried it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from protego_cli.errors import Malformed
from protego_cli.lab.endpoint import pacer_of, run, transmit
from protego_cli.lab.plan import Plan, Site, read
from protego_cli.lab.protocol import SiteCount, Snapshot
from protego_cli.lab.tally import Tally
from protego_cli.lab.traffic import Direction, Flow, build
from protego_cli.net.gso import segments
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.wire.vxlan import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRAME_LENGTH,
    HEADER_LENGTH,
    build_frame_header,
    parse,
)

VXLAN_PORT = 4789
_ETHERTYPES = {4: ETHERTYPE_IPV4, 6: ETHERTYPE_IPV6}


class Vtep:
    """A tenant's end of its tunnel."""

    def __init__(self, site: Site, gen: str, gpns: dict[str, str], tally: Tally) -> None:
        """`gpns`: address -> name."""
        self.socket = UdpSocket.bind(site.vtep, VXLAN_PORT)
        self.sent = 0
        self.refused = 0
        self.via = dict.fromkeys(gpns.values(), 0)
        self._gen = (gen, VXLAN_PORT)
        self._gpns = gpns
        self.tally = tally
        self._vni = site.vni
        self._sends = Flow(site.tenant, 0, Direction.OUT)
        self.receives = Flow(site.tenant, 0, Direction.IN)
        there, here = site.gateway_mac, site.vtep_mac
        self._headers = {v: build_frame_header(site.vni, there, here, t) for v, t in _ETHERTYPES.items()}
        self._expected = {v: here + there + t for v, t in _ETHERTYPES.items()}

    def rekey(self, now: float) -> None:
        """The peer rekeys."""

    def connect(self, now: float) -> None:
        """The peer connects; a VTEP has no state to set up."""

    def tick(self, now: float) -> None:
        """Nothing here follows the clock but the sending."""

    def send(self, numbers: range) -> None:
        packets = [build(self._sends, number) for number in numbers]
        frames = [self._headers[packet[0] >> 4] + packet for packet in packets]
        self.sent += len(frames)
        self.refused += transmit(self.socket, frames, self._gen)

    def receive(self, batch: Batch, now: float) -> None:
        gpn = self._gpns.get(batch.source[0])
        for segment in segments(batch.view, batch.size):
            frame = bytes(segment)
            try:
                vni = parse(segment)
            except Malformed:
                self.tally.corrupted += 1
                continue
            if vni != self._vni or gpn is None or not self._framed(frame):
                self.tally.misdelivered += 1
                continue
            self.via[gpn] += 1
            self.tally.add(self.receives, frame[FRAME_LENGTH:])

    def _framed(self, frame: bytes) -> bool:
        """Whether the Ethernet header is what this VTEP expects of its gateway."""
        version = frame[FRAME_LENGTH] >> 4 if len(frame) > FRAME_LENGTH else 0
        return frame[HEADER_LENGTH:FRAME_LENGTH] == self._expected.get(version)

    def count(self, expected: int = 0) -> SiteCount:
        """`expected`: how many the other end has sent, where that is known."""
        flow = self.tally.flows[self.receives]
        return SiteCount(
            sent=self.sent,
            received=flow.received,
            duplicated=flow.duplicated,
            reordered=flow.reordered,
            gaps=flow.gaps(expected),
            via=self.via,
        )


def main(path: Path) -> None:
    """Run every tenant of the plan until stdin closes."""
    trio.run(_run, read(path))


async def _run(plan: Plan) -> None:
    tally = Tally(Flow(site.tenant, 0, Direction.IN) for site in plan.sites)
    gpns = {plan.nodes[name]: name for name in plan.gpns}
    vteps = [Vtep(site, plan.gen, gpns, tally) for site in plan.sites]
    pacer = pacer_of(plan)

    def look(sent: Sequence[int]) -> Snapshot:
        expected = sent or [0] * len(vteps)
        return Snapshot(
            sites=tuple(map(Vtep.count, vteps, expected)),
            misdelivered=tally.misdelivered,
            corrupted=tally.corrupted,
            seconds=pacer.seconds,
            drops={
                "refused by the kernel": sum(vtep.refused for vtep in vteps),
                "receive buffer full": sum(vtep.socket.overflow() for vtep in vteps),
            },
        )

    await run(vteps, pacer, look)
