"""Both ends of a cluster's tunnels: one process sends at a steady pace, another receives and does the IKE.

1. The sender sends a train of packets every interval, in both directions, the tunnels taking turns: sealed by
   the peer, and in VXLAN from the tenant.
2. The receiver takes what arrives at either end, with the time at which the kernel had it, not that at which
   Python looked. It answers IKE, and tells the sender which SA to seal on.

So neither a handshake nor the counting holds the sending up.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import socket
import struct
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from typing import Final

from benchmarks.gpn import inner
from benchmarks.initiator import NON_ESP, Initiator, sealer
from protego_cli.esp.packet import trailer
from protego_cli.esp.sa import OutboundSa
from protego_cli.ike.events import Policy
from protego_cli.lab.plan import Plan
from protego_cli.net.udp import RECEIVE_BYTES, UDP_GRO, UdpSocket
from protego_cli.net.vip import MIN_ESP
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header

IDLE, DIAL, SEND, STOP = range(4)
INWARD, OUTWARD = range(2)
NATT, VXLAN = 4500, 4789
SIZE: Final = 1400  # bytes of an inner packet
HERE, THERE = bytes((10, 1, 0, 10)), bytes((10, 2, 0, 10))
DEBT: Final = 0.005  # seconds of sending that are made up for; what is later is left out
LOOK: Final = 0.01  # seconds
FORK: Final = multiprocessing.get_context("fork")
SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h, the same number for the control message
_TIMESPEC, _INT = struct.Struct("=qq"), struct.Struct("=i")


class Log:
    """When how many packets left, or came."""

    def __init__(self) -> None:
        self.at = array("Q")  # nanoseconds since 1970
        self.packets = array("I")

    def add(self, at: int, packets: int) -> None:
        self.at.append(at)
        self.packets.append(packets)

    def bins(self, begin: int, width: int, count: int) -> list[int]:
        """Packets in each of `count` bins of `width` nanoseconds."""
        found = [0] * count
        for at, packets in zip(self.at, self.packets, strict=True):
            place = (at - begin) // width
            if 0 <= place < count:
                found[place] += packets
        return found

    def total(self) -> int:
        return sum(self.packets)


class Ends:
    """The two processes, and what this one tells them."""

    def __init__(self, stack: ExitStack, plan: Plan, policies: Sequence[Policy]) -> None:
        """Bind all sockets and start both. `policies` are the peers', in the order of the plan's sites."""
        self.mode = FORK.RawValue("I", IDLE)
        self.train = FORK.RawValue("I", 1)  # packets
        self.interval = FORK.RawValue("d", 0.001)  # seconds between trains of a direction
        self.tunnels = FORK.RawValue("I", 1)  # that take turns, from the first on
        self.up = FORK.RawValue("I", 0)
        self.sent = FORK.RawValue("Q", 0)  # packets, in both directions
        self.plan = plan
        self._parent = os.getpid()
        self.peers = [
            Initiator(_bind(stack, site.peer, NATT), (plan.vip, NATT), policy)
            for site, policy in zip(plan.sites, policies, strict=True)
        ]
        self.vteps = [_bind(stack, site.vtep, VXLAN) for site in plan.sites]
        hears, tells = FORK.Pipe(duplex=False)
        pipes = [FORK.Pipe(duplex=False) for _ in range(2)]
        self._logs = [log for log, _ in pipes]
        self._processes = [
            FORK.Process(target=_send, args=(self, hears, pipes[0][1]), daemon=True),
            FORK.Process(target=_receive, args=(self, tells, pipes[1][1]), daemon=True),
        ]
        for process in self._processes:
            process.start()
        stack.callback(self._end)
        for pipe in (hears, tells, *(log for _, log in pipes)):
            pipe.close()  # these ends are theirs: when they are gone, whoever reads hears of it

    def running(self) -> bool:
        """Asked by the two: until they are told to stop, or this process is gone."""
        return self.mode.value != STOP and os.getppid() == self._parent

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    def logs(self) -> dict[str, list[Log]]:
        """Stop both; what was sent and what came, by direction."""
        self.mode.value = STOP
        return dict(log.recv() for log in self._logs)

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def _bind(stack: ExitStack, address: str, port: int) -> UdpSocket:
    return stack.enter_context(closing(UdpSocket.bind(address, port)))


def _send(ends: Ends, keys: Connection, logs: Connection) -> None:
    sent = [Log(), Log()]
    sealers: dict[int, OutboundSa] = {}
    frames = [
        build_frame_header(site.vni, site.gateway_mac, site.vtep_mac, ETHERTYPE_IPV4)
        + inner(HERE, THERE, SIZE)
        for site in ends.plan.sites
    ]
    packet, gen = inner(THERE, HERE, SIZE), (ends.plan.gen, VXLAN)
    turn, due = 0, time.monotonic()
    while ends.running():
        while keys.poll():
            number, child = keys.recv()
            sealers[number] = sealer(child)
        now = time.monotonic()
        if ends.mode.value != SEND:
            due = now
            time.sleep(LOOK)
        elif now < due:
            time.sleep(due - now)
        else:
            number, count = turn % ends.tunnels.value, ends.train.value
            sa = sealers[number]
            data = sa.seal([packet + trailer(SIZE, 4, sa.block)] * count)
            peer = ends.peers[number]
            sent[INWARD].add(time.time_ns(), count)
            peer.socket.send(data, len(data) // count, peer.gateway)
            sent[OUTWARD].add(time.time_ns(), count)
            ends.vteps[number].send(frames[number] * count, len(frames[number]), gen)
            ends.sent.value += 2 * count
            turn += 1
            due = max(due + ends.interval.value, now - DEBT)
    logs.send(("sent", sent))


def _receive(ends: Ends, keys: Connection, logs: Connection) -> None:
    receiver = _Receiver(ends, keys)
    while ends.mode.value == IDLE and ends.running():
        time.sleep(LOOK)
    if ends.running():
        receiver.dial()
    while ends.running():
        receiver.serve()
    logs.send(("came", receiver.came))


class _Receiver:
    def __init__(self, ends: Ends, keys: Connection) -> None:
        self._ends = ends
        self._keys = keys
        self.came = [Log(), Log()]
        self._sealing: list[int] = []  # by tunnel: inbound SPI of the SA that the sender seals on
        self._sockets: dict[int, tuple[socket.socket, int | None]] = {}  # the number of a peer's tunnel
        self._ready = select.epoll()
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))

    def dial(self) -> None:
        for number, peer in enumerate(self._ends.peers):
            child = peer.dial()
            self._keys.send((number, child))
            self._sealing.append(child.spi_in)
            self._watch(peer.socket, number)
            self._ends.up.value += 1
        for vtep in self._ends.vteps:
            self._watch(vtep, None)

    def _watch(self, sock: UdpSocket, number: int | None) -> None:
        """Read it here from now on, with times."""
        same = socket.socket(fileno=socket.dup(sock.fileno()))
        same.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._sockets[same.fileno()] = same, number
        self._ready.register(same.fileno(), select.EPOLLIN)

    def serve(self) -> None:
        for descriptor, _ in self._ready.poll(LOOK):
            self._drain(*self._sockets[descriptor])
        for peer in self._ends.peers:
            peer.tick()

    def _drain(self, sock: socket.socket, number: int | None) -> None:
        room = socket.CMSG_SPACE(_TIMESPEC.size) + 2 * socket.CMSG_SPACE(_INT.size)
        for _ in range(64):
            try:
                length, control, _, _ = sock.recvmsg_into((self._buffer,), room)
            except BlockingIOError:
                return
            size, at = length, 0
            for level, kind, data in control:
                if level == socket.IPPROTO_UDP and kind == UDP_GRO:
                    size = _INT.unpack(data)[0]
                elif level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack(data)
                    at = seconds * 10**9 + nanoseconds
            view = self._buffer[:length]
            if number is None:
                self.came[INWARD].add(at, -(-length // size))
            elif view[:4] == NON_ESP:
                self._ends.peers[number].hear(view)
                self._seal_on(number, self._sealing[number])
            elif length >= MIN_ESP:
                self.came[OUTWARD].add(at, -(-length // size))
                self._seal_on(number, int.from_bytes(view[:4]))

    def _seal_on(self, number: int, spi: int) -> None:
        """A packet came on this SA: the sender may use it, if it is the newest (RFC 7296 2.8)."""
        children = self._ends.peers[number].children
        newest = next(reversed(children))
        if newest != self._sealing[number] and (spi == newest or self._sealing[number] not in children):
            self._sealing[number] = newest
            self._keys.send((number, children[newest]))
