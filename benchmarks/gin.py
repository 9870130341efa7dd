"""What a GIN spends on an ESP packet, beside its floor: a bare GRO receive and a bare GSO send of the batch.

A peer fills a socket with batches of 44 packets of 1,400 bytes; then either the GIN's own loop or the two
bare system calls empty it towards a GPN. Only that is timed, in CPU seconds of this process, both in turns,
so that whatever else the machine does falls on both alike.
"""

from __future__ import annotations

import socket
import statistics
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import NamedTuple

from protego_cli.counters import Counters
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.pump import drain
from protego_cli.net.steering import Gpn
from protego_cli.net.udp import CONTROL_BYTES, RECEIVE_BYTES, UDP_GRO, UDP_SEGMENT, Address, UdpSocket
from protego_cli.net.vip import VipPort

PACKETS = 44
SIZE = 1400
SPI = 0xC0FFEE01
BATCHES = 2  # in a timed stretch: as many as the socket buffer of an unprivileged process holds
STRETCHES = 32  # in a round


class Cost(NamedTuple):
    """CPU seconds per packet."""

    loop: float
    floor: float


def measure(rounds: int = 50) -> Cost:
    """Medians over the rounds."""
    with ExitStack() as stack:
        peer, vip, fabric, gpn = (
            stack.enter_context(closing(UdpSocket.bind(f"127.0.0.{host}", 0))) for host in (7, 10, 11, 21)
        )
        counters = Counters()
        steering = MuxIngress(fabric, counters)
        steering.put_gpn(Gpn("gpn-1", gpn.address, bytes(32)))
        steering.steer(SPI, "gpn-1", peer.address)
        port = VipPort(lambda message, source: None, steering, counters)
        sink, bare = _bare(stack, gpn.address)
        batch = b"".join(struct.pack("!II", SPI, number) + bytes(SIZE - 8) for number in range(PACKETS))

        def own() -> None:
            while drain(vip, port.receive_natt):
                pass

        def round_of(dest: Address, empty: Callable[[], None]) -> float:
            """Fill, time the emptying, take away what reached the GPN; and again."""
            spent, arrived = 0.0, 0
            for _ in range(STRETCHES):
                for _ in range(BATCHES):
                    peer.send(batch, SIZE, dest)
                began = time.process_time()
                empty()
                spent += time.process_time() - began
                while (received := gpn.receive()) is not None:
                    arrived += len(received.view) // SIZE
            if arrived != STRETCHES * BATCHES * PACKETS:
                raise RuntimeError(f"{arrived} packets arrived of {STRETCHES * BATCHES * PACKETS}")
            return spent / arrived

        rows = [(round_of(vip.address, own), round_of(sink, bare)) for _ in range(rounds)]
    loops, floors = zip(*rows, strict=True)
    return Cost(statistics.median(loops), statistics.median(floors))


def _bare(stack: ExitStack, gpn: Address) -> tuple[Address, Callable[[], None]]:
    """The floor's address, and the system calls that empty it: until nothing is left, as the GIN does."""
    receiver, sender = (
        stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) for _ in range(2)
    )
    receiver.bind(("127.0.0.12", 0))
    receiver.setblocking(False)
    receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    sender.bind(("127.0.0.13", 0))
    view = memoryview(bytearray(RECEIVE_BYTES))
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", SIZE))]

    def empty() -> None:
        while True:
            try:
                count = receiver.recvmsg_into((view,), CONTROL_BYTES)[0]
            except BlockingIOError:
                return
            sender.sendmsg((view[:count],), control, 0, gpn)

    return receiver.getsockname(), empty


if __name__ == "__main__":
    cost = measure()
    print(
        f"GIN loop {cost.loop * 1e6:.2f} µs CPU per packet, floor {cost.floor * 1e6:.2f} µs, "
        f"ratio {cost.loop / cost.floor:.2f}, {SIZE * 8e-9 / cost.loop:.1f} Gbit/s per core"
    )
