"""ESP without UDP (RFC 4303, IP protocol 50): a raw socket that moves batches as `udp.UdpSocket` does.

Receive: the kernel puts fragments together and hands over one packet with its IP header at a time; it merges
nothing. The header goes to a place of its own, so what is behind it of packets that are alike (source, TOS,
size but for the last) comes to lie side by side: from here on a batch as from UDP, whose source has port 0.
Send: one system call for each packet, there is no segmentation for raw sockets; source address and TOS as for
UDP. DF is not set, and path MTU reports are ignored, as there.

Every raw socket gets a copy of what comes to its address, before the kernel's own ESP does, if there is one.
So it is never occupied, and nobody takes packets away from it; that no two nodes have one VIP on one machine,
their UDP ports see to. As long as one is open the kernel answers nothing by "protocol unreachable". It takes
CAP_NET_RAW to open one.
"""

from __future__ import annotations

import errno
import socket

import trio

from protego_cli.errors import EnvironmentFault
from protego_cli.net.gso import segments, segments_per_send
from protego_cli.net.udp import (
    IP_MTU_DISCOVER,
    IP_PMTUDISC_OMIT,
    MAX_REMEMBERED,
    RECEIVE_BYTES,
    TRANSIENT,
    Address,
    Batch,
    Buffer,
    Control,
    close,
    enlarge,
    outer_header,
    overflow,
    wait_writable,
)

IPPROTO_ESP = int(socket.IPPROTO_ESP)
IP_HEADER = 20  # bytes, without options
BUFFER_BYTES = 2 * RECEIVE_BYTES  # a batch merged here, and behind it room for whatever comes next


class RawSocket:
    """An open, non-blocking raw socket for ESP over IPv4."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sendmsg = sock.sendmsg
        self._recvmsg_into = sock.recvmsg_into
        self._head = bytearray(IP_HEADER)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._held: Batch | None = None  # received behind a batch that it could not join
        self._control: dict[tuple[str | None, int], Control] = {}
        self.address: Address = (sock.getsockname()[0], 0)

    @classmethod
    def bind(cls, address: str, *, buffer: int = 8 << 20) -> RawSocket:
        """For the ESP that comes to this address, with `buffer` bytes of kernel buffer each way. Raises
        EnvironmentFault with the remedy.
        """
        sock = None
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, IPPROTO_ESP)
            sock.setblocking(False)
            enlarge(sock, buffer)
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)
            sock.bind((address, 0))
        except OSError as error:
            if sock is not None:
                sock.close()
            raise EnvironmentFault(_fault(address, error)) from error
        return cls(sock)

    @classmethod
    def for_sending(cls, address: str) -> RawSocket:
        """One that nobody receives from, for packets of any source address. Raises EnvironmentFault."""
        raw = cls.bind(address)
        raw._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # what comes here all the same goes
        return raw

    def receive(self) -> Batch | None:
        """The next packets that are alike, without their IP headers, without blocking; None for nothing.

        They are valid until the next receive.
        """
        first, self._held = self._held, None
        if first is None:
            first = self._receive_at(0)
            if first is None:
                return None
        else:
            view = first.view
            self._buffer[: len(view)] = view
        size, source, tos = first.size, first.source, first.tos
        end = size
        for _ in range(segments_per_send(size) - 1 if size else 0):
            more = self._receive_at(end)
            if more is None:
                break
            if not 0 < more.size <= size or more.source != source or more.tos != tos:
                self._held = more
                break
            end += more.size
            if more.size < size:
                break
        return Batch(self._buffer[:end], size, source, tos)

    def _receive_at(self, offset: int) -> Batch | None:
        """One packet, at this place of the buffer."""
        head = self._head
        try:
            length, _, _, source = self._recvmsg_into((head, self._buffer[offset : offset + RECEIVE_BYTES]))
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in TRANSIENT:
                return None
            raise
        size = length - IP_HEADER
        options = 4 * (head[0] & 0x0F) - IP_HEADER
        if options:
            size -= options
            start = offset + options
            self._buffer[offset : offset + max(size, 0)] = self._buffer[start : start + max(size, 0)]
        size = max(size, 0)
        return Batch(self._buffer[offset : offset + size], size, (source[0], 0), head[1])

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        """Send `data` as packets of `size` bytes, the last perhaps shorter; no port counts.

        `source` overrides the bound address. False when the kernel refused any of them; where its buffer
        stays full, the rest is not tried.
        """
        key = source, tos
        control = self._control.get(key)
        if control is None:
            if len(self._control) >= MAX_REMEMBERED:
                self._control.clear()
            control = self._control[key] = outer_header(source, tos)
        send, to, sent = self._sendmsg, (dest[0], 0), True
        for packet in (data,) if len(data) <= size else segments(memoryview(data), size):
            try:
                send((packet,), control, 0, to)
            except BlockingIOError:
                if not self._send_when_writable(packet, control, to):
                    return False
            except OSError:
                sent = False
        return sent

    def _send_when_writable(self, packet: Buffer, control: Control, to: Address) -> bool:
        wait_writable(self._sock)
        try:
            self._sendmsg((packet,), control, 0, to)
        except OSError:
            return False
        return True

    def fileno(self) -> int:
        return self._sock.fileno()

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._sock)

    def overflow(self) -> int:
        """How many packets the kernel dropped so far because this socket's buffer was full."""
        return overflow(self._sock)

    def close(self) -> None:
        close(self._sock)


def _fault(address: str, error: OSError) -> str:
    """What a failure to open means to who runs the node, and what to do."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "a raw socket needs privilege: run as root or with CAP_NET_RAW"
    return f"no raw socket for ESP to {address}: {error.strerror or error}"
