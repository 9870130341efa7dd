"""Many datagrams by one system call: `recvmmsg`, which Python's sockets lack.

A datagram by itself costs 0.6 µs this way, and 1.8 by a `recvmsg` of its own, half of which Python spends on
its address and control messages. And fewer than were asked for say that no more wait: no call has to fail.

1. Each datagram has a slot as long as one can be, an address, and room for control messages. What the kernel
   writes into their headers is put back before each call.
2. Sources and control messages are nearly always the same for all, which one comparison tells; each distinct
   pair is parsed once and remembered.
3. Datagrams that are alike are joined: a batch then is what one segmented send could have brought, of one
   source and TOS. All others stay where they are.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from functools import lru_cache
from typing import NamedTuple

from protego_cli.net.batch import LONG, Address, Batch, new_batch
from protego_cli.net.gso import segments_per_send

UDP_GRO = 104  # linux/udp.h
RECEIVE_BYTES = 1 << 16  # no UDP payload, merged or not, is longer
CONTROL_BYTES = 64
MAX_REMEMBERED = 1024

_NAME = struct.Struct("!2xH4s8x")  # struct sockaddr_in
NAME_BYTES = _NAME.size
_CONTROL = struct.Struct("@Nii")  # struct cmsghdr
_INT = struct.Struct("@i")
_WORD_BYTES = struct.calcsize("@N")

_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg
_recvmmsg.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p
_recvmmsg.restype = ctypes.c_int


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("parts_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


class _Label(ctypes.Structure):
    """Where the kernel writes where a datagram came from, and what else it tells."""

    _fields_ = (("name", ctypes.c_char * NAME_BYTES), ("control", ctypes.c_char * CONTROL_BYTES))


MESSAGE_BYTES = ctypes.sizeof(_Message)
LABEL_BYTES = ctypes.sizeof(_Label)


class Label(NamedTuple):
    """The same, read."""

    source: Address
    tos: int
    segment: int  # bytes of one, where several have been merged; else 0


class ManyReceiver:
    """What receives many at once from a non-blocking UDP socket (IPv4)."""

    def __init__(self, sock: socket.socket, count: int) -> None:
        self.more = self.long = False
        self._count = count
        room = memoryview(mmap.mmap(-1, count * RECEIVE_BYTES))  # memory only where something has come
        self._room = room
        self._slots = [room[at : at + RECEIVE_BYTES] for at in range(0, len(room), RECEIVE_BYTES)]
        headers = count * MESSAGE_BYTES
        written = bytearray(headers + count * LABEL_BYTES)
        messages, labels = (
            (_Message * count).from_buffer(written),
            (_Label * count).from_buffer(written, headers),
        )
        self._parts = (_Part * count)()  # kept, because the headers point there
        for place, slot in enumerate(self._slots):
            self._parts[place] = _Part(ctypes.addressof(ctypes.c_char.from_buffer(slot)), RECEIVE_BYTES)
            label = ctypes.addressof(labels[place])
            messages[place].header = _Header(
                name=label + _Label.name.offset,
                name_length=NAME_BYTES,
                parts=ctypes.addressof(self._parts[place]),
                parts_count=1,
                control=label + _Label.control.offset,
                control_length=CONTROL_BYTES,
            )
        self._fd = ctypes.c_int(sock.fileno())
        first = ctypes.c_void_p(ctypes.addressof(messages))
        self._arguments = self._fd, first, ctypes.c_uint(count), ctypes.c_int(socket.MSG_DONTWAIT), None
        self._written = memoryview(written)
        self._before = memoryview(bytes(written))
        self._labels = self._written[headers:]
        self._labels_at = headers
        self._used = 0  # slots that the last call wrote to, perhaps
        words, step = self._written[:headers].cast("I"), MESSAGE_BYTES // 4
        self._lengths = words[_Message.length.offset // 4 :: step]
        self._read: dict[bytes, Label] = {}

    def close(self) -> None:
        """Touch the socket's number no more: it may be another's now."""
        self._fd.value = -1

    def receive(self) -> list[Batch]:
        """What waits, in order, as far as there are slots. It is valid until the next call.

        Afterwards `more` tells whether more may wait, and `long` whether the kernel had merged many. Raises
        OSError, but not where nothing waits.
        """
        if self._used:
            for start, step in ((0, MESSAGE_BYTES), (self._labels_at, LABEL_BYTES)):
                stop = start + self._used * step
                self._written[start:stop] = self._before[start:stop]
        count: int = _recvmmsg(*self._arguments)
        self._used = count if count >= 0 else self._count
        self.more, self.long = count == self._count, False
        if count <= 0:
            fault = ctypes.get_errno()
            if fault == errno.EAGAIN:
                return []
            raise OSError(fault, os.strerror(fault))
        lengths = self._lengths[:count].tolist()
        labels = self._labels[: count * LABEL_BYTES].tobytes()
        label = labels[:LABEL_BYTES]
        if labels != label * count:
            cuts = range(0, len(labels), LABEL_BYTES)
            return self._mixed(lengths, [self._known(labels[at : at + LABEL_BYTES]) for at in cuts])
        known = self._read.get(label) or self._known(label)
        source, tos, segment = known
        if not segment:
            return self._singles(lengths, source, tos)
        if min(lengths) <= LONG * segment:
            return self._mixed(lengths, [known] * count)
        self.long = True
        rows = zip(self._slots, lengths)  # noqa: B905 - there are more slots
        return [new_batch((slot[:length], segment, source, tos)) for slot, length in rows]

    def _singles(self, lengths: list[int], source: Address, tos: int) -> list[Batch]:
        """Datagrams of one source and TOS, of which the kernel has merged none."""
        batches: list[Batch] = []
        slots, count, place = self._slots, len(lengths), 0
        while place < count:
            size, stop = lengths[place], place + 1
            if stop == count or lengths[stop] > size or not lengths[stop]:
                view = slots[place][:size]
            else:
                limit = min(count, place + segments_per_send(size))
                while stop < limit and lengths[stop] == size:
                    stop += 1
                parts = _in_slots(size, stop - place).unpack_from(self._room, place * RECEIVE_BYTES)
                if stop < limit and 0 < lengths[stop] < size:
                    parts = *parts, slots[stop][: lengths[stop]]
                    stop += 1
                view = memoryview(b"".join(parts))
            batches.append(new_batch((view, size, source, tos)))
            place = stop
        return batches

    def _mixed(self, lengths: list[int], labels: list[Label]) -> list[Batch]:
        """Any datagrams, merged or not."""
        batches: list[Batch] = []
        place, count = 0, len(lengths)
        while place < count:
            source, tos, segment = labels[place]
            length = lengths[place]
            size = segment or length
            if length > LONG * size:
                self.long, room = True, 0
            else:
                room = segments_per_send(size) * size - length if size and length % size == 0 else 0
            stop = place + 1
            while stop < count and 0 < (more := lengths[stop]) <= room:
                other = labels[stop]
                each = other.segment or more
                if other[:2] != (source, tos) or not (each == size or each == more < size):
                    break
                room = room - more if more % size == 0 else 0
                stop += 1
            batches.append(new_batch((self._joined(place, lengths[place:stop]), size, source, tos)))
            place = stop
        return batches

    def _joined(self, place: int, lengths: list[int]) -> memoryview:
        """What lies in these slots, side by side."""
        if len(lengths) == 1:
            return self._slots[place][: lengths[0]]
        slots = self._slots[place : place + len(lengths)]
        return memoryview(b"".join([slot[:length] for slot, length in zip(slots, lengths, strict=True)]))

    def _known(self, label: bytes) -> Label:
        read = self._read.get(label)
        if read is None:
            if len(self._read) >= MAX_REMEMBERED:
                self._read.clear()
            read = self._read[label] = _parse(label)
        return read


@lru_cache(maxsize=1024)
def _in_slots(length: int, count: int) -> struct.Struct:
    """So many datagrams of this length, each in a slot of its own."""
    return struct.Struct(f"{length}s{RECEIVE_BYTES - length}x" * count)


def _parse(label: bytes) -> Label:
    port, address = _NAME.unpack_from(label)
    segment = tos = 0
    at = _Label.control.offset
    while at + _CONTROL.size < LABEL_BYTES:
        length, level, kind = _CONTROL.unpack_from(label, at)
        if length < _CONTROL.size:  # there is no more
            break
        if level == socket.IPPROTO_UDP and kind == UDP_GRO:
            (segment,) = _INT.unpack_from(label, at + _CONTROL.size)
        elif level == socket.IPPROTO_IP and kind == socket.IP_TOS:
            tos = label[at + _CONTROL.size]
        at += -(-length // _WORD_BYTES) * _WORD_BYTES
    return Label((socket.inet_ntoa(address), port), tos, segment)
