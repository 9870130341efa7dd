"""The batching socket, over real loopback sockets: what goes out segmented comes in merged."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
import trio
import trio.testing

from protego_cli.errors import EnvironmentFault
from protego_cli.net.gso import MAX_BYTES, segments
from protego_cli.net.udp import FEW, MANY, SEVERAL, UDP_SEGMENT, Batch, UdpSocket


@pytest.fixture
def pair() -> Iterator[tuple[UdpSocket, UdpSocket]]:
    with ExitStack() as stack:
        left, right = (UdpSocket.bind(address, 0) for address in ("127.0.0.2", "127.0.0.3"))
        stack.callback(left.close)
        stack.callback(right.close)
        yield left, right


def everything(sock: UdpSocket) -> list[tuple[bytes, int, tuple[str, int], int]]:
    """All that waits at a socket, copied out of its buffer."""
    found = []
    while (batch := sock.receive()) is not None:
        found.append((bytes(batch.view), batch.size, batch.source, batch.tos))
    return found


def datagrams(sock: UdpSocket) -> list[bytes]:
    return [bytes(part) for view, size, _, _ in everything(sock) for part in segments(memoryview(view), size)]


class Refusing:
    """A socket whose segmented sends fail with one errno, as an unfit path makes them."""

    def __init__(self, sock: socket.socket, fault: int) -> None:
        self._sock = sock
        self._fault = fault
        self.segmented = 0

    def sendmsg(self, buffers, ancillary, flags, dest):  # type: ignore[no-untyped-def]  # as socket.sendmsg
        if any(kind == UDP_SEGMENT for _, kind, _ in ancillary):
            self.segmented += 1
            raise OSError(self._fault, os.strerror(self._fault))
        return self._sock.sendmsg(buffers, ancillary, flags, dest)

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def numbered(count: int, size: int) -> bytes:
    return b"".join(number.to_bytes(4) + bytes(size - 4) for number in range(count))


def test_a_batch_of_equal_segments_arrives_as_one(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    data = numbered(44, 1400)
    assert left.send(data, 1400, right.address)
    assert everything(right) == [(data, 1400, left.address, 0)]


def test_the_last_segment_may_be_shorter(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    data = numbered(3, 1000)[:-500]
    assert left.send(data, 1000, right.address)
    assert everything(right) == [(data, 1000, left.address, 0)]


@pytest.mark.parametrize(("count", "size"), [(150, 200), (65, 1400), (3, 40_000), (64, 1400)])
def test_what_exceeds_one_send_is_split(pair: tuple[UdpSocket, UdpSocket], count: int, size: int) -> None:
    left, right = pair
    data = numbered(count, size)
    assert left.send(data, size, right.address)
    assert b"".join(datagrams(right)) == data


def test_one_datagram_of_any_length(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    for length in (0, 1, 65_507):
        assert left.send(bytes(length), length, right.address)
        assert everything(right) == [(bytes(length), length, left.address, 0)]
    assert not left.send(bytes(65_508), 65_508, right.address)


def test_source_and_tos_go_with_the_send(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    data = numbered(4, 100)
    assert left.send(data, 100, right.address, source="127.0.0.77", tos=0xB8)
    assert everything(right) == [(data, 100, ("127.0.0.77", left.address[1]), 0xB8)]


def test_nothing_to_receive(pair: tuple[UdpSocket, UdpSocket]) -> None:
    assert pair[0].receive() is None


def test_an_address_nobody_listens_on_stops_nothing(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    closed = right.address[0], 9
    for _ in range(3):
        left.send(b"nobody", 6, closed)
        assert left.receive() is None
    assert left.send(b"somebody", 8, right.address)
    assert datagrams(right) == [b"somebody"]


def test_a_refused_destination_is_told(pair: tuple[UdpSocket, UdpSocket]) -> None:
    assert not pair[0].send(b"data", 4, ("127.0.0.3", 0))
    assert not pair[0].send(b"data", 4, ("255.255.255.255", 9))


@pytest.mark.parametrize("fault", [errno.EIO, errno.EINVAL, errno.EMSGSIZE])
def test_where_segmentation_is_refused_datagrams_go_singly(fault: int) -> None:
    with closing(UdpSocket.bind("127.0.0.3", 0)) as right:
        raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        raw.bind(("127.0.0.2", 0))
        refusing = Refusing(raw, fault)
        left = UdpSocket(refusing, gso=True)  # type: ignore[arg-type]  # stands in for a socket
        data = numbered(5, 1400)[:-100]
        assert left.send(data, 1400, right.address)
        assert left.send(data, 1400, right.address)
        assert b"".join(datagrams(right)) == data + data
        assert refusing.segmented == 1, "the path's refusal is remembered"
        raw.close()


def test_a_size_refused_for_one_destination_leaves_smaller_sizes_and_others_alone() -> None:
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    refusing = Refusing(raw, errno.EMSGSIZE)
    left = UdpSocket(refusing, gso=True)  # type: ignore[arg-type]  # stands in for a socket
    left.send(numbered(2, 1400), 1400, ("127.0.0.3", 9))
    left.send(numbered(2, 1200), 1200, ("127.0.0.3", 9))
    left.send(numbered(2, 1400), 1400, ("127.0.0.4", 9))
    assert refusing.segmented == 3
    raw.close()


def test_without_offload_everything_still_arrives(pair: tuple[UdpSocket, UdpSocket]) -> None:
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    raw.setblocking(False)
    raw.bind(("127.0.0.2", 0))
    plain = UdpSocket(raw, gso=False)
    data = numbered(7, 300)
    assert plain.send(data, 300, pair[1].address)
    assert b"".join(datagrams(pair[1])) == data
    assert pair[1].send(numbered(1, 300), 300, plain.address)
    batch = plain.receive()
    assert isinstance(batch, Batch)
    assert batch.size == 300
    plain.close()


def test_an_occupied_port_is_named_with_the_remedy(pair: tuple[UdpSocket, UdpSocket]) -> None:
    address, port = pair[0].address
    with pytest.raises(EnvironmentFault, match=rf"{address} UDP port {port} is in use: stop the process"):
        UdpSocket.bind(address, port)


def test_a_missing_address_is_named_with_the_remedy() -> None:
    with pytest.raises(EnvironmentFault, match=r"192\.0\.2\.1 is not an address of this machine; add it"):
        UdpSocket.bind("192.0.2.1", 0)


def test_a_privileged_port_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(sock: socket.socket, address: tuple[str, int]) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(EnvironmentFault, match="port 500 needs privilege: run as root"):
        UdpSocket.bind("127.0.0.2", 500)


def test_what_a_full_buffer_loses_is_counted() -> None:
    with (
        closing(UdpSocket.bind("127.0.0.2", 0)) as left,
        closing(UdpSocket.bind("127.0.0.3", 0, buffer=1)) as right,
    ):
        for _ in range(100):
            left.send(bytes(1000), 1000, right.address)
        assert right.overflow() + len(datagrams(right)) == 100
        assert right.overflow() > 0


async def test_wait_readable(pair: tuple[UdpSocket, UdpSocket], autojump_clock: object) -> None:
    left, right = pair
    with trio.move_on_after(1) as waited:
        await right.wait_readable()
    assert waited.cancelled_caught
    left.send(b"data", 4, right.address)
    await right.wait_readable()
    assert datagrams(right) == [b"data"]


async def test_close_wakes_who_waits() -> None:
    sock = UdpSocket.bind("127.0.0.2", 0)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await sock.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        sock.close()


@pytest.mark.parametrize(
    ("lengths", "merged"),
    [
        ([100, 100, 100], [(300, 100)]),
        ([100, 100, 60, 100], [(260, 100), (100, 100)]),  # a shorter one ends a batch
        ([60, 100, 100, 0, 5], [(60, 60), (200, 100), (0, 0), (5, 5)]),
        ([1300, 64, 1300, 1300], [(1364, 1300), (2600, 1300)]),
        ([1400] * 47 + [9], [(1400 * 46, 1400), (1409, 1400)]),  # 46 of them are all that one send carries
        ([8] * 70, [(512, 8), (48, 8)]),
    ],
)
def test_what_came_one_by_one_is_merged_in_order(
    pair: tuple[UdpSocket, UdpSocket], lengths: list[int], merged: list[tuple[int, int]]
) -> None:
    left, right = pair
    sent = [bytes((number % 251,)) * length for number, length in enumerate(lengths)]
    for datagram in sent:
        assert left.send(datagram, 1 << 16, right.address)
    found = everything(right)
    assert [(len(view), size) for view, size, _, _ in found] == merged
    assert b"".join(view for view, _, _, _ in found) == b"".join(sent)


def test_only_datagrams_that_are_alike_are_merged(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    with closing(UdpSocket.bind("127.0.0.4", 0)) as other:
        left.send(b"a" * 8, 8, right.address)
        other.send(b"b" * 8, 8, right.address)
        other.send(b"c" * 8, 8, right.address, tos=0xB8)
        other.send(b"d" * 24, 8, right.address, tos=0xB8)  # merged by the kernel already
        other.send(b"e" * 8, 8, right.address, tos=0xB8)
        assert everything(right) == [
            (b"a" * 8, 8, left.address, 0),
            (b"b" * 8, 8, other.address, 0),
            (b"c" * 8 + b"d" * 24 + b"e" * 8, 8, other.address, 0xB8),
        ]


def trains(sock: UdpSocket) -> list[list[tuple[bytes, int]]]:
    """All that waits at a socket, as trains."""
    found = []
    while train := sock.receive_train():
        found.append([(bytes(batch.view), batch.size) for batch in train])
    return found


def test_a_train_gathers_short_batches_in_order(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    for count, size in ((3, 600), (1, 1400), (5, 64)):
        left.send(numbered(count, size), size, right.address)
    assert trains(right) == [[(numbered(3, 600), 600), (numbered(1, 1400), 1400), (numbered(5, 64), 64)]]
    assert right.receive_train() == []


def test_in_a_train_batches_alike_become_one(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    for count, size in ((1, 100), (3, 100), (1, 100), (1, 60), (1, 100), (1, 0), (1, 100)):
        left.send(bytes(count * size), size, right.address)
    (train,) = trains(right)
    assert [(len(view), size) for view, size in train] == [(560, 100), (100, 100), (0, 0), (100, 100)]


def test_what_came_singly_is_never_more_than_one_send_can_carry(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    for number in range(150):
        left.send(number.to_bytes(4), 4, right.address)
    found = [batch for train in trains(right) for batch in train]
    assert [len(view) for view, _ in found] == [256, 256, 88]
    assert b"".join(view for view, _ in found) == b"".join(number.to_bytes(4) for number in range(150))


def test_a_train_does_not_mix_sources_or_tos(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    with closing(UdpSocket.bind("127.0.0.4", 0)) as other:
        left.send(b"a" * 40, 40, right.address)
        other.send(b"b" * 40, 40, right.address)
        left.send(b"c" * 40, 40, right.address)
        left.send(b"d" * 40, 40, right.address, tos=8)
        assert [(bytes(batch.view[:1]), batch.tos) for batch in right.receive_train()] == [
            *((b"a", 0), (b"b", 0), (b"c", 0), (b"d", 8))
        ]


def test_a_long_batch_comes_alone_and_a_train_has_an_end(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    left.send(numbered(44, 1400), 1400, right.address)
    for size in range(100, 200):
        left.send(bytes(size), size, right.address)
    found = trains(right)
    assert [len(train) for train in found] == [1, MANY - 1, FEW, 100 - (MANY - 1) - FEW]
    assert [size for train in found[1:] for _, size in train] == list(range(100, 200))


def test_long_batches_come_together_where_that_is_asked_for(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, _ = pair
    with closing(UdpSocket.bind("127.0.0.5", 0, together=True)) as right:
        for count in (44, 44, 3, 44, 40, 9, 44):
            left.send(numbered(count, 1400), 1400, right.address)
        assert [[len(view) // 1400 for view, _ in train] for train in trains(right)] == [
            *([44, 44], [3], [44, 40, 9, 44])
        ]
        for wait in (1, 2, 3, 2 * SEVERAL - 1, 2 * SEVERAL, 2 * SEVERAL + 6):
            for number in range(wait):
                left.send(bytes([number]) * 900, 100, right.address)
            found = trains(right)
            assert [view[0] for train in found for view, _ in train] == list(range(wait))
            halves = [SEVERAL, SEVERAL] if wait > 2 * SEVERAL else []
            rest = wait - sum(halves)
            halves += [-(-rest // 2), rest // 2]
            assert [len(train) for train in found] == [half for half in halves if half]


def test_a_datagram_put_together_of_parts(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    for tos in (0, 0xB8):
        assert left.send_parts([b"one", memoryview(b"two"), b""], right.address, tos=tos)
        assert right.receive() == Batch(memoryview(b"onetwo"), 6, left.address, tos)
        assert right.receive() is None
    assert not left.send_parts([bytes(40_000)] * 2, right.address)


def test_what_arrives_in_one_piece(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    assert left.room(right.address) == MAX_BYTES, "loopback"
    assert left.room(("255.255.255.255", 9)) == 0
    assert left.send_parts([bytes(left.room(right.address))], right.address)
    batch = right.receive()
    assert batch is not None
    assert batch.size == MAX_BYTES
