"""Keying material (RFC 7296 2.14, 2.17, 2.18): what Diffie-Hellman, nonces and SPIs become.

All ciphers are AEADs, so SK_ai and SK_ar do not exist (RFC 5282 7.1) and SK_ei, SK_er end in their salt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protego_cli.crypto.algorithms import Encryption, Prf
from protego_cli.crypto.keymat import prf_plus


@dataclass(frozen=True)
class IkeKeys:
    """The keys of one IKE_SA; i is the direction from its original initiator."""

    d: bytes = field(repr=False)
    ei: bytes = field(repr=False)
    er: bytes = field(repr=False)
    pi: bytes = field(repr=False)
    pr: bytes = field(repr=False)


def skeyseed(prf: Prf, nonce_i: bytes, nonce_r: bytes, shared: bytes) -> bytes:
    return prf.compute(nonce_i + nonce_r, shared)


def rekeyed_skeyseed(old_prf: Prf, old_d: bytes, nonce_i: bytes, nonce_r: bytes, shared: bytes) -> bytes:
    """SKEYSEED of an IKE_SA that another one rekeys, under the old one's PRF."""
    return old_prf.compute(old_d, shared + nonce_i + nonce_r)


def ike_keys(
    prf: Prf, encryption: Encryption, seed: bytes, nonces: tuple[bytes, bytes], spis: tuple[bytes, bytes]
) -> IkeKeys:
    """SK_d, SK_ei, SK_er, SK_pi and SK_pr, in the order in which prf+ gives them."""
    sealing = encryption.key_length + encryption.salt_length
    lengths = (prf.length, sealing, sealing, prf.length, prf.length)
    material = prf_plus(prf, seed, b"".join(nonces + spis), sum(lengths))
    keys = []
    for length in lengths:
        keys.append(material[:length])
        material = material[length:]
    return IkeKeys(*keys)


def child_keys(
    prf: Prf, d: bytes, encryption: Encryption, nonces: tuple[bytes, bytes], shared: bytes = b""
) -> tuple[bytes, bytes]:
    """Keys with their salts of a CHILD_SA: from the exchange's initiator, and from its responder."""
    length = encryption.key_length + encryption.salt_length
    material = prf_plus(prf, d, shared + b"".join(nonces), 2 * length)
    return material[:length], material[length:]
