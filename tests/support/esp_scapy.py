"""scapy as an independent implementation of ESP: it seals what we open and opens what we seal."""

from __future__ import annotations

import warnings
from typing import Any

from protego_cli.crypto.algorithms import EspSuite

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scapy names ciphers that cryptography has declared old
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.ipsec import ESP, SecurityAssociation
    from scapy.packet import Packet, Raw

CIPHERS = {
    "aes128gcm16": "AES-GCM",
    "aes256gcm16": "AES-GCM",
    "chacha20poly1305": "CHACHA20-POLY1305",
    "aes128": "AES-CBC",
    "aes256": "AES-CBC",
}
INTEGRITY = {
    "sha1": "HMAC-SHA1-96",
    "sha256": "SHA2-256-128",
    "sha384": "SHA2-384-192",
    "sha512": "SHA2-512-256",
}
_OUTER = IP(src="198.51.100.7", dst="203.0.113.10")


def _association(suite: EspSuite, key: bytes, spi: int, high: int) -> SecurityAssociation:
    cut = suite.encryption.keymat_length
    integrity = {}
    if suite.integrity is not None:
        integrity = {"auth_algo": INTEGRITY[suite.integrity.keyword], "auth_key": key[cut:]}
    return SecurityAssociation(
        ESP,
        spi=spi,
        crypt_algo=CIPHERS[suite.encryption.keyword],
        crypt_key=key[:cut],
        tunnel_header=_OUTER,
        esn_en=suite.esn,
        esn=high,
        **integrity,
    )


def scapy_seal(suite: EspSuite, key: bytes, spi: int, number: int, inner: bytes) -> bytes:
    """The ESP packet that scapy makes of an inner packet in tunnel mode."""
    packet = IP(inner) if inner[0] >> 4 == 4 else IPv6(inner)
    iv = {} if suite.integrity else {"iv": number.to_bytes(8)}
    association = _association(suite, key, spi, number >> 32)
    sealed = association.encrypt(packet, seq_num=number & 0xFFFFFFFF, **iv)
    return bytes(sealed[ESP])


def scapy_open(suite: EspSuite, key: bytes, spi: int, packet: bytes, high: int = 0) -> tuple[int, bytes]:
    """Sequence number and inner packet of an ESP packet, by scapy."""
    outer = _OUTER / ESP(packet)
    inner = _association(suite, key, spi, high).decrypt(IP(bytes(outer)))
    return high << 32 | int(outer[ESP].seq), bytes(inner)


def syn(network: Packet, mss: int, before: int = 0, flags: str = "S", load: bytes = b"") -> bytes:
    """A SYN with `before` bytes of other options before the MSS, so that it may lie at an odd offset."""
    options: list[tuple[str, Any]] = [("NOP", None)] * before + [("MSS", mss), ("SAckOK", b"")]
    return bytes(network / TCP(sport=7, dport=9, flags=flags, options=options) / Raw(load))
