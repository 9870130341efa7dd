"""DSCP and ECN of a packet that enters or leaves a tunnel (RFC 4301 5.1.2, RFC 6040 4).

Entering: the outer header bears the ECN field of the inner one (RFC 6040's normal mode) and, unless the
tunnel has one of its own, its DSCP.
Leaving: the outer DSCP is discarded. The outer ECN field may change the inner one:

    inner \\ outer   Not-ECT   ECT(0)    ECT(1)    CE
    Not-ECT         Not-ECT   Not-ECT   Not-ECT   drop
    ECT(0)          ECT(0)    ECT(0)    ECT(1)    CE
    ECT(1)          ECT(1)    ECT(1)    ECT(1)    CE
    CE              CE        CE        CE        CE

So it does nothing unless its low bit is set, which it is in ECT(1) and CE only: `telling` asks that once for
a batch, whose packets have one outer TOS.

`TOS` is the second byte of an IPv4 header, the traffic class of an IPv6 one.
"""

from __future__ import annotations

from typing import Final

from protego_cli.wire.checksum import amended
from protego_cli.wire.inner import IPV4_LENGTH, Buffer

NOT_ECT, ECT1, ECT0, CE = range(4)  # the two low bits of a TOS (RFC 3168 5)

_LEAVING: Final[tuple[tuple[int | None, ...], ...]] = (
    # inner Not-ECT, ECT(1), ECT(0), CE; outer:
    (NOT_ECT, ECT1, ECT0, CE),  # Not-ECT
    (NOT_ECT, ECT1, ECT1, CE),  # ECT(1)
    (NOT_ECT, ECT1, ECT0, CE),  # ECT(0)
    (None, CE, CE, CE),  # CE
)


def tos(packet: Buffer) -> int:
    """The TOS of an IP packet."""
    first, second = packet[0], packet[1]
    return second if first >> 4 == 4 else (first & 15) << 4 | second >> 4


def around(packet: Buffer, dscp: int | None) -> int:
    """The outer TOS of a tunnel that this packet enters; `dscp` is the tunnel's own, None where it copies."""
    inner = tos(packet)
    return inner if dscp is None else dscp << 2 | inner & 3


def telling(outer: int) -> bool:
    """Whether an outer TOS can mean anything for what leaves the tunnel."""
    return bool(outer & 1)


def combined(inner: int, outer: int) -> int | None:
    """The ECN field with which a packet leaves, by both TOS; None when it must be dropped."""
    return _LEAVING[outer & 3][inner & 3]


def leave(packet: bytes, outer: int, at: int = 0) -> bytes | None:
    """A packet as it leaves a tunnel under an outer header of that TOS; None when it must be dropped.

    Its IP header begins at `at`. What is no IP packet is returned as it is.
    """
    version = packet[at] >> 4 if len(packet) >= at + IPV4_LENGTH else 0
    if version not in (4, 6):
        return packet
    shift = 0 if version == 4 else 4
    inner = packet[at + 1] >> shift & 3
    ecn = combined(inner, outer)
    if ecn is None or ecn == inner:
        return None if ecn is None else packet
    left = bytearray(packet)
    left[at + 1] += (ecn - inner) << shift
    if version == 4:
        left[at + 10 : at + 12] = amended(packet[at + 10 : at + 12], ecn - inner)
    return bytes(left)
