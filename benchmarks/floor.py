"""The floor: what a packet costs in any program that receives with GRO, calls a cipher and sends with GSO.

Nothing of Protego's runs here: one `recvmsg_into`, the AEAD's own method over a batch of ready nonces, texts
and headers, one `sendmsg` of a ready buffer. Without a cipher it is the floor of a node that only forwards.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, closing

from protego_cli.net.udp import CONTROL_BYTES, RECEIVE_BYTES, UDP_GRO, UDP_SEGMENT, Address

Cipher = Callable[[], object]
"""The bare cipher calls for one batch."""


def floor(
    stack: ExitStack, dest: Address, size: int, *, data: bytes | None = None, cipher: Cipher | None = None
) -> tuple[Address, Callable[[], None]]:
    """An address to fill, and what empties it towards `dest` in segments of `size` bytes.

    What leaves is `data` for every batch, or what came.
    """
    receiver, sender = (
        stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) for _ in range(2)
    )
    receiver.bind(("127.0.0.12", 0))
    receiver.setblocking(False)
    receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    sender.bind(("127.0.0.13", 0))
    view = memoryview(bytearray(RECEIVE_BYTES))
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))]

    def empty() -> None:
        while True:
            try:
                count = receiver.recvmsg_into((view,), CONTROL_BYTES)[0]
            except BlockingIOError:
                return
            if cipher is not None:
                cipher()
            sender.sendmsg((data or view[:count],), control, 0, dest)

    return receiver.getsockname(), empty
