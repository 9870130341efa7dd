"""ESP without UDP: how packets that a raw socket hands over become batches, and batches packets."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.counters import Counters
from protego_cli.errors import EnvironmentFault
from protego_cli.net.gso import segments
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.raw import RawSocket
from protego_cli.net.steering import Gpn
from protego_cli.net.udp import Batch
from protego_cli.net.vip import MIN_ESP, VipPort
from tests.support.datagrams import esp
from tests.support.senders import RecordingSender

PEER, OTHER = "198.51.100.7", "198.51.100.8"
SPI, SPI2 = 0xC0FFEE01, 0xC0FFEE02
GPN = ("10.10.0.11", 4500)


def packet(body: bytes, source: str = PEER, tos: int = 0, options: bytes = b"") -> bytes:
    """With the IP header as the kernel hands it over."""
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, tos, 0, 0, 0, 64, 50, 0)
    return head + socket.inet_aton(source) + socket.inet_aton("203.0.113.10") + options + body


class Kernel:
    """What `RawSocket` asks of a socket: packets that wait, and a memory of those that were sent."""

    def __init__(self, *waiting: bytes) -> None:
        self.waiting = deque(waiting)
        self.sent: list[tuple[bytes, list[tuple[int, int, bytes]], tuple[str, int]]] = []
        self.faults: deque[int] = deque()

    def getsockname(self) -> tuple[str, int]:
        return "203.0.113.10", 50

    def recvmsg_into(self, buffers: tuple[bytearray, memoryview]) -> tuple[int, list[object], int, object]:
        if not self.waiting:
            raise BlockingIOError
        data = self.waiting.popleft()
        head, body = buffers
        head[:] = data[:20]
        body[: len(data) - 20] = data[20:]
        return len(data), [], 0, (socket.inet_ntoa(data[12:16]), 0)

    def sendmsg(
        self, buffers: tuple[bytes], control: list[tuple[int, int, bytes]], flags: int, dest: tuple[str, int]
    ) -> None:
        if self.faults and (fault := self.faults.popleft()):
            raise OSError(fault, os.strerror(fault))
        self.sent.append((bytes(buffers[0]), control, dest))

    def fileno(self) -> int:
        return 0


def raw(*waiting: bytes) -> tuple[RawSocket, Kernel]:
    kernel = Kernel(*waiting)
    return RawSocket(kernel), kernel  # type: ignore[arg-type]  # as much of a socket as is asked for


def received(sock: RawSocket) -> list[tuple[list[bytes], tuple[str, int], int]]:
    found = []
    while (batch := sock.receive()) is not None:
        parts = [bytes(part) for part in segments(batch.view, batch.size)] if batch.size else [b""]
        found.append((parts, batch.source, batch.tos))
    return found


def test_packets_that_are_alike_come_as_one_batch() -> None:
    bodies = [esp(SPI, number) for number in range(40)] + [esp(SPI, 40, 60)]
    sock, _ = raw(*map(packet, bodies))
    assert received(sock) == [(bodies, (PEER, 0), 0)]


def test_another_source_tos_or_length_begins_another_batch() -> None:
    one, long = esp(SPI, 1), esp(SPI, 2, 200)
    sock, _ = raw(packet(one), packet(one, OTHER), packet(one, OTHER, 3), packet(long, OTHER, 3))
    assert received(sock) == [
        ([one], (PEER, 0), 0),
        ([one], (OTHER, 0), 0),
        ([one], (OTHER, 0), 3),
        ([long], (OTHER, 0), 3),
    ]


def test_options_of_the_ip_header_are_no_part_of_it() -> None:
    bodies = [esp(SPI, number) for number in range(3)]
    sock, _ = raw(
        packet(bodies[0]), packet(bodies[1], options=bytes(8)), packet(bodies[2], options=bytes(40))
    )
    assert received(sock) == [(bodies, (PEER, 0), 0)]


Waiting = st.lists(
    st.tuples(
        st.binary(max_size=40),
        st.sampled_from([PEER, OTHER]),
        st.sampled_from([0, 3]),
        st.sampled_from([0, 4]),
    ),
    max_size=40,
)


@given(Waiting)
def test_nothing_is_lost_changed_or_put_in_another_order(waiting: list[tuple[bytes, str, int, int]]) -> None:
    sock, _ = raw(*(packet(body, source, tos, bytes(options)) for body, source, tos, options in waiting))
    found = [(part, source[0], tos) for parts, source, tos in received(sock) for part in parts]
    assert found == [(body, source, tos) for body, source, tos, _ in waiting]


@given(
    st.lists(st.binary(max_size=60).map(lambda body: packet(esp(SPI, 1)[: len(body)] + body)), max_size=20)
)
def test_every_hostile_packet_is_counted_once(packets: list[bytes]) -> None:
    counters = Counters()
    port = VipPort(
        lambda message, source: pytest.fail("no IKE"), MuxIngress(RecordingSender(), counters), counters
    )
    sock, _ = raw(*packets)
    while (batch := sock.receive()) is not None:
        port.receive_raw(batch)
    counted = counters.nonzero()
    counted.pop("gin_esp_raw", None)
    assert sum(counted.values()) == len(packets)


def test_a_batch_leaves_packet_by_packet_from_the_vip_with_its_tos() -> None:
    sock, kernel = raw()
    bodies = [esp(SPI, number) for number in range(5)] + [esp(SPI, 5, 60)]
    assert sock.send(b"".join(bodies), 100, (PEER, 0), source="203.0.113.10", tos=0xB8)
    assert [sent[0] for sent in kernel.sent] == bodies
    assert {sent[2] for sent in kernel.sent} == {(PEER, 0)}
    pktinfo, tos = kernel.sent[0][1]
    assert pktinfo == (socket.IPPROTO_IP, 8, bytes(4) + socket.inet_aton("203.0.113.10") + bytes(4))
    assert tos == (socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", 0xB8))


def test_what_the_kernel_refuses_is_told_and_the_rest_goes() -> None:
    sock, kernel = raw()
    kernel.faults.extend([0, errno.ENETUNREACH, 0])
    assert not sock.send(b"".join(esp(SPI, number) for number in range(3)), 100, (PEER, 0))
    assert [sent[0] for sent in kernel.sent] == [esp(SPI, 0), esp(SPI, 2)]


def test_a_full_send_buffer_is_waited_for_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as real:
        sock, kernel = raw()
        kernel.fileno = real.fileno  # type: ignore[method-assign]  # something to poll
        kernel.faults.append(errno.EAGAIN)
        assert sock.send(esp(SPI, 1), 100, (PEER, 0))
        kernel.faults.extend([errno.EAGAIN, errno.ENOBUFS])
        assert not sock.send(esp(SPI, 2) + esp(SPI, 3), 100, (PEER, 0))
        assert [sent[0] for sent in kernel.sent] == [esp(SPI, 1)]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EPERM, "a raw socket needs privilege: run as root or with CAP_NET_RAW"),
        (errno.EPROTONOSUPPORT, "no raw socket for ESP to 127.0.0.1: Protocol not supported"),
    ],
)
def test_what_keeps_it_from_opening_is_told(monkeypatch: pytest.MonkeyPatch, number: int, says: str) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(EnvironmentFault) as caught:
        RawSocket.bind("127.0.0.1")
    assert str(caught.value) == says


# ---- on the VIP


class Vip:
    def __init__(self) -> None:
        self.counters = Counters()
        self.fabric = RecordingSender()
        self.steering = steering = MuxIngress(self.fabric, self.counters)
        steering.put_gpn(Gpn("gpn-1", GPN, bytes(32)))
        steering.steer(SPI, "gpn-1", (PEER, 0))
        steering.steer(SPI2, "gpn-1", (PEER, 4500))
        self.port = VipPort(lambda message, source: pytest.fail("no IKE"), steering, self.counters)

    def receive(self, *packets: bytes) -> None:
        self.port.receive_raw(Batch(memoryview(b"".join(packets)), len(packets[0]), (PEER, 0), 0xB9))


def test_esp_goes_on_untouched_and_counted() -> None:
    vip = Vip()
    packets = [esp(SPI, number) for number in range(1, 45)]
    vip.receive(*packets)
    assert vip.fabric.sent == [(b"".join(packets), 100, GPN, 0xB9)]
    assert vip.counters.nonzero() == {"gin_esp_raw": 44, "gin_esp_forwarded": 44}


@given(
    st.lists(
        st.tuples(st.sampled_from([SPI, SPI2, 0xC0FFEE77, 7]), st.integers(0, (1 << 32) - 1)), min_size=1
    ),
    st.integers(MIN_ESP, 60),
    st.integers(0, 60),
)
def test_it_is_steered_as_from_udp(heads: list[tuple[int, int]], size: int, last: int) -> None:
    data = b"".join(esp(*head, size) for head in heads) + esp(SPI, 1, max(last, 8))[: min(last, size)]
    seen = []
    for raw in (True, False):
        vip = Vip()
        take = vip.port.receive_raw if raw else vip.port.receive_natt
        take(Batch(memoryview(data), size, (PEER, 0), 3))
        counters = vip.counters.nonzero()
        counters.pop("gin_esp_raw", None)
        seen.append((vip.fabric.sent, counters, vip.steering.marks((SPI, SPI2))))
    assert seen[0] == seen[1]


def test_of_an_sa_that_is_in_udp_the_gpn_hears_where_it_came_from() -> None:
    vip = Vip()
    vip.receive(esp(SPI2, 1))
    ((data, _, _, _),) = vip.fabric.sent
    assert data[:4] == (5).to_bytes(4)  # an ORIGIN tag
    assert data[12:16] == bytes([0, 4, 0, 0])  # an IPv4 address, port 0
    assert data[32:36] == socket.inet_aton(PEER)
    assert data[36:] == esp(SPI2, 1)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (esp(0, 1), "gin_drop_unknown_spi"),  # no marker of IKE here
        (esp(7, 1), "gin_drop_tag_outside"),
        (esp(0xC0FFEE77, 1), "gin_drop_unknown_spi"),
    ],
)
def test_what_is_nobodys_is_dropped(packet: bytes, reason: str) -> None:
    vip = Vip()
    vip.receive(packet, packet)
    assert vip.fabric.sent == []
    assert vip.counters.nonzero() == {"gin_esp_raw": 2, reason: 2}


def test_what_is_too_short_is_no_keepalive_and_takes_nothing_along() -> None:
    vip = Vip()
    for short in (b"", b"\xff", bytes(MIN_ESP - 1)):
        vip.receive(short)
    vip.receive(bytes(8), bytes(8), bytes(3))
    vip.receive(esp(SPI, 1), b"\xff")
    assert [sent[0] for sent in vip.fabric.sent] == [esp(SPI, 1)]
    assert vip.counters.nonzero() == {"gin_drop_short": 7, "gin_esp_raw": 1, "gin_esp_forwarded": 1}


# ---- with the kernel


@pytest.fixture
def sockets() -> Iterator[tuple[RawSocket, RawSocket]]:
    with closing(RawSocket.bind("127.88.0.1")) as here, closing(RawSocket.for_sending("127.88.0.2")) as there:
        yield here, there


@pytest.mark.root
async def test_the_kernel_brings_it_whole(sockets: tuple[RawSocket, RawSocket]) -> None:
    here, there = sockets
    bodies = [esp(SPI, number) for number in range(20)]
    assert here.receive() is None
    assert there.send(b"".join(bodies), 100, (here.address[0], 0), source="127.88.0.3", tos=0xBB)
    await here.wait_readable()
    assert received(here) == [(bodies, ("127.88.0.3", 0), 0xBB)]


@pytest.mark.root
async def test_fragments_are_put_together_first(sockets: tuple[RawSocket, RawSocket]) -> None:
    here, there = sockets
    long = esp(SPI, 1, 65_515)  # the longest; DF is not set, so the path may cut it
    assert there.send(long, len(long), (here.address[0], 0))
    await here.wait_readable()
    assert received(here) == [([long], ("127.88.0.2", 0), 0)]


@pytest.mark.root
def test_what_comes_to_one_that_only_sends_is_never_kept(sockets: tuple[RawSocket, RawSocket]) -> None:
    here, there = sockets
    flood = b"".join(esp(SPI, number, 1000) for number in range(500))
    assert here.send(flood, 1000, (there.address[0], 0))
    assert there.overflow() >= 495


@pytest.mark.root
def test_a_full_buffer_is_counted() -> None:
    with (
        closing(RawSocket.bind("127.88.0.4", buffer=4096)) as small,
        closing(RawSocket.bind("127.88.0.5")) as big,
    ):
        assert big.send(b"".join(esp(SPI, n, 1000) for n in range(500)), 1000, ("127.88.0.4", 0))
        kept = sum(len(parts) for parts, _, _ in received(small))
        assert kept > 0
        assert kept + small.overflow() == 500
