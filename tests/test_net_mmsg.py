"""Many datagrams by one call, beside what one call for each would have brought."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protego_cli.net.gso import segments, segments_per_send
from protego_cli.net.mmsg import ManyReceiver
from protego_cli.net.udp import FEW, MANY, UdpSocket

Datagram = tuple[bytes, tuple[str, int], int]

SENDS = st.tuples(
    st.integers(0, 1),  # who
    st.sampled_from([0, 1, 4, 60, 60, 60, 61, 1400, 1400, 9000]),
    st.sampled_from([1, 1, 1, 2, 3, 30]),
    st.integers(0, 3),  # bytes that the last lacks
    st.sampled_from([0, 0, 0, 0xB8]),
)


@pytest.fixture(scope="module")
def sockets() -> Iterator[list[UdpSocket]]:
    made = [UdpSocket.bind(f"127.0.0.{host}", 0) for host in (2, 3, 4)]
    yield made
    for sock in made:
        sock.close()


@pytest.mark.parametrize("in_trains", [True, False])
@settings(max_examples=150)
@given(st.lists(SENDS, max_size=90))
def test_every_datagram_comes_as_it_was_sent_and_in_its_place(
    sockets: list[UdpSocket], in_trains: bool, sends: list[tuple[int, int, int, int, int]]
) -> None:
    *senders, receiver = sockets
    sent: list[Datagram] = []
    for number, (who, size, count, less, tos) in enumerate(sends):
        count = min(count, segments_per_send(size))
        data = b"".join(bytes([number, place]) * size for place in range(count))[: size * count]
        data = data[: max(len(data) - less, 0)]
        assert senders[who].send(data, size, receiver.address, tos=tos)
        sent += [(bytes(part), senders[who].address, tos) for part in segments(memoryview(data), size)]
    found: list[Datagram] = []
    while train := receiver.receive_train() if in_trains else list(filter(None, [receiver.receive()])):
        assert len(train) <= MANY
        for view, size, source, tos in train:
            assert len(view) <= segments_per_send(size) * size
            found += [(bytes(part), source, tos) for part in segments(view, size)]
    assert found == sent


def test_it_tells_whether_more_may_wait_and_whether_the_kernel_has_merged_many() -> None:
    with closing(UdpSocket.bind("127.0.0.2", 0)) as here:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with closing(sock):
            sock.bind(("127.0.0.3", 0))
            receiver = ManyReceiver(sock, FEW)
            assert receiver.receive() == []
            assert not receiver.more
            for number in range(FEW + 1):
                here.send(bytes([number]) * 9, 9, sock.getsockname())
            for count in (FEW, 1):
                (batch,) = receiver.receive()
                assert (len(batch.view), batch.size, batch.source) == (9 * count, 9, here.address)
                assert (receiver.more, receiver.long) == (count == FEW, False)
    with closing(UdpSocket.bind("127.0.0.2", 0)) as here, closing(UdpSocket.bind("127.0.0.3", 0)) as there:
        receiver = ManyReceiver(there._sock, FEW)
        for count, long in ((8, False), (9, True)):
            here.send(bytes(20) * count, 20, there.address)
            (batch,) = receiver.receive()
            assert (len(batch.view), batch.size, receiver.long) == (20 * count, 20, long)


def test_a_closed_socket_takes_nothing_from_who_has_its_number_now() -> None:
    here = UdpSocket.bind("127.0.0.2", 0)
    number = here.fileno()
    here.close()
    with closing(UdpSocket.bind("127.0.0.3", 0)) as other:
        os.dup2(other.fileno(), number)
        try:
            other.send(b"for another", 20, other.address)
            with pytest.raises(OSError, match="Bad file descriptor"):
                here.receive_train()
            batch = other.receive()
            assert batch is not None
            assert bytes(batch.view) == b"for another"
        finally:
            if number != other.fileno():
                os.close(number)
