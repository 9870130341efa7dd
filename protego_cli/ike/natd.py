"""NAT detection (RFC 7296 2.23): hashes of the addresses each side believes in.

ESP goes in UDP where one side finds a NAT, or wants it so: then it sends a NAT_DETECTION_SOURCE_IP that
matches no address, and the other takes it to be behind a NAT. Else it is raw ESP, IP protocol 50.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from protego_cli.ike.events import Path
from protego_cli.wire.notifies import NotifyType
from protego_cli.wire.payloads import Notify

IKE_PORT = 500
NATT_PORT = 4500


class Nat(NamedTuple):
    """What the peer's notifications say of the path."""

    supported: bool  # the peer sent any
    local: bool  # a NAT stands before us
    remote: bool  # a NAT stands before the peer, or it wishes to be treated so


def natd_hash(spi_i: bytes, spi_r: bytes, address: str, port: int) -> bytes:
    """SHA-1 as the RFC has it: it hides nothing and proves nothing."""
    data = spi_i + spi_r + ipaddress.ip_address(address).packed + port.to_bytes(2, "big")
    return hashlib.sha1(data, usedforsecurity=False).digest()


def natd_payloads(spi_i: bytes, spi_r: bytes, path: Path, *, force: bool) -> tuple[Notify, Notify]:
    """Our two notifications for a message sent along `path`."""
    source = ("0.0.0.0", 0) if force else (path.local, path.local_port)  # noqa: S104 - hashed, not bound
    return (
        Notify(NotifyType.NAT_DETECTION_SOURCE_IP, natd_hash(spi_i, spi_r, *source)),
        Notify(
            NotifyType.NAT_DETECTION_DESTINATION_IP,
            natd_hash(spi_i, spi_r, path.remote, path.remote_port),
        ),
    )


def detect(spi_i: bytes, spi_r: bytes, path: Path, notifies: Sequence[Notify]) -> Nat:
    """Compare the peer's notifications with the addresses its message came along."""
    sources = [n.data for n in notifies if n.kind == NotifyType.NAT_DETECTION_SOURCE_IP]
    targets = [n.data for n in notifies if n.kind == NotifyType.NAT_DETECTION_DESTINATION_IP]
    if not sources or not targets:
        return Nat(supported=False, local=False, remote=False)
    return Nat(
        supported=True,
        local=natd_hash(spi_i, spi_r, path.local, path.local_port) not in targets,
        remote=natd_hash(spi_i, spi_r, path.remote, path.remote_port) not in sources,
    )


def floated(path: Path) -> Path:
    """`path` moved to port 4500, unless it does not use port 500 in the first place."""
    if IKE_PORT not in (path.local_port, path.remote_port):
        return path
    return path._replace(local_port=NATT_PORT, remote_port=NATT_PORT)
