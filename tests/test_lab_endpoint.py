"""The frame of an endpoint process: nothing that has arrived stays unseen."""

from __future__ import annotations

import os
import socket
import sys
from types import SimpleNamespace

import msgspec
import pytest
import trio

from protego_cli.lab import endpoint
from protego_cli.lab.protocol import Command, SiteCount, Snapshot
from protego_cli.net.gso import segments
from protego_cli.net.pump import BATCHES_PER_TURN
from protego_cli.net.udp import Batch, UdpSocket


class Sink:
    def __init__(self, expected: int) -> None:
        self.socket = UdpSocket.bind("127.0.0.1", 0)
        self.sent = 0
        self.sizes: list[int] = []
        self.complete = trio.Event()
        self._expected = expected

    def connect(self, now: float) -> None:
        raise NotImplementedError

    def tick(self, now: float) -> None:
        raise NotImplementedError

    def send(self, numbers: range) -> None:
        raise NotImplementedError

    def receive(self, batch: Batch, now: float) -> None:
        self.sizes += [len(segment) for segment in segments(batch.view, batch.size)]
        if len(self.sizes) == self._expected:
            self.complete.set()


@pytest.mark.parametrize("count", range(BATCHES_PER_TURN, BATCHES_PER_TURN + 3))
async def test_the_last_packet_of_a_full_turn_does_not_wait_for_the_next(count: int) -> None:
    """Each is longer than the one before, so none joins it: the socket object holds one back in between."""
    sink, sizes = Sink(count), list(range(100, 100 + count))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in sizes:
            sender.sendto(bytes(size), sink.socket.address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endpoint._receive, [sink])
        with trio.move_on_after(1):
            await sink.complete.wait()
        nursery.cancel_scope.cancel()
    sink.socket.close()
    assert sink.sizes == sizes


async def test_what_waits_is_counted_before_the_account_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that got no CPU for a while may read the question before the packets that came earlier."""
    sink, sizes = Sink(200), list(range(100, 300))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in sizes:
            sender.sendto(bytes(size), sink.socket.address)
    stdin, asking = os.pipe()
    answers, stdout = os.pipe()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: stdin))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: stdout))
    os.write(asking, msgspec.json.encode(Command("account")) + b"\n")
    os.close(asking)

    def look(*_: object) -> Snapshot:
        return Snapshot((SiteCount(received=len(sink.sizes)),))

    await endpoint._serve([sink], endpoint.Pacer(1, 1), look)
    answer = msgspec.json.decode(os.read(answers, 1 << 16), type=Snapshot)
    os.close(answers)
    sink.socket.close()
    assert answer.sites[0].received == 200
