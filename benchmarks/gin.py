"""What a GIN spends on an ESP packet of 1,400 bytes, beside a bare GRO receive and GSO send of its batch."""

from __future__ import annotations

import struct
from contextlib import ExitStack, closing

from benchmarks.bench import PACKETS, ROUNDS, Cost, Side, compare
from benchmarks.floor import floor
from protego_cli.counters import Counters
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.pump import drain
from protego_cli.net.steering import Gpn
from protego_cli.net.udp import UdpSocket
from protego_cli.net.vip import VipPort

SIZE = 1400
SPI = 0xC0FFEE01


def measure(rounds: int = ROUNDS) -> Cost:
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
        bare_address, bare = floor(stack, gpn.address, SIZE)
        batch = b"".join(struct.pack("!II", SPI, number) + bytes(SIZE - 8) for number in range(PACKETS))

        def empty() -> None:
            while drain(vip, port.receive_natt):
                pass

        def fill(dest: tuple[str, int]) -> None:
            peer.send(batch, SIZE, dest)

        return compare(
            Side(lambda: fill(vip.address), empty), Side(lambda: fill(bare_address), bare), gpn, rounds
        )
