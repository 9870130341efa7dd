"""A socket's sending half that only remembers."""

from __future__ import annotations

from protego_cli.net.udp import Address, Buffer


class RecordingSender:
    """Remembers what was sent: (data, segment size, destination, TOS)."""

    def __init__(self, address: Address = ("127.0.0.1", 0)) -> None:
        self.address = address
        self.sent: list[tuple[bytes, int, Address, int]] = []
        self.accepting = True

    def send(
        self, data: Buffer, size: int, dest: Address, *, source: str | None = None, tos: int = 0
    ) -> bool:
        if self.accepting:
            self.sent.append((bytes(data), size, dest, tos))
        return self.accepting
