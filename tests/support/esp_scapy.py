"""scapy as an independent implementation of ESP: it seals what we open and opens what we seal."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scapy names ciphers that cryptography has declared old
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.ipsec import ESP, SecurityAssociation

ALGORITHMS = {
    "aes128gcm16": "AES-GCM",
    "aes256gcm16": "AES-GCM",
    "chacha20poly1305": "CHACHA20-POLY1305",
}
_OUTER = IP(src="198.51.100.7", dst="203.0.113.10")


def _association(suite: str, key: bytes, spi: int) -> SecurityAssociation:
    return SecurityAssociation(
        ESP, spi=spi, crypt_algo=ALGORITHMS[suite], crypt_key=key, tunnel_header=_OUTER
    )


def scapy_seal(suite: str, key: bytes, spi: int, number: int, inner: bytes) -> bytes:
    """The ESP packet that scapy makes of an inner packet in tunnel mode."""
    packet = IP(inner) if inner[0] >> 4 == 4 else IPv6(inner)
    sealed = _association(suite, key, spi).encrypt(packet, seq_num=number, iv=number.to_bytes(8))
    return bytes(sealed[ESP])


def scapy_open(suite: str, key: bytes, spi: int, packet: bytes) -> tuple[int, bytes]:
    """Sequence number and inner packet of an ESP packet, by scapy."""
    outer = _OUTER / ESP(packet)
    inner = _association(suite, key, spi).decrypt(IP(bytes(outer)))
    return int(outer[ESP].seq), bytes(inner)
