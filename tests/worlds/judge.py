"""What is promised to packets, and whether it is kept.

Every packet says whose it is, which way it goes and its number. At every moment:
1. what is delivered is a packet of that tenant and that way, as sent but for a hop, for the first time;
2. no two packets enter the Internet under one key and nonce, from whichever process of whichever life.
At the end `missing` tells what was sent and not delivered.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from protego_cli.net.udp import Address
from tests.support.esp_packets import ipv4, passed
from tests.worlds.net import is_packet

OURS, THEIRS = "10.1.0.5", "10.2.0.9"  # the same in every tenant
Way = Literal["in", "out"]  # from the peer, to the peer


class Flow(NamedTuple):
    tenant: str
    way: Way


class Broken(AssertionError):
    """A promise."""


class Judge:
    def __init__(self) -> None:
        self.sent: dict[tuple[Flow, int], bytes] = {}
        self.delivered: set[tuple[Flow, int]] = set()
        self._owners: dict[bytes, tuple[Flow, int]] = {}
        self._nonces: set[tuple[Address, bytes, bytes]] = set()
        self._keys: dict[bytes, object] = {}

    def packet(self, flow: Flow) -> bytes:
        """The next packet of a flow. Its length tells nothing of its number."""
        number = len(self.sent)
        payload = f"{flow.tenant} {flow.way} {number} ".encode()
        payload += b"." * (40 + number * 7 % 5 * 20 - len(payload))
        ends = (THEIRS, OURS) if flow.way == "in" else (OURS, THEIRS)
        packet = ipv4(*ends, payload)
        self.sent[flow, number] = packet
        self._owners[passed(packet)] = flow, number
        return packet

    def deliver(self, flow: Flow, packet: bytes) -> None:
        """It has arrived at that tenant's side."""
        key = self._owners.get(packet)
        if key is None:
            raise Broken(f"{flow} gets what nobody sent: {packet!r}")
        if key[0] != flow:
            raise Broken(f"{flow} gets packet {key[1]} of {key[0]}")
        if key in self.delivered:
            raise Broken(f"{flow} gets packet {key[1]} a second time")
        self.delivered.add(key)

    def on_internet(self, data: bytes, source: Address, dest: Address) -> None:
        """A datagram enters it. The IV of an AEAD is the nonce that the sender chose (RFC 4106 3)."""
        if not is_packet(data, dest):
            return
        nonce = dest, data[:4], data[8:16]
        if nonce in self._nonces:
            raise Broken(f"{source} seals twice under SPI {data[:4].hex()} and nonce {data[8:16].hex()}")
        self._nonces.add(nonce)

    def key(self, key: bytes, owner: object) -> None:
        """No two SAs have one key, so that an SPI stands for a key."""
        if self._keys.setdefault(key, owner) != owner:
            raise Broken(f"{owner} has the key of {self._keys[key]}")

    def missing(self) -> list[tuple[Flow, int]]:
        return sorted(self.sent.keys() - self.delivered)
