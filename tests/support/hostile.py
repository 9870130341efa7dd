"""Send COUNT hostile datagrams to the named addresses: python hostile.py COUNT SPI_HEX ADDRESS:PORT ...

To an ADDRESS without a port they go as IP protocol 50.

The stream is seeded, so a run can be repeated: random bytes, IKE headers with random or truncated bodies
and zero payload lengths, ESP for the given live SPI and for unknown ones, reserved SPIs (tags), VXLAN,
keepalives.
"""

from __future__ import annotations

import random
import socket
import struct
import sys


def datagram(rng: random.Random, spi: bytes) -> bytes:
    kind = rng.randrange(9)
    noise = rng.randbytes(rng.choice((0, 1, 3, 4, 8, 20, 60, 200, 1200)))
    ike = struct.pack(
        "!8s8sBBBBII",
        rng.randbytes(8),
        bytes(8) if rng.random() < 0.5 else rng.randbytes(8),
        rng.choice((33, 34, 40, 41, 46, 47, 0, 255)),  # next payload
        rng.choice((0x20, 0x10, 0x30)),  # version
        rng.choice((34, 35, 36, 37, 0)),  # exchange
        rng.choice((0x08, 0x20, 0x00, 0xFF)),  # flags
        rng.choice((0, 1, 2, 0xFFFFFFFF)),  # message ID
        rng.choice((28 + len(noise), 28, 0, 0xFFFFFFFF)),  # length
    )
    match kind:
        case 0:
            return noise
        case 1:
            return bytes(4) + ike + noise
        case 2:
            return ike + noise
        case 3:
            return bytes(4) + ike + struct.pack("!BBH", 33, 0, 0) + noise  # a payload of length zero
        case 4:
            return spi + rng.randbytes(4) + noise
        case 5:
            return struct.pack("!I", rng.randrange(256, 1 << 32)) + rng.randbytes(4) + noise
        case 6:
            return struct.pack("!I", rng.randrange(1, 256)) + noise
        case 7:
            return (
                struct.pack("!B3xI", rng.choice((0x08, 0x00, 0xFF)), rng.choice((1001, 1002, 0)) << 8) + noise
            )
        case _:
            return b"\xff" * rng.choice((1, 2))


def main(count: int, spi: bytes, targets: list[str]) -> None:
    rng = random.Random(20261122)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ESP)
    parts = (target.partition(":") for target in targets)
    ways = [(udp if port else raw, (host, int(port or 0))) for host, _, port in parts]
    for number in range(count):
        sock, address = ways[number % len(ways)]
        try:
            sock.sendto(datagram(rng, spi), address)
        except OSError:  # a refused port or a full queue: the next one goes on
            continue


if __name__ == "__main__":
    main(int(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3:])
