"""The floor: what packets cost in any program that receives with GRO, calls a cipher and sends with GSO.

Nothing of Protego's runs here: one `recvmsg_into`, the AEAD's own method over a batch of ready nonces, texts
and headers (or CBC over all blocks in one call, and a MAC of each packet), one `sendmsg` of a ready buffer
for each run of one size that goes to one place. Where datagrams come one by one, each is received, ciphered
and sent by itself. Without a cipher it is the floor of a node that only forwards.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import cycle
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher as CipherContext
from cryptography.hazmat.primitives.ciphers.modes import CBC

from protego_cli.crypto.algorithms import Encryption, EspSuite, Mac
from protego_cli.net.udp import RECEIVE_BYTES, UDP_GRO, UDP_SEGMENT, Address

CONTROL_BYTES = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(1)

Cipher = Callable[[], object]
"""The bare cipher calls for a row of packets of one SA."""


class Step(NamedTuple):
    """What is done about one received buffer."""

    ciphers: Sequence[Cipher]
    sends: Sequence[tuple[Sequence[int], Address]]  # sizes of datagrams in a run, destination


def opening(suite: EspSuite, key: bytes, packets: Sequence[bytes]) -> Cipher:
    """The calls that open these packets, each part of them ready."""
    first = suite.encryption.key_length
    if isinstance(suite.encryption, Encryption):
        aead, salt = suite.encryption.make(key[:first]), key[first:]
        nonces, texts = [salt + packet[8:16] for packet in packets], [packet[16:] for packet in packets]
        headers = [packet[:4] + bytes(4 * suite.esn) + packet[4:8] for packet in packets]
        if len(packets) == 1:
            return partial(aead.decrypt, nonces[0], texts[0], headers[0])
        return lambda: list(map(aead.decrypt, nonces, texts, headers))
    mac, icv = _mac(suite, key)
    decryptor = CipherContext(suite.encryption.make(key[:first]), CBC(bytes(16))).decryptor()
    texts = [packet[:-icv] + bytes(4 * suite.esn) for packet in packets]
    sealed = b"".join([packet[8:-icv] for packet in packets])

    def call() -> None:
        _authenticate(mac, texts)
        decryptor.update(sealed)

    return call


def sealing(suite: EspSuite, key: bytes, packets: Sequence[bytes]) -> Cipher:
    """The calls that seal packets of the size of these, each part of them ready."""
    first = suite.encryption.key_length
    if isinstance(suite.encryption, Encryption):
        aead, count = suite.encryption.make(key[:first]), len(packets)
        headers, nonces = [bytes(12 if suite.esn else 8)] * count, [bytes(12)] * count
        clear = [packet[16 : -suite.encryption.icv_length] for packet in packets]
        if count == 1:
            return partial(aead.encrypt, nonces[0], clear[0], headers[0])
        return lambda: list(map(aead.encrypt, nonces, clear, headers))
    mac, icv = _mac(suite, key)
    encryptor = CipherContext(suite.encryption.make(key[:first]), CBC(bytes(16))).encryptor()
    texts = [packet[:-icv] + bytes(4 * suite.esn) for packet in packets]
    blocks = b"".join([packet[8:-icv] for packet in packets])

    def call() -> None:
        encryptor.update(blocks)
        _authenticate(mac, texts)

    return call


def _mac(suite: EspSuite, key: bytes) -> tuple[Mac, int]:
    if suite.integrity is None:
        raise ValueError(f"{suite} has no MAC")
    return suite.integrity.make(key[suite.encryption.key_length :]), suite.integrity.icv_length


def _authenticate(mac: Mac, texts: Sequence[bytes]) -> None:
    """One MAC each, as fast as Python can ask for them."""
    kind, copy = type(mac), mac.copy
    macs = [copy() for _ in texts]
    list(map(kind.update, macs, texts))
    list(map(kind.finalize, macs))


def floor(stack: ExitStack, steps: Sequence[Step]) -> tuple[Address, Callable[[], None]]:
    """An address to fill, and what empties it, one step for each buffer received, in turns."""
    receiver, sender = (
        stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) for _ in range(2)
    )
    receiver.bind(("127.0.0.12", 0))
    receiver.setblocking(False)
    receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    sender.bind(("127.0.0.13", 0))
    views = (memoryview(bytearray(RECEIVE_BYTES)),)
    zeros = memoryview(bytes(RECEIVE_BYTES))
    ready = cycle(
        [
            (step.ciphers, [((zeros[: sum(sizes)],), _control(sizes), 0, dest) for sizes, dest in step.sends])
            for step in steps
        ]
    )
    receive, send = receiver.recvmsg_into, sender.sendmsg

    def empty() -> None:
        while True:
            try:
                receive(views, CONTROL_BYTES)
            except BlockingIOError:
                return
            ciphers, sends = next(ready)
            for cipher in ciphers:
                cipher()
            for arguments in sends:
                send(*arguments)

    return receiver.getsockname(), empty


def _control(sizes: Sequence[int]) -> list[tuple[int, int, bytes]]:
    if len(sizes) == 1:
        return []
    return [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", sizes[0]))]
