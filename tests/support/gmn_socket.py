"""The fabric socket of a GMN, in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from protego_cli.crypto.mac import hmac_sha256
from protego_cli.net.udp import Address, Batch, Buffer
from protego_cli.wire.envelope import Envelope, open_envelope

KEY = b"k" * 32  # of every pair of nodes


class EnvelopeSocket:
    """The GMN's fabric socket: what it sends reaches the peers, what they send reaches it."""

    def __init__(self, to_peer: Callable[[Envelope], None]) -> None:
        self._to_peer = to_peer
        self._inbox: deque[tuple[bytes, Address]] = deque()
        self._arrived = trio.Event()
        self.refuses = False
        self.alive = True

    def receive(self) -> Batch | None:
        if not self._inbox:
            self._arrived = trio.Event()
            return None
        data, source = self._inbox.popleft()
        return Batch(memoryview(data), len(data), source)

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self._inbox:
            await self._arrived.wait()

    def send(self, data: Buffer, size: int, dest: Address) -> bool:
        if self.refuses or not self.alive:
            return False
        envelope = open_envelope(KEY, bytes(data), hmac_sha256)
        self._to_peer(envelope)
        return True

    def put(self, data: bytes, source: Address) -> None:
        self._inbox.append((data, source))
        self._arrived.set()
