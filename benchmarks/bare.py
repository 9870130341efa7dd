"""`python -m benchmarks.bare ROLE FILE`: the least that two Python processes can do about a packet.

It has one SA of AES-GCM and one place to send to, and looks at nothing: no table, window, selector, limit or
counter, no other task. What it takes is what the kernel, the cipher and the copies take in any gateway whose
packets go through one process that steers and one that ciphers. `peers.py` sets it beside whole ones.

    forward   a GIN or GEN: what comes goes on as it is
    open      a GPN, peer to tenant: ESP becomes VXLAN
    seal      a GPN, tenant to peer: VXLAN becomes ESP

The second argument names a file with the role's `Part`, as JSON. "ready" on stdout says that the socket is
there.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protego_cli.esp.packet import trailer
from protego_cli.net.udp import RECEIVE_BYTES, UDP_GRO, UDP_SEGMENT, Address
from protego_cli.wire.vxlan import FRAME_LENGTH

CONTROL_BYTES: Final = socket.CMSG_SPACE(4)
SALT, IV, ESP_HEADER, BLOCK = 4, 8, 8, 4
IPV4 = 4

Work = Callable[[Sequence[memoryview]], list[bytes]]
"""The packets to send for those that have come, which are of one size but for the last."""


class Part(msgspec.Struct, frozen=True):
    """What a role is told."""

    here: Address
    there: Address
    key: bytes = b""  # with the salt
    spi: int = 0
    header: bytes = b""  # of a frame to the tenant
    buffer: int = 8 << 20


def opening(part: Part) -> Work:
    decrypt, salt, header = AESGCM(part.key[:-SALT]).decrypt, part.key[-SALT:], part.header

    def work(packets: Sequence[memoryview]) -> list[bytes]:
        start = ESP_HEADER + IV
        nonces = [salt + packet[ESP_HEADER:start] for packet in packets]
        texts = [packet[start:] for packet in packets]
        headers = [packet[:ESP_HEADER] for packet in packets]
        return [header + clear[: -2 - clear[-2]] for clear in map(decrypt, nonces, texts, headers)]

    return work


def sealing(part: Part) -> Work:
    encrypt, salt, numbers = AESGCM(part.key[:-SALT]).encrypt, part.key[-SALT:], count(1)
    head = struct.Struct("!II").pack

    def work(packets: Sequence[memoryview]) -> list[bytes]:
        clear = [packet[FRAME_LENGTH:] for packet in packets]
        texts = [b"".join((inner, trailer(len(inner), IPV4, BLOCK))) for inner in clear]
        mine = [next(numbers) for _ in packets]
        ivs = [number.to_bytes(IV) for number in mine]
        headers = [head(part.spi, number) for number in mine]
        sealed = map(encrypt, [salt + iv for iv in ivs], texts, headers)
        return list(map(b"".join, zip(headers, ivs, sealed, strict=True)))

    return work


WORKS: Final[dict[str, Callable[[Part], Work | None]]] = {
    "forward": lambda part: None,
    "open": opening,
    "seal": sealing,
}


def serve(part: Part, work: Work | None) -> None:
    """For ever."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, part.buffer)
    sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    sock.bind(part.here)
    print("ready", flush=True)
    view = memoryview(bytearray(RECEIVE_BYTES))
    views, there, receive, send = (view,), part.there, sock.recvmsg_into, sock.sendmsg
    while True:
        length, control, _, _ = receive(views, CONTROL_BYTES)
        size = int.from_bytes(control[0][2], sys.byteorder) if control else length
        data: memoryview | bytes = view[:length]
        if work is not None:
            packets = work([view[at : min(at + size, length)] for at in range(0, length, size)])
            data, size = b"".join(packets), len(packets[0])
        segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))] if len(data) > size else []
        send((data,), segment, 0, there)


def main() -> None:
    role, file = sys.argv[1:]
    part = msgspec.json.decode(Path(file).read_bytes(), type=Part)
    serve(part, WORKS[role](part))


if __name__ == "__main__":
    main()
