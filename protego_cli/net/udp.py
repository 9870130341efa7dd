"""A UDP socket that moves batches: GRO on receive, GSO on send, the source address chosen per send.

Receive: one `recvmmsg` of many datagrams (`mmsg.py`); the kernel says in control messages how long each
segment is (UDP_GRO), and the TOS (one for all of a batch: the kernel merges only equals). Where it has merged
nothing (it merges what a card or a segmented send gave it, not what came one by one), datagrams are merged
here under the same rules, so that all that comes after costs less by the packet. `receive_train` hands out
short batches together, and long ones where that is asked for, so that whoever can works on them all at once.
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

import trio

from protego_cli.errors import EnvironmentFault
from protego_cli.net.batch import LONG, Address, Batch, Buffer
from protego_cli.net.gso import MAX_BYTES, MAX_SEGMENTS, segments_per_send
from protego_cli.net.mmsg import RECEIVE_BYTES, UDP_GRO, ManyReceiver

__all__ = ["LONG", "RECEIVE_BYTES", "UDP_GRO", "Address", "Batch", "Buffer", "UdpSocket"]

logger = logging.getLogger(__name__)

Control = list[tuple[int, int, bytes]]

# Linux numbers that the socket module does not name (linux/udp.h, linux/in.h, asm-generic/socket.h)
UDP_SEGMENT = 103
IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_PMTUDISC_OMIT = 5
IP_MTU = 14
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
MEMINFO_DROPS = 8  # index of the drop count among the 32-bit words of SO_MEMINFO

HEADERS_BYTES = 28  # of IPv4 and UDP
MANY = 64  # datagrams by one system call
FEW = 4  # where the kernel merges many into one, so that they stay in the cache
SEVERAL = 8  # of these that are handed out together, at most
WRITABLE_WAIT_MS = 5  # how long a full send buffer may hold the role up before the packets are dropped
MAX_REMEMBERED = 1024  # destinations with a largest segment; combinations of control messages

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


class UdpSocket:
    """A bound, non-blocking UDP socket (IPv4)."""

    def __init__(self, sock: socket.socket, *, gso: bool, together: bool = False) -> None:
        self._sock = sock
        self._sendmsg = sock.sendmsg
        self._gso = gso
        self._together = together
        self._many, self._few = ManyReceiver(sock, MANY), ManyReceiver(sock, 2 * SEVERAL if together else FEW)
        self._long = False  # the kernel has merged many
        self._waiting: list[Batch] = []  # received, but not handed out yet
        self._share = 1  # of long ones among them, at once
        self._empty = False  # the kernel had no more after what came last
        self._ceilings: dict[str, int] = {}
        self._control: dict[tuple[int, str | None, int], Control] = {}
        address, port = sock.getsockname()[:2]
        self.address: Address = (address, port)

    @classmethod
    def bind(
        cls, address: str, port: int, *, buffer: int = 8 << 20, merge: bool = True, together: bool = False
    ) -> UdpSocket:
        """Bind, with `buffer` bytes of kernel buffer each way. Raises EnvironmentFault with the remedy.

        Without `merge` the kernel is not asked for merged datagrams; then it merges none on their way here.
        `together`: trains are of several long batches, too.
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
        return cls(sock, gso=gso, together=together)

    def receive(self) -> Batch | None:
        """The next batch, without blocking; None when there is nothing."""
        if not self._waiting:
            self._waiting = self._fetch()
        return self._waiting.pop(0) if self._waiting else None

    def receive_train(self) -> list[Batch]:
        """The batches that wait, in order, up to a bound: short ones, or a long one that the kernel made.
        Where these are wanted together, half of them: whoever gets what comes of them has work meanwhile.
        None where nothing waits.

        They are valid until the next receive.
        """
        if not self._waiting:
            self._waiting = self._fetch()
            self._share = min(-(-len(self._waiting) // 2), SEVERAL) if self._together else 1
        batches = self._waiting
        stop = len(batches)
        if stop > 1 and self._long:
            view, size, _, _ = batches[0]
            first = len(view) > LONG * size
            if first:
                stop = min(stop, self._share)
            for place in range(1, stop):
                view, size, _, _ = batches[place]
                if (len(view) > LONG * size) is not first:
                    stop = place
                    break
        self._waiting = batches[stop:]
        return batches[:stop]

    def _fetch(self) -> list[Batch]:
        """What one system call returns."""
        if self._empty:
            self._empty = False
            return []
        receiver = self._few if self._long else self._many
        try:
            batches = receiver.receive()
        except OSError as error:
            if error.errno in TRANSIENT:
                return []
            raise
        if batches:
            self._long = receiver.long
        later = self._together and self._long and len(batches) > 2  # by when more will have come
        self._empty = bool(batches) and not receiver.more and not later
        return batches

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
        self._many.close()
        self._few.close()
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
