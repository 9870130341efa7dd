"""VXLAN (RFC 7348 5): an 8-byte header, then an Ethernet frame.

0       4       7       8          14       20          22
| flags | VNI   | 0     | dst MAC  | src MAC | EtherType | IP
  (4)     (3)
"""

from __future__ import annotations

from protego_cli.errors import Malformed
from protego_cli.wire.inner import Buffer

HEADER_LENGTH = 8
FRAME_LENGTH = 22  # VXLAN and Ethernet headers: where the inner IP packet begins
I_FLAG = 0x08  # the VNI is valid
MAX_VNI = (1 << 24) - 1
ETHERTYPE_IPV4 = b"\x08\x00"
ETHERTYPE_IPV6 = b"\x86\xdd"
ETHERTYPE_ARP = b"\x08\x06"


def build_header(vni: int) -> bytes:
    """The VXLAN header. Raises ValueError for a VNI that is not one."""
    if not 0 <= vni <= MAX_VNI:
        raise ValueError(f"a VNI has 24 bits, not {vni}")
    return bytes((I_FLAG, 0, 0, 0)) + vni.to_bytes(3) + b"\0"


def build_frame_header(vni: int, destination: bytes, source: bytes, ethertype: bytes) -> bytes:
    """VXLAN and Ethernet headers, ready to be put before an IP packet."""
    return build_header(vni) + destination + source + ethertype


def parse(view: Buffer) -> int:
    """The VNI. Raises Malformed. Reserved fields are ignored, as RFC 7348 5 asks."""
    if len(view) < HEADER_LENGTH:
        raise Malformed("VXLAN packet shorter than its header")
    if not view[0] & I_FLAG:
        raise Malformed("VXLAN header without a valid VNI")
    return int.from_bytes(view[4:7])
