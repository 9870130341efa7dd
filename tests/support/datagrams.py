"""Datagrams as peers, tenants and nodes send them, and a socket to speak them with."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import trio
import trio.testing

from protego_cli.control.channel.node_messages import Report
from protego_cli.counters import Counters
from protego_cli.net.bundles import unbundled
from protego_cli.net.gso import segments
from protego_cli.net.udp import Address, UdpSocket
from protego_cli.wire.bundle import build


def esp(spi: int, seq: int, length: int = 100) -> bytes:
    """An ESP packet by its header; the rest is zero."""
    return struct.pack("!II", spi, seq) + bytes(length - 8)


def vxlan(destination: str, vni: int, length: int = 120, ethertype: int | None = None) -> bytes:
    """A VXLAN packet to an inner destination; what steering does not look at is zero."""
    address = ipaddress.ip_address(destination)
    head = bytes([8, 0, 0, 0]) + vni.to_bytes(3) + bytes(1) + bytes(12)
    if address.version == 4:
        head += (ethertype or 0x0800).to_bytes(2) + bytes([0x45]) + bytes(15) + address.packed
    else:
        head += (ethertype or 0x86DD).to_bytes(2) + bytes([0x60]) + bytes(23) + address.packed
    return head + bytes(length - len(head))


class Station:
    """A UDP socket that says and hears single datagrams, those in bundles, too."""

    def __init__(self, sock: UdpSocket) -> None:
        self._sock = sock
        self._heard: list[tuple[bytes, Address, int]] = []
        self.datagrams = 0  # that came, bundles undivided
        self.address = sock.address

    def say(self, dest: Address, *datagrams: bytes, tos: int = 0) -> None:
        for datagram in datagrams:
            assert self._sock.send(datagram, len(datagram), dest, tos=tos)

    def say_batch(self, dest: Address, *datagrams: bytes, tos: int = 0) -> None:
        """Datagrams of one length, the last perhaps shorter, in one segmented send."""
        assert self._sock.send(b"".join(datagrams), len(datagrams[0]), dest, tos=tos)

    async def hear(self) -> tuple[bytes, Address]:
        """The next datagram and where it came from."""
        data, source, _ = await self.hear_all()
        return data, source

    async def hear_all(self) -> tuple[bytes, Address, int]:
        """The next datagram, where it came from, and its TOS."""
        with trio.fail_after(10):
            while not self._heard:
                batch = self._sock.receive()
                if batch is None:
                    await self._sock.wait_readable()
                    continue
                self.datagrams += -(-len(batch.view) // batch.size) if batch.size else 1
                for view, size, source, tos in unbundled(
                    [batch], {batch.source[0]}, Counters(), "gpn_drop_tag"
                ):
                    self._heard += [(bytes(part), source, tos) for part in segments(view, size)]
            return self._heard.pop(0)


@contextmanager
def station(address: str, port: int = 0) -> Iterator[Station]:
    sock = UdpSocket.bind(address, port)
    try:
        yield Station(sock)
    finally:
        sock.close()


def bundle(*batches: tuple[int, bytes]) -> bytes:
    shapes = [number for size, data in batches for number in (size, len(data))]
    before, behind = build(shapes, sum(shapes[1::2]))
    return before + b"".join(data for _, data in batches) + behind


class Plane(Protocol):
    """What all data planes have."""

    counters: Counters

    def report(self) -> Report: ...


async def counted(plane: Plane, expected: Mapping[str, int]) -> None:
    """Wait until these counters stand so, and see that no other does."""
    with trio.fail_after(10):
        while any(plane.report().counters.get(name, 0) < count for name, count in expected.items()):
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert plane.counters.nonzero() == expected
