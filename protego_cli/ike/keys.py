"""Keying material (RFC 7296 2.14, 2.17, 2.18): what Diffie-Hellman, nonces and SPIs become.

SK_ei and SK_er of an AEAD end in their salt, and SK_ai and SK_ar are empty then (RFC 5282 7.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protego_cli.crypto.algorithms import EspSuite, Prf
from protego_cli.crypto.keymat import prf_plus
from protego_cli.crypto.proposal import EspProposal, IkeProposal


@dataclass(frozen=True)
class IkeKeys:
    """The keys of one IKE_SA; i is the direction from its original initiator."""

    d: bytes = field(repr=False)
    ai: bytes = field(repr=False)
    ar: bytes = field(repr=False)
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
    suite: IkeProposal, seed: bytes, nonces: tuple[bytes, bytes], spis: tuple[bytes, bytes]
) -> IkeKeys:
    """SK_d, SK_ai, SK_ar, SK_ei, SK_er, SK_pi and SK_pr, in the order in which prf+ gives them."""
    prf, sealing = suite.prf, suite.encryption.keymat_length
    authenticating = suite.integrity.key_length if suite.integrity else 0
    lengths = (prf.length, *2 * (authenticating,), *2 * (sealing,), *2 * (prf.length,))
    material = prf_plus(prf, seed, b"".join(nonces + spis), sum(lengths))
    keys = []
    for length in lengths:
        keys.append(material[:length])
        material = material[length:]
    return IkeKeys(*keys)


def child_keys(
    prf: Prf, d: bytes, proposal: EspProposal, nonces: tuple[bytes, bytes], shared: bytes = b""
) -> tuple[bytes, bytes]:
    """Keying material of a CHILD_SA: from the exchange's initiator, and from its responder.

    Each is the cipher's (key, salt) and then the integrity key, as RFC 7296 2.17 takes them from prf+.
    """
    length = EspSuite(proposal.encryption, proposal.integrity).keymat_length
    material = prf_plus(prf, d, shared + b"".join(nonces), 2 * length)
    return material[:length], material[length:]
