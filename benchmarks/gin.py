"""What a GIN spends on ESP packets, beside bare receives and sends of the same."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial

from benchmarks import loads
from benchmarks.bench import Case, Cost, Effort, Side, compare
from benchmarks.floor import Step, floor
from benchmarks.loads import Load
from protego_cli.counters import Counters
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.pump import drain
from protego_cli.net.steering import Gpn
from protego_cli.net.udp import UdpSocket
from protego_cli.net.vip import VipPort

SPI = 0xC0FFEE01
TARGET, TARGET_SINGLE = 1.5, 1.6


def measure(load: Load, effort: Effort) -> Cost:
    """From the peer to the GPN."""
    with ExitStack() as stack:
        peer, vip, fabric, gpn = (
            stack.enter_context(closing(UdpSocket.bind(f"127.0.0.{host}", 0))) for host in (7, 10, 11, 21)
        )
        counters = Counters()
        steering = MuxIngress(fabric, counters)
        steering.put_gpn(Gpn("gpn-1", gpn.address, bytes(32)))
        steering.steer(SPI, "gpn-1", peer.address)
        port = VipPort(lambda message, source: None, steering, counters)
        (stretch,) = load.stretches
        steps = [Step((), [([packet.size for packet in buffer], gpn.address)]) for buffer in stretch]
        bare_address, bare = floor(stack, steps)
        buffers = [
            b"".join(
                struct.pack("!II", SPI, number) + bytes(packet.size - 8)
                for number, packet in enumerate(buffer)
            )
            for buffer in stretch
        ]

        def empty() -> None:
            while drain(vip, port.receive_natt):
                pass

        def fill(dest: tuple[str, int]) -> None:
            for buffer, data in zip(stretch, buffers, strict=True):
                peer.send(data, buffer[0].size, dest)

        count = sum(map(len, stretch))
        return compare(
            Side(partial(fill, vip.address), empty, count, count),
            Side(partial(fill, bare_address), bare, count, count),
            gpn,
            effort,
        )


def cases() -> Iterator[Case]:
    """This role's lines of the table."""
    chosen = [(loads.full(size), TARGET) for size in loads.SIZES]
    chosen += [(loads.imix(), None), (loads.imix_single(), TARGET_SINGLE)]
    chosen += [(loads.single(size), TARGET_SINGLE) for size in loads.SIZES]
    for load, target in chosen:
        yield Case("GIN", "peer to GPN", "", load.name, load.size, target, partial(measure, load))
