"""A GPN's data path written for the reader: one packet at a time, sets and `ipaddress`, no batch, no cache.

It judges by the RFCs' text (791, 4301 5, 4303 3, 4106, 3602, 4868, 6040 4, 7348) and shares with the gateway
nothing but the names of the counters. Tests compare the two.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import itertools
import struct
from collections import Counter
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from tests.support.esp_packets import intact, passed, summed, time_exceeded

Address = tuple[str, int]
Sent = tuple[Address, bytes, int]
"""Destination, datagram, TOS."""

WINDOW = 64


GCM = "aes256gcm16"
_KEY = {"aes128": 16, "aes256": 32}
_ICV = {"sha1": 12, "sha256": 16, "sha384": 24, "sha512": 32}


def seal(key: bytes, spi: int, number: int, text: bytes, suite: str = GCM) -> bytes:
    """An ESP packet around a plaintext that already has its trailer; `number` has 64 bits if "esn"."""
    words = suite.split("-")
    low, high = number & 0xFFFFFFFF, number >> 32
    header = struct.pack("!II", spi, low)
    if words[0] == GCM:
        iv = number.to_bytes(8)
        associated = struct.pack("!IQ", spi, number) if "esn" in words else header
        return header + iv + AESGCM(key[:32]).encrypt(key[32:] + iv, text, associated)
    cut = _KEY[words[0]]
    iv = hashlib.sha256(header).digest()[:16]
    encryptor = Cipher(AES(key[:cut]), CBC(iv)).encryptor()
    packet = header + iv + encryptor.update(text)
    covered = packet + high.to_bytes(4) if "esn" in words else packet
    return packet + hmac.digest(key[cut:], covered, words[1])[: _ICV[words[1]]]


def unseal(key: bytes, packet: bytes, suite: str = GCM, high: int = 0) -> bytes:
    """The plaintext of an ESP packet, trailer included. Raises InvalidTag."""
    words = suite.split("-")
    if words[0] == GCM:
        associated = packet[:4] + high.to_bytes(4) + packet[4:8] if "esn" in words else packet[:8]
        return AESGCM(key[:32]).decrypt(key[32:] + packet[8:16], packet[16:], associated)
    cut, icv = _KEY[words[0]], _ICV[words[1]]
    covered = packet[:-icv] + high.to_bytes(4) if "esn" in words else packet[:-icv]
    if hmac.digest(key[cut:], covered, words[1])[:icv] != packet[-icv:]:
        raise InvalidTag
    return Cipher(AES(key[:cut]), CBC(packet[8:24])).decryptor().update(packet[24:-icv])


def padded(inner: bytes, next_header: int, extra: int = 0, suite: str = GCM) -> bytes:
    """The plaintext of an inner packet, with TFC padding of `extra` bytes."""
    text = inner + bytes(extra)
    pad = -(len(text) + 2) % (4 if suite.startswith(GCM) else 16)
    return text + bytes(range(1, pad + 1)) + bytes((pad, next_header))


@dataclass
class ReferenceSa:
    """Both halves of a CHILD_SA."""

    tunnel: str
    vni: int
    spi_in: int
    spi_out: int
    key_in: bytes
    key_out: bytes
    local: list[str]  # prefixes
    remote: list[str]
    peer: Address
    vip: str
    next_out: int = 1
    hi: int = 1 << 32
    seen: set[int] = field(default_factory=set)
    suite: str = GCM
    dscp: int | None = None


@dataclass
class ReferenceGpn:
    """`sent_in` and `sent_out` collect what leaves, in order; `told_in` and `told_out` the errors, which are
    to be sealed for the peer of an SA, or in frames for tenants. Drops are counted by reason.
    """

    sas: list[ReferenceSa]
    rules: dict[str, int]  # tunnel -> inbound SPI
    vteps: dict[int, list[tuple[str, Address, bytes]]]  # VNI -> prefix, address, MAC
    gateway_mac: bytes
    gens: list[Address]
    counts: Counter[str] = field(default_factory=Counter)
    sent_in: list[Sent] = field(default_factory=list)
    sent_out: list[Sent] = field(default_factory=list)
    told_in: list[tuple[int, bytes]] = field(default_factory=list)
    told_out: list[tuple[Address, bytes]] = field(default_factory=list)

    # ---- from the peer

    def receive_esp(self, packet: bytes, tos: int = 0) -> None:
        if len(packet) < 28:
            self.counts["gpn_drop_short"] += 1
            return
        spi, number = struct.unpack("!II", packet[:8])
        sa = next((sa for sa in self.sas if sa.spi_in == spi), None)
        if sa is None:
            self.counts["gpn_drop_tag" if 1 <= spi <= 255 else "gpn_drop_unknown_spi"] += 1
            return
        if "esn" in sa.suite:  # the least number with this low half that is not left of the window
            edge = max(0, max(sa.seen, default=0) - WINDOW + 1)
            number = next(n for n in (h << 32 | number for h in itertools.count(edge >> 32)) if n >= edge)
        if not _whole(packet, sa.suite):
            self.counts["gpn_drop_short"] += 1
            return
        if number == 0:
            self.counts["gpn_drop_floor"] += 1
            return
        if number in sa.seen or number <= max(sa.seen, default=0) - WINDOW:
            self.counts["gpn_drop_replay"] += 1
            return
        try:
            text = unseal(sa.key_in, packet, sa.suite, number >> 32)
        except InvalidTag:
            self.counts["gpn_drop_auth"] += 1
            return
        sa.seen.add(number)
        verdict = self._opened(sa, text, tos)
        if isinstance(verdict, str):
            self.counts[verdict] += 1
        else:
            self.sent_in.append(verdict)

    def _opened(self, sa: ReferenceSa, text: bytes, tos: int) -> Sent | str:
        if len(text) < 2:
            return "gpn_drop_padding"
        pad, next_header = text[-2:]
        if next_header == 59:
            return "gpn_drop_dummy"
        body = text[: -2 - pad] if len(text) >= 2 + pad else None
        if body is None or next_header not in (4, 41) or text[len(body) : -2] != bytes(range(1, pad + 1)):
            return "gpn_drop_padding"
        inner = ip_packet(body)
        if inner is None or {4: 4, 6: 41}[inner[0] >> 4] != next_header:
            return "gpn_drop_inner_in"
        left = decapsulated(inner, tos)
        if left is None:
            return "gpn_drop_ecn_in"
        inner = left
        source, destination = addresses(inner)
        if not _within(source, sa.remote) or not _within(destination, sa.local):
            return "gpn_drop_selector_in"
        framed = self._delivered(sa.vni, destination, inner)
        if framed is None:
            return "gpn_drop_no_vtep"
        if hops(inner) <= 1:
            if intact(inner):
                self.told_in.append((sa.spi_out, time_exceeded(inner)))
            return "gpn_drop_ttl_in"
        address, header = framed
        return address, header + passed(inner), traffic_class(inner)

    def _delivered(self, vni: int, destination: str, packet: bytes) -> tuple[Address, bytes] | None:
        """Which VTEP a packet goes to, and behind which headers."""
        vteps = [
            (ipaddress.ip_network(prefix).prefixlen, address, mac)
            for prefix, address, mac in self.vteps.get(vni, [])
            if _within(destination, [prefix])
        ]
        if not vteps:
            return None
        _, address, mac = max(vteps)
        ethertype = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        return address, bytes((8, 0, 0, 0)) + vni.to_bytes(3) + bytes(1) + mac + self.gateway_mac + ethertype

    # ---- from the tenant

    def receive_vxlan(self, frame: bytes, source: Address, tos: int = 0) -> None:
        verdict = self._framed(frame, source, tos)
        if isinstance(verdict, str):
            self.counts[verdict] += 1
        else:
            self.sent_out.append(verdict)

    def _framed(self, frame: bytes, source: Address, tos: int) -> Sent | str:
        if len(frame) == 32 and frame[:3] == bytes(3) and frame[3]:
            return "gpn_drop_tag"
        if len(frame) < 8 or not frame[0] & 8:
            return "gpn_drop_vxlan_malformed"
        vni = int.from_bytes(frame[4:7])
        from_gen = source in self.gens
        if not from_gen and source[0] not in [address[0] for _, address, _ in self.vteps.get(vni, [])]:
            return "gpn_drop_vxlan_source"
        if frame[20:22] == b"\x08\x06" and not from_gen:
            return self.gens[0], frame, tos
        inner = ip_packet(frame[22:])
        if inner is None or frame[20:22] != {4: b"\x08\x00", 6: b"\x86\xdd"}[inner[0] >> 4]:
            return "gpn_drop_inner"
        here, there = addresses(inner)
        ruled = [sa for sa in self.sas if sa.vni == vni and self.rules.get(sa.tunnel) == sa.spi_in]
        near = [sa for sa in ruled if _within(there, sa.remote)]
        if not near:
            return (self.gens[0], frame, tos) if not from_gen else "gpn_drop_no_rule"
        taking = [sa for sa in near if _within(here, sa.local)]
        if not taking:
            return "gpn_drop_selector_out"
        sa = min(taking, key=lambda sa: (_breadth(there, sa.remote), sa.tunnel))
        left = decapsulated(inner, tos)
        if left is None:
            return "gpn_drop_ecn_out"
        inner = left
        if hops(inner) <= 1:
            if intact(inner) and (framed := self._delivered(vni, here, inner)) is not None:
                self.told_out.append((framed[0], framed[1] + time_exceeded(inner)))
            return "gpn_drop_ttl_out"
        inner = passed(inner)
        if sa.next_out >= sa.hi:
            return "gpn_drop_range"
        number, sa.next_out = sa.next_out, sa.next_out + 1
        text = padded(inner, 4 if inner[0] >> 4 == 4 else 41, suite=sa.suite)
        outer = traffic_class(inner)
        if sa.dscp is not None:
            outer = sa.dscp * 4 + outer % 4
        return sa.peer, seal(sa.key_out, sa.spi_out, number, text, sa.suite), outer


def _whole(packet: bytes, suite: str) -> bool:
    """Whether a packet has a length that the cipher makes."""
    if suite.startswith(GCM):
        return len(packet) >= 32
    blocks = len(packet) - 8 - _ICV[suite.split("-")[1]]
    return blocks >= 32 and blocks % 16 == 0


def ip_packet(data: bytes) -> bytes | None:
    """The IP packet at the start of some bytes, without what lies behind it."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        header, total = (data[0] & 15) * 4, int.from_bytes(data[2:4])
        return data[:total] if 20 <= header <= total <= len(data) else None
    if len(data) >= 40 and data[0] >> 4 == 6:
        payload = int.from_bytes(data[4:6])
        jumbo = payload == 0 and data[6] == 0
        return data[: 40 + payload] if 40 + payload <= len(data) and not jumbo else None
    return None


