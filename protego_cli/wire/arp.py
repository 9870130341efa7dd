"""ARP for IPv4 over Ethernet (RFC 826): who has an address, and the answer.

0      2       4      5      6    8          14        18         24
| 1    | IPv4  | 6    | 4    | op | sender's | sender's | target's | target's
  (htype, ptype, lengths)      (2)   MAC (6)   IPv4 (4)   MAC (6)    IPv4 (4)
"""

from __future__ import annotations

from typing import NamedTuple

from protego_cli.errors import Malformed
from protego_cli.wire.inner import Buffer

LENGTH = 28
REQUEST, REPLY = b"\0\1", b"\0\2"
_IPV4_OVER_ETHERNET = b"\0\1\x08\0\6\4"


class Request(NamedTuple):
    mac: bytes  # who asks
    sender: bytes  # its address; all zeros when it probes whether the target is taken (RFC 5227)
    target: bytes


def parse_request(data: Buffer) -> Request:
    """What follows the Ethernet header, perhaps padded. Raises Malformed for anything but a request."""
    if len(data) < LENGTH or data[:6] != _IPV4_OVER_ETHERNET:
        raise Malformed("not ARP for IPv4 over Ethernet")
    if data[6:8] != REQUEST:
        raise Malformed("not an ARP request")
    mac = bytes(data[8:14])
    if mac[0] & 1 or not any(mac):
        raise Malformed("ARP request from no machine's MAC")
    return Request(mac, bytes(data[14:18]), bytes(data[24:28]))


def build_reply(mac: bytes, request: Request) -> bytes:
    """`mac` has the target."""
    return _IPV4_OVER_ETHERNET + REPLY + mac + request.target + request.mac + request.sender
