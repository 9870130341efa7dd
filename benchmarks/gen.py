"""What a GEN spends on VXLAN packets, beside bare receives and sends of the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial

from benchmarks import loads
from benchmarks.bench import Case, Cost, Effort, Side, compare
from benchmarks.floor import Step, floor
from benchmarks.gin import TARGET, TARGET_SINGLE
from benchmarks.gpn import FRAME, GATEWAY_MAC, VNI, VTEP_MAC, inner, remote, tenant
from benchmarks.loads import Load
from protego_cli.counters import Counters
from protego_cli.net.egress import MuxEgress
from protego_cli.net.pump import drain
from protego_cli.net.steering import Gpn
from protego_cli.net.tagging import TagLink
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header


def measure(load: Load, effort: Effort) -> Cost:
    """From the VTEP to the GPN. Sizes are those of the inner packets."""
    with ExitStack() as stack:
        vtep, fabric, sink = (
            stack.enter_context(closing(UdpSocket.bind(f"127.0.0.{host}", 0))) for host in (5, 12, 21)
        )
        counters = Counters()
        steering = MuxEgress(fabric, counters, lambda vni, origin, view, size: None)
        gpn = Gpn("gpn-1", sink.address, bytes(32))
        steering.put_gpn(gpn)
        steering.put_tenant(VNI, [vtep.address[0]])
        steering.put_route("acme/hq", VNI, ["10.2.0.0/16"], "gpn-1")
        tags = TagLink(fabric, counters, "gen_drop_tag")
        tags.put_gpn(gpn)
        (stretch,) = load.stretches
        frame = build_frame_header(VNI, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)
        buffers = [
            b"".join(frame + inner(tenant(), remote(packet.sa), packet.size) for packet in buffer)
            for buffer in stretch
        ]
        steps = [Step((), [([FRAME + packet.size for packet in buffer], sink.address)]) for buffer in stretch]
        bare_address, bare = floor(stack, steps)

        def handle(batch: Batch) -> None:
            for rest in tags.take(batch):
                steering.forward(rest)

        def empty() -> None:
            while drain(fabric, handle):
                pass

        def fill(dest: tuple[str, int]) -> None:
            for buffer, data in zip(stretch, buffers, strict=True):
                vtep.send(data, FRAME + buffer[0].size, dest)

        count = sum(map(len, stretch))
        return compare(
            Side(partial(fill, fabric.address), empty, count, count),
            Side(partial(fill, bare_address), bare, count, count),
            sink,
            effort,
        )


def cases() -> Iterator[Case]:
    """This role's lines of the table."""
    chosen = [(loads.full(size), TARGET) for size in loads.SIZES]
    chosen += [(loads.imix(), None), (loads.imix_single(), TARGET_SINGLE)]
    chosen += [(loads.single(size), TARGET_SINGLE) for size in loads.SIZES]
    for load, target in chosen:
        yield Case("GEN", "VTEP to GPN", "", load.name, load.size, target, partial(measure, load))
