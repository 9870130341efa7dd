"""What a GIN spends on ESP packets, beside bare receives and sends of the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing

from benchmarks import forwarding
from benchmarks.bench import Case, Cost, Effort
from benchmarks.loads import Load, Packet
from protego_cli.counters import Counters
from protego_cli.net.bundles import Bundler
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.pump import drain_trains
from protego_cli.net.steering import Gpn
from protego_cli.net.udp import UdpSocket
from protego_cli.net.vip import VipPort

SPI = 0xC0FFEE01


def measure(load: Load, effort: Effort) -> Cost:
    """From the peer to the GPN."""
    with ExitStack() as stack:
        peer, vip, fabric, gpn = (
            stack.enter_context(closing(UdpSocket.bind(f"127.0.0.{host}", 0))) for host in (7, 10, 11, 21)
        )
        counters = Counters()
        bundler = Bundler(fabric, counters, "gin_esp_forwarded", "gin_drop_send")
        bundler.take(gpn.address, True)
        steering = MuxIngress(bundler, counters)
        steering.put_gpn(Gpn("gpn-1", gpn.address, bytes(32)))
        steering.steer(SPI, "gpn-1", peer.address)
        port = VipPort(lambda message, source: None, steering, counters)

        def build(number: int, packet: Packet) -> bytes:
            return struct.pack("!II", SPI, number) + bytes(packet.size - 8)

        handle = bundler.over(port.receive_natt, port.receive_natt_row)

        def empty() -> None:
            while drain_trains(vip, handle):
                pass

        return forwarding.forward(
            stack, load, effort, build, source=peer, entry=vip.address, empty=empty, sink=gpn
        )


def cases() -> Iterator[Case]:
    """This role's lines of the table."""
    return forwarding.cases("GIN", "peer to GPN", measure)
