"""A UDP socket that moves batches: GRO on receive, GSO on send, the source address chosen per send.

Receive: one `recvmsg_into` of a reused buffer; the kernel says in a control message how long each segment is
(UDP_GRO), and the batch's TOS (one for all: the kernel merges only equals). Where it has merged nothing (it
merges what a card or a segmented send gave it, not what came one by one) and more is waiting, the datagrams
are merged here under the same rules, so that all that comes after costs less by the packet. `receive_train`
goes further: short batches are gathered side by side, so that whoever can works on them all at once.
Send: one `sendmsg` per 64 segments (UDP_SEGMENT), with the source address (IP_PKTINFO) and TOS beside it.

Where the kernel lacks one of the two, datagrams go one by one. A path that refuses segmentation for a size
(its MTU is smaller) gets that size singly, fragmented by the kernel; DF is not set and path MTU reports are
ignored (IP_PMTUDISC_OMIT), so that nobody can shrink a path by forging ICMP. ICMP errors never stop a socket.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import struct
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import trio

from protego_cli.errors import EnvironmentFault
from protego_cli.net.gso import MAX_BYTES, MAX_SEGMENTS, segments_per_send

logger = logging.getLogger(__name__)

Address = tuple[str, int]
Buffer = bytes | bytearray | memoryview
Control = list[tuple[int, int, bytes]]

# Linux numbers that the socket module does not name (linux/udp.h, linux/in.h, asm-generic/socket.h)
UDP_SEGMENT = 103
UDP_GRO = 104
IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_PMTUDISC_OMIT = 5
IP_MTU = 14
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
MEMINFO_DROPS = 8  # index of the drop count among the 32-bit words of SO_MEMINFO

HEADERS_BYTES = 28  # of IPv4 and UDP
RECEIVE_BYTES = 1 << 16  # no UDP payload, merged or not, is longer
BUFFER_BYTES = 2 * RECEIVE_BYTES  # a batch merged here, and behind it room for whatever comes next
TRAIN_BYTES = 1 << 15  # a train is not waited for beyond so many
TRAIN_BATCHES = 64
LONG = 8  # packets: a longer batch that the kernel made ends a train; there is nothing to gain
CONTROL_BYTES = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(1)
WRITABLE_WAIT_MS = 5  # how long a full send buffer may hold the role up before the packets are dropped
MAX_REMEMBERED = 1024  # destinations with a largest segment; combinations of control messages

_IP, _UDP, _TOS = int(socket.IPPROTO_IP), int(socket.IPPROTO_UDP), int(socket.IP_TOS)
_INT = struct.Struct("=i")
_U16 = struct.Struct("=H")
_PKTINFO = struct.Struct("=i4s4s")

# What an unconnected socket may report about a datagram it sent earlier, or about its path.
TRANSIENT = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENETDOWN,
        errno.EMSGSIZE,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.ENOMEM,
        errno.ENOBUFS,
    }
)


class Batch(NamedTuple):
    """What one receive returned; `view` is valid until the next receive on the same socket."""

    view: memoryview  # segments of `size` bytes, the last perhaps shorter
    size: int  # len(view) for a single datagram
    source: Address
    tos: int = 0


_batch = partial(tuple.__new__, Batch)  # half of what `Batch` takes, which looks at names


class UdpSocket:
    """A bound, non-blocking UDP socket (IPv4)."""

    def __init__(self, sock: socket.socket, *, gso: bool) -> None:
        self._sock = sock
        self._sendmsg = sock.sendmsg
        self._recvmsg_into = sock.recvmsg_into
        self._gso = gso
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._whole = (self._buffer[:RECEIVE_BYTES],)
        self._held: Batch | None = None  # received behind a batch that it could not join
        self._empty = False  # the kernel had no more when the last batch was merged
        self._ceilings: dict[str, int] = {}
        self._control: dict[tuple[int, str | None, int], Control] = {}
        address, port = sock.getsockname()[:2]
        self.address: Address = (address, port)

    @classmethod
    def bind(cls, address: str, port: int, *, buffer: int = 8 << 20, merge: bool = True) -> UdpSocket:
        """Bind, with `buffer` bytes of kernel buffer each way. Raises EnvironmentFault with the remedy.

        Without `merge` the kernel is not asked for merged datagrams; then it merges none on their way here.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            enlarge(sock, buffer)
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            sock.bind((address, port))
        except OSError as error:
            sock.close()
            raise EnvironmentFault(_bind_fault(address, port, error)) from error
        gro = not merge or _supports(sock, UDP_GRO, 1)
        gso = _supports(sock, UDP_SEGMENT, 0)  # 0: no default size, each send brings its own
        if not (gro and gso):
            logger.warning(
                "kernel lacks UDP offload, datagrams go singly address=%s port=%d gro=%s gso=%s",
                *(address, port, gro, gso),
            )
        return cls(sock, gso=gso)

    def receive(self) -> Batch | None:
        """The next batch, without blocking; None when there is nothing."""
        first, self._held = self._held, None
        if first is not None:
            view, size, source, tos = first
            self._buffer[: len(view)] = view
            first = Batch(self._buffer[: len(view)], size, source, tos)
        elif self._empty:
            self._empty = False
            return None
        else:
            first = self._receive_one()
        if first is None or first.size != len(first.view) or not first.size:
            return first
        return self._merged(first)

    def receive_train(self) -> list[Batch]:
        """The batches that wait, in order, up to a bound or a long one. None where nothing waits.

        They are valid until the next receive.
        """
        if self._held is not None or self._empty:
            first = self.receive()
            return [] if first is None else [first]
        try:
            length, control, _, source = self._recvmsg_into(self._whole, CONTROL_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno in TRANSIENT:
                return []
            raise
        size, tos = length, 0
        for level, kind, data in control:
            if kind == UDP_GRO and level == _UDP:
                size = _INT.unpack(data)[0]
            elif kind == _TOS and level == _IP:
                tos = data[0]
        if length > LONG * size:
            return [_batch((self._buffer[:length], size, source, tos))]
        return self._gathered(length, size, source, tos)

    def _gathered(self, end: int, size: int, source: Address, tos: int) -> list[Batch]:
        """A short batch with those that wait behind it."""
        train: list[Batch] = []
        receive, buffer = self._recvmsg_into, self._buffer
        start = 0  # of the batch being gathered; more of its size may join in `room`
        room = segments_per_send(size) * size - end if size and end % size == 0 else 0
        while end < TRAIN_BYTES and len(train) < TRAIN_BATCHES - 1:
            try:
                length, control, _, sender = receive((buffer[end : end + RECEIVE_BYTES],), CONTROL_BYTES)
            except OSError as error:
                if error.errno != errno.EAGAIN and error.errno not in TRANSIENT:
                    raise
                self._empty = True
                break
            segment, mark = length, 0
            for level, kind, data in control:
                if kind == UDP_GRO and level == _UDP:
                    segment = _INT.unpack(data)[0]
                elif kind == _TOS and level == _IP:
                    mark = data[0]
            joins = 0 < length <= room and sender == source and mark == tos
            if joins and (segment == size or segment == length < size):
                end += length
                room = room - length if length % size == 0 else 0
                continue
            train.append(_batch((buffer[start:end], size, source, tos)))
            start, size, source, tos = end, segment, sender, mark
            end += length
            room = segments_per_send(size) * size - length if size and length % size == 0 else 0
            if length > LONG * size:
                break
        train.append(_batch((buffer[start:end], size, source, tos)))
        return train

    def _merged(self, first: Batch) -> Batch:
        """A single datagram with those that wait behind it, as long as they are alike."""
        _, size, source, tos = first
        receive, buffer = self._recvmsg_into, self._buffer
        end, limit = size, segments_per_send(size) * size
        while end < limit:
            try:
                length, control, _, sender = receive((buffer[end : end + RECEIVE_BYTES],), CONTROL_BYTES)
            except OSError as error:
                if error.errno != errno.EAGAIN and error.errno not in TRANSIENT:
                    raise
                self._empty = True
                break
            segment, mark = length, 0
            for level, kind, data in control:
                if level == _UDP and kind == UDP_GRO:
                    segment = _INT.unpack(data)[0]
                elif level == _IP and kind == _TOS:
                    mark = data[0]
            if length != segment or not 0 < length <= size or sender != source or mark != tos:
                self._held = _batch((buffer[end : end + length], segment, sender, mark))
                break
            end += length
            if length < size:
                break
        return _batch((buffer[:end], size, source, tos)) if end > size else first

    def _receive_one(self) -> Batch | None:
        """What one system call returns."""
        try:
            count, control, _, source = self._recvmsg_into(self._whole, CONTROL_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in TRANSIENT:
                return None
            raise
        size, tos = count, 0
        for level, kind, data in control:
            if kind == UDP_GRO and level == _UDP:
                size = _INT.unpack(data)[0]
            elif kind == _TOS and level == _IP:
                tos = data[0]
        return _batch((self._buffer[:count], size, source, tos))

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        """Send `data` as datagrams of `size` bytes, the last perhaps shorter.

        `source` overrides the bound address. False when the kernel refused any of them.
        """
        length = len(data)
        if length <= size:
            key = 0, source, tos
        elif (
            not self._gso
            or length > MAX_BYTES
            or length > MAX_SEGMENTS * size
            or (self._ceilings and size > self._ceilings.get(dest[0], MAX_BYTES))
        ):
            return self._send_in_parts(memoryview(data), size, dest, source, tos)
        else:
            key = size, source, tos
        control = self._control.get(key)
        if control is None:
            control = self._make_control(key)
        try:
            self._sendmsg((data,), control, 0, dest)
        except BlockingIOError:
            fault = self._send_when_writable((data,), control, dest)
        except OSError as error:
            fault = error.errno or errno.EIO
        else:
            return True
        return not fault or (
            length > size
            and self._without_segmentation(fault, size, dest)
            and self._send_in_parts(memoryview(data), size, dest, source, tos)
        )

    def send_parts(self, parts: Sequence[Buffer], dest: Address, *, tos: int = 0) -> bool:
        """Send one datagram, put together of these. False when the kernel refused it."""
        key = 0, None, tos
        control = self._control.get(key)
        if control is None:
            control = self._make_control(key)
        try:
            self._sendmsg(parts, control, 0, dest)
        except BlockingIOError:
            return not self._send_when_writable(parts, control, dest)
        except OSError:
            return False
        return True

    def room(self, dest: Address) -> int:
        """How long a datagram to there may be without fragments, as far as this machine knows."""
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as path:
                path.connect(dest)
                mtu = path.getsockopt(socket.IPPROTO_IP, IP_MTU)
        except OSError:
            return 0
        return min(mtu - HEADERS_BYTES, MAX_BYTES)

    def fileno(self) -> int:
        """For whoever waits on many sockets at once."""
        return self._sock.fileno()

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._sock)

    def overflow(self) -> int:
        """How many datagrams the kernel dropped so far because this socket's buffer was full."""
        return overflow(self._sock)

    def close(self) -> None:
        close(self._sock)

    def _send_when_writable(self, parts: Sequence[Buffer], control: Control, dest: Address) -> int:
        """Try once more when the full send buffer has room, or after a moment; 0 or the errno."""
        wait_writable(self._sock)
        try:
            self._sendmsg(parts, control, 0, dest)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _without_segmentation(self, fault: int, size: int, dest: Address) -> bool:
        """Whether segmentation is what was refused; then it is not tried again where it cannot work."""
        if fault == errno.EIO:  # no checksum offload on the way out: never with this device
            if self._gso:
                self._gso = False
                logger.warning("segmentation offload refused, datagrams go singly dest=%s", dest[0])
        elif fault in (errno.EINVAL, errno.EMSGSIZE):  # a segment is longer than the path's MTU
            if len(self._ceilings) >= MAX_REMEMBERED:
                self._ceilings.clear()
            self._ceilings[dest[0]] = size - 1
        else:
            return False
        return True

    def _send_in_parts(
        self, view: memoryview, size: int, dest: Address, source: str | None, tos: int
    ) -> bool:
        """Send what one segmented send cannot carry: in several, or singly."""
        whole = self._gso and size <= self._ceilings.get(dest[0], MAX_BYTES)
        step = size * segments_per_send(size) if whole else size
        sent = [
            self.send(view[at : at + step], size, dest, source=source, tos=tos)
            for at in range(0, len(view), step)
        ]
        return all(sent)

    def _make_control(self, key: tuple[int, str | None, int]) -> Control:
        """The control messages of a send, made once for each combination."""
        size, source, tos = key
        control = outer_header(source, tos)
        if size:
            control.append((socket.IPPROTO_UDP, UDP_SEGMENT, _U16.pack(size)))
        if len(self._control) >= MAX_REMEMBERED:
            self._control.clear()
        self._control[key] = control
        return control


def outer_header(source: str | None, tos: int) -> Control:
    """The control messages that choose a packet's source, where it is not the socket's own, and its TOS."""
    control: Control = []
    if source is not None:
        packed = _PKTINFO.pack(0, socket.inet_aton(source), bytes(4))
        control.append((socket.IPPROTO_IP, IP_PKTINFO, packed))
    if tos:
        control.append((socket.IPPROTO_IP, socket.IP_TOS, _INT.pack(tos)))
    return control


def wait_writable(sock: socket.socket) -> None:
    """Wait a moment for room in a full send buffer."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    poll.poll(WRITABLE_WAIT_MS)


def overflow(sock: socket.socket) -> int:
    """How many datagrams the kernel dropped so far because the socket's buffer was full."""
    words = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (MEMINFO_DROPS + 1))
    offset = 4 * MEMINFO_DROPS
    return int.from_bytes(words[offset : offset + 4], sys.byteorder)


def close(sock: socket.socket) -> None:
    """Close it, and wake whoever waits for it."""
    if sock.fileno() >= 0 and trio.lowlevel.in_trio_run():
        trio.lowlevel.notify_closing(sock)
    sock.close()


def enlarge(sock: socket.socket, buffer: int) -> None:
    """Ask for `buffer` bytes each way: beyond the sysctl limits with CAP_NET_ADMIN, else up to them."""
    for force, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, buffer)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, buffer)


def _supports(sock: socket.socket, option: int, value: int) -> bool:
    try:
        sock.setsockopt(socket.IPPROTO_UDP, option, value)
    except OSError:
        return False
    return True


def _bind_fault(address: str, port: int, error: OSError) -> str:
    """What a failed bind means to who runs the node, and what to do."""
    where = f"{address} UDP port {port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where} is in use: stop the process that holds it (`ss -ulnp`), or give the node another port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{where} cannot be opened: {address} is not an address of this machine; add it "
            f"(`ip address add {address}/32 dev lo`) or correct the cluster file"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{where} needs privilege: run as root or with CAP_NET_BIND_SERVICE, "
            "or give the node ports of 1024 and above (ike = 0 leaves port 500 out)"
        )
    return f"{where} cannot be opened: {error.strerror or error}"