def traffic_class(packet: bytes) -> int:
    return packet[1] if packet[0] >> 4 == 4 else int.from_bytes(packet[:2]) >> 4 & 0xFF


def hops(packet: bytes) -> int:
    """TTL, or hop limit."""
    return packet[8] if packet[0] >> 4 == 4 else packet[7]


def decapsulated(packet: bytes, outer: int) -> bytes | None:
    """RFC 6040 4.2, in its words: the packet with the outgoing ECN field, None where it must be dropped."""
    names = {0: "Not-ECT", 1: "ECT(1)", 2: "ECT(0)", 3: "CE"}
    arriving_inner, arriving_outer = names[traffic_class(packet) % 4], names[outer % 4]
    outgoing = arriving_inner
    if arriving_inner == "Not-ECT" and arriving_outer == "CE":
        return None
    if arriving_inner != "Not-ECT" and arriving_outer == "CE":
        outgoing = "CE"
    if arriving_inner == "ECT(0)" and arriving_outer == "ECT(1)":
        outgoing = "ECT(1)"
    value = traffic_class(packet) & 0xFC | next(bits for bits, name in names.items() if name == outgoing)
    if packet[0] >> 4 == 6:
        return (int.from_bytes(packet[:2]) & 0xF00F | value << 4).to_bytes(2) + packet[2:]
    return packet if value == packet[1] else summed(packet[:1] + bytes([value]) + packet[2:])


def addresses(packet: bytes) -> tuple[str, str]:
    if packet[0] >> 4 == 4:
        return str(ipaddress.IPv4Address(packet[12:16])), str(ipaddress.IPv4Address(packet[16:20]))
    return str(ipaddress.IPv6Address(packet[8:24])), str(ipaddress.IPv6Address(packet[24:40]))


def _within(address: str, prefixes: list[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(prefix) for prefix in prefixes)


def _breadth(address: str, prefixes: list[str]) -> int:
    return min(ipaddress.ip_network(p).num_addresses for p in prefixes if _within(address, [p]))
