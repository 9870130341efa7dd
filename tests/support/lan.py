"""Traffic for the real-peer tests: a program of its own, run inside a namespace.

    python lan.py reflect ADDRESS PORT                      returns every numbered packet, counts what came
    python lan.py pump SOURCE ADDRESS PORT PPS WINDOW       sends numbered packets until its input closes
    python lan.py sink ADDRESS PORT                         takes one TCP stream, checks it, times its gaps
    python lan.py source SOURCE ADDRESS PORT BYTES_PER_S    sends a TCP stream until its input closes

Each prints one JSON line when it is ready and one with its result at the end. The pump keeps at most WINDOW
packets in flight, so that no queue on the way can overflow by its doing; a packet that has not come back two
seconds after the end is lost, and nothing is sent twice.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
import zlib

HEADER = struct.Struct("!QI")
SIZES = (1200, 200, 64, 800)
TRAIN = 32  # packets of one size in a row
SETTLE = 2.0
SO_MAX_PACING_RATE = 47


def packet(number: int) -> bytes:
    body = number.to_bytes(8, "big") * (SIZES[number // TRAIN % len(SIZES)] // 8)
    return HEADER.pack(number, zlib.crc32(body)) + body


def number_of(data: bytes) -> int | None:
    """The packet's number, or None when it is corrupt."""
    if len(data) < HEADER.size:
        return None
    number, crc = HEADER.unpack_from(data)
    return int(number) if zlib.crc32(data[HEADER.size :]) == crc else None


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def stdin_closed(wait: float = 0.0) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], wait)
    return bool(readable) and not sys.stdin.readline()


def udp(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((address, port))
    return sock


def reflect(address: str, port: int) -> None:
    sock = udp(address, port)
    seen: set[int] = set()
    duplicated = corrupted = 0
    say(ready=True)
    while True:
        readable, _, _ = select.select([sock, sys.stdin], [], [])
        if sock in readable:
            data, source = sock.recvfrom(65535)
            number = number_of(data)
            if number is None:
                corrupted += 1
            elif number in seen:
                duplicated += 1
            else:
                seen.add(number)
            sock.sendto(data, source)
        elif not sys.stdin.readline():
            break
    say(received=len(seen), duplicated=duplicated, corrupted=corrupted)


def pump(source: str, address: str, port: int, pps: int, window: int) -> None:
    sock = udp(source, 0)
    sock.setblocking(False)
    back: set[int] = set()
    sent = duplicated = corrupted = 0
    longest = 0.0
    start = last_back = time.monotonic()
    deadline: float | None = None
    next_check = start
    say(ready=True)
    while True:
        now = time.monotonic()
        if deadline is None and now >= next_check:
            next_check = now + 0.01
            if stdin_closed():
                deadline = now + SETTLE
                elapsed = now - start
        if deadline is not None and (now > deadline or len(back) == sent):
            break
        due = int((now - start) * pps) if deadline is None else sent
        while sent < due and sent - len(back) < window:
            sock.sendto(packet(sent), (address, port))
            sent += 1
        readable, _, _ = select.select([sock], [], [], 0.0005 if deadline is None else 0.01)
        if readable:
            longest = max(longest, time.monotonic() - last_back)
            last_back = time.monotonic()
        while readable:
            try:
                data = sock.recv(65535)
            except BlockingIOError:
                break
            number = number_of(data)
            if number is None:
                corrupted += 1
            elif number in back or number >= sent:
                duplicated += 1
            else:
                back.add(number)
    say(
        sent=sent,
        received=len(back),
        lost=sent - len(back),
        duplicated=duplicated,
        corrupted=corrupted,
        pps=round(sent / elapsed),
        longest_gap=round(longest, 4),
        missing=sorted(set(range(sent)) - back)[:20],
    )


def sink(address: str, port: int) -> None:
    listener = socket.create_server((address, port))
    say(ready=True)
    stream, _ = listener.accept()
    total = 0
    longest = 0.0
    good = True
    last = time.monotonic()
    while data := stream.recv(1 << 16):
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        expected = (total + index & 0xFF for index in (0, len(data) - 1))
        good = good and [data[0], data[-1]] == list(expected)
        total += len(data)
    say(bytes=total, longest_gap=round(longest, 4), intact=good)


def source(address_from: str, address: str, port: int, rate: int) -> None:
    stream = socket.create_connection((address, port), source_address=(address_from, 0))
    stream.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 << 10)
    pattern = bytes(range(256)) * 64
    sent = 0
    say(ready=True)
    while not stdin_closed():
        offset = sent % 256
        sent += stream.send(pattern[offset : offset + 8192])
    stream.close()
    say(bytes=sent)


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    if mode == "reflect":
        reflect(arguments[0], int(arguments[1]))
    elif mode == "pump":
        pump(arguments[0], arguments[1], *map(int, arguments[2:]))
    elif mode == "sink":
        sink(arguments[0], int(arguments[1]))
    else:
        source(arguments[0], arguments[1], *map(int, arguments[2:]))
