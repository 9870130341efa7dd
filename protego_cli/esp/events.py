"""What the data path of a GPN tells the control plane: each once, never per packet."""

from __future__ import annotations

from typing import NamedTuple


class FirstPacket(NamedTuple):
    """A valid packet arrived on an SA that had received none (RFC 7296 2.8)."""

    spi_in: int


class PeerMoved(NamedTuple):
    """Authenticated packets of this SA now come from another address or port (RFC 7296 2.23)."""

    spi_in: int
    address: str
    port: int


class RangeLow(NamedTuple):
    """Three quarters of the sealing range are used."""

    spi_in: int


Event = FirstPacket | PeerMoved | RangeLow
