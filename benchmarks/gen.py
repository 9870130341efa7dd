"""What a GEN spends on VXLAN packets, beside bare receives and sends of the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing

from benchmarks import forwarding
from benchmarks.bench import Case, Cost, Effort
from benchmarks.gpn import GATEWAY_MAC, VNI, VTEP_MAC, inner, remote, tenant
from benchmarks.loads import Load, Packet
from protego_cli.counters import Counters
from protego_cli.net.bundles import Bundler
from protego_cli.net.egress import MuxEgress
from protego_cli.net.pump import drain_trains
from protego_cli.net.steering import Gpn
from protego_cli.net.tagging import TagLink
from protego_cli.net.udp import Batch, UdpSocket
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header


def measure(load: Load, effort: Effort) -> Cost:
    """From the VTEP to the GPN. Sizes are those of the inner packets."""
    with ExitStack() as stack:
        vtep, fabric, gpn_socket = (
            stack.enter_context(closing(UdpSocket.bind(f"127.0.0.{host}", 0))) for host in (5, 12, 21)
        )
        counters = Counters()
        bundler = Bundler(fabric, counters, "gen_forwarded", "gen_drop_send")
        bundler.take(gpn_socket.address, True)
        steering = MuxEgress(bundler, counters, lambda vni, origin, view, size, tos: None)
        gpn = Gpn("gpn-1", gpn_socket.address, bytes(32))
        steering.put_gpn(gpn)
        steering.put_tenant(VNI, [vtep.address[0]])
        steering.put_route("acme/hq", VNI, ["10.2.0.0/16"], "gpn-1")
        tags = TagLink(fabric, counters, "gen_drop_tag")
        tags.put_gpn(gpn)
        frame = build_frame_header(VNI, GATEWAY_MAC, VTEP_MAC, ETHERTYPE_IPV4)

        def build(_: int, packet: Packet) -> bytes:
            return frame + inner(tenant(), remote(packet.sa), packet.size)

        def receive(batch: Batch) -> None:
            if tags.concerns(batch):
                for rest in tags.take(batch):
                    steering.forward(rest)
            else:
                steering.forward(batch)

        def receive_row(row: Sequence[Batch]) -> bool:
            return not tags.concerns(row[0]) and steering.forward_row(row)

        handle = bundler.over(receive, receive_row)

        def empty() -> None:
            while drain_trains(fabric, handle):
                pass

        return forwarding.forward(
            stack, load, effort, build, source=vtep, entry=fabric.address, empty=empty, sink=gpn_socket
        )


def cases() -> Iterator[Case]:
    """This role's lines of the table."""
    return forwarding.cases("GEN", "VTEP to GPN", measure)
