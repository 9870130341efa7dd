"""Finishing what a sender's kernel left to a network card that is not there.

A tenant's kernel that reaches us over a virtual link (veth, a bridge, some hypervisors) hands VXLAN packets
on as it would hand them to a NIC with tunnel offloads: the inner TCP or UDP checksum holds only the sum of
the pseudo-header, and a segment may be as large as 64 KiB. Sent on into a tunnel, the peer would drop the
first and could not carry the second. So, for each inner packet:

1. `mark` says what stands in the checksum field, the pseudo-header's sum, when it was never computed.
   (A finished checksum that happens to be equal is computed again to the same value.)
2. `finish` computes the checksum, and cuts what was never segmented as a NIC would; `checksum` is the short
   way for packets that need no cutting.

RFC 1071 (checksum), RFC 9293 3.1 (TCP), RFC 768, RFC 8200 8.1 (pseudo-header). Frames are whole VXLAN
payloads: 8 bytes VXLAN, 14 Ethernet, then IP.
"""

from __future__ import annotations

from typing import NamedTuple

from protego_cli.wire.checksum import ones_sum
from protego_cli.wire.inner import TCP, UDP

IP = 22  # offset of the inner IP header in a VXLAN packet
FIN_PSH, CWR = 0x09, 0x80
INNER_MTU = 1400  # of TCP segments that we cut: fits any tunnel over a 1,500-byte path


class _Transport(NamedTuple):
    """Where the transport header of an inner packet lies, and what its checksum covers."""

    protocol: int
    start: int  # offset of the transport header
    end: int  # offset behind the packet
    checksum: int  # offset of the checksum field
    pseudo: bytes  # addresses of the pseudo-header


def _locate(frame: memoryview) -> _Transport | None:
    """The transport header of a whole, unfragmented inner TCP or UDP packet, else None."""
    if len(frame) < IP + 28:
        return None
    version = frame[IP] >> 4
    if version == 4:
        start = IP + (frame[IP] & 15) * 4
        end = IP + int.from_bytes(frame[IP + 2 : IP + 4], "big")
        protocol, pseudo = frame[IP + 9], bytes(frame[IP + 12 : IP + 20])
        fragment = int.from_bytes(frame[IP + 6 : IP + 8], "big") & 0x3FFF
        if fragment or start < IP + 20:
            return None
    elif version == 6 and len(frame) >= IP + 48:
        start, protocol, pseudo = IP + 40, frame[IP + 6], bytes(frame[IP + 8 : IP + 40])
        end = start + int.from_bytes(frame[IP + 4 : IP + 6], "big")
    else:
        return None
    offset = {TCP: 16, UDP: 6}.get(protocol)
    least = 20 if protocol == TCP else 8
    if offset is None or end > len(frame) or end - start < least:
        return None
    return _Transport(protocol, start, end, start + offset, pseudo)


def _pseudo_sum(transport: _Transport, length: int) -> int:
    return ones_sum(transport.pseudo, bytes((0, transport.protocol)), length.to_bytes(4, "big"))


class Mark(NamedTuple):
    """What tells that the packets of one flow and length were left to a card."""

    start: int  # of the transport header in the frame
    end: int  # of the inner packet
    at: int  # of the checksum field
    value: bytes  # what stands there: the pseudo-header's sum
    whole: bool  # not for cutting: it fits a tunnel, or is no TCP


def mark(frame: memoryview) -> Mark | None:
    """None for packets that no card would finish."""
    transport = _locate(frame)
    if transport is None:
        return None
    start, end = transport.start, transport.end
    value = _pseudo_sum(transport, end - start).to_bytes(2, "big")
    return Mark(start, end, transport.checksum, value, transport.protocol != TCP or end - IP <= INNER_MTU)


def checksum(frame: memoryview, start: int, end: int) -> bytes:
    """What belongs into the checksum field of an unfinished packet: that field holds the pseudo-header's sum,
    so the sum of the whole segment is that of both.
    """
    return (0xFFFF - ones_sum(frame[start:end]) or 0xFFFF).to_bytes(2, "big")


def finish(frame: memoryview, segment: int = 0, mtu: int = INNER_MTU) -> list[bytes]:
    """The packets to send on instead: one with its checksum, or several when it was never segmented.

    `segment` is the payload size that the sender asked the card to cut at, 0 when it is not known: then TCP
    is cut at `mtu`, and UDP, whose datagrams have meaning, is not cut.
    """
    transport = _locate(frame)
    if transport is None:
        return [bytes(frame)]
    least = header_end = transport.start + 8
    if transport.protocol == TCP:
        least = transport.start + 20
        header_end = transport.start + (frame[transport.start + 12] >> 4) * 4
        segment = segment or mtu - (header_end - IP)
    if not least <= header_end <= transport.end or segment < 0:
        return [bytes(frame)]
    length = transport.end - header_end
    starts = range(0, length, segment) if length and segment else (0,)
    return [
        _build(frame, transport, header_end, start, min(start + (segment or length), length), index)
        for index, start in enumerate(starts)
    ]


def _build(
    frame: memoryview, transport: _Transport, header_end: int, start: int, end: int, index: int
) -> bytes:
    """One segment: the frame's headers over its payload [start, end), lengths and checksums made true."""
    packet = bytearray(frame[:header_end]) + frame[header_end + start : header_end + end]
    if packet[IP] >> 4 == 4:
        packet[IP + 2 : IP + 4] = (len(packet) - IP).to_bytes(2, "big")
        identification = int.from_bytes(packet[IP + 4 : IP + 6], "big") + index
        packet[IP + 4 : IP + 6] = (identification & 0xFFFF).to_bytes(2, "big")
        packet[IP + 10 : IP + 12] = b"\0\0"
        packet[IP + 10 : IP + 12] = (0xFFFF - ones_sum(packet[IP : transport.start])).to_bytes(2, "big")
    else:
        packet[IP + 4 : IP + 6] = (len(packet) - IP - 40).to_bytes(2, "big")
    at = transport.start
    if transport.protocol == TCP:
        sequence = int.from_bytes(packet[at + 4 : at + 8], "big") + start
        packet[at + 4 : at + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
        if header_end + end < transport.end:
            packet[at + 13] &= ~FIN_PSH & 0xFF
        if index:
            packet[at + 13] &= ~CWR & 0xFF
    else:
        packet[at + 4 : at + 6] = (len(packet) - at).to_bytes(2, "big")
    pseudo = _pseudo_sum(transport, len(packet) - at)
    packet[transport.checksum : transport.checksum + 2] = pseudo.to_bytes(2, "big")
    packet[transport.checksum : transport.checksum + 2] = checksum(memoryview(packet), at, len(packet))
    return bytes(packet)
