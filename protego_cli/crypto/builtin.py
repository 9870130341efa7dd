"""The algorithms Protego brings, under IANA's IKEv2 transform numbers: ciphers, integrity, PRFs, groups.

`plugins/crypto_suites.py` hands them out through the same hook that a third party's plugin uses.

RFC 4106 and 5282 (AES-GCM in ESP and IKE), RFC 7634 (ChaCha20-Poly1305 in both), RFC 3602 (AES-CBC), RFC 2404
and 4868 (HMAC), RFC 8031, 5903 and 3526 (groups). Nothing is here that RFC 8247 or 8221 says MUST NOT or
SHOULD NOT; SHA-1, which is on its way out there, is used only where a tunnel names it.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from protego_cli.crypto.algorithms import Algorithm, CbcEncryption, Encryption, Integrity, Prf
from protego_cli.crypto.groups import ecp_group, modp_group, x25519_group
from protego_cli.crypto.mac import (
    hmac_sha1,
    hmac_sha256,
    hmac_sha384,
    hmac_sha512,
    running_sha1,
    running_sha256,
    running_sha384,
    running_sha512,
)
from protego_cli.crypto.primes import MODP_2048, MODP_3072, MODP_4096

# Orders of the base points (SEC 2, 2.4.2, 2.5.1 and 2.6.1).
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P384_ORDER = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
)
_P521_ORDER = int("01" + 32 * "FF" + "FA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409", 16)

ALGORITHMS: tuple[Algorithm, ...] = (
    Encryption(
        "aes128gcm16", 20, key_bits=128, key_length=16, salt_length=4, iv_length=8, icv_length=16, make=AESGCM
    ),
    Encryption(
        "aes256gcm16", 20, key_bits=256, key_length=32, salt_length=4, iv_length=8, icv_length=16, make=AESGCM
    ),
    Encryption(
        "chacha20poly1305",
        28,
        key_bits=None,  # RFC 7634 4: the transform has no Key Length attribute
        key_length=32,
        salt_length=4,
        iv_length=8,
        icv_length=16,
        make=ChaCha20Poly1305,
    ),
    CbcEncryption("aes128", 12, key_bits=128, key_length=16, block_length=16, make=AES),
    CbcEncryption("aes256", 12, key_bits=256, key_length=32, block_length=16, make=AES),
    Integrity("sha1", 2, key_length=20, icv_length=12, make=running_sha1, prf="prfsha1"),
    Integrity("sha256", 12, key_length=32, icv_length=16, make=running_sha256, prf="prfsha256"),
    Integrity("sha384", 13, key_length=48, icv_length=24, make=running_sha384, prf="prfsha384"),
    Integrity("sha512", 14, key_length=64, icv_length=32, make=running_sha512, prf="prfsha512"),
    Prf("prfsha1", 2, length=20, compute=hmac_sha1),
    Prf("prfsha256", 5, length=32, compute=hmac_sha256),
    Prf("prfsha384", 6, length=48, compute=hmac_sha384),
    Prf("prfsha512", 7, length=64, compute=hmac_sha512),
    x25519_group("x25519", 31),
    ecp_group("ecp256", 19, ec.SECP256R1(), _P256_ORDER),
    ecp_group("ecp384", 20, ec.SECP384R1(), _P384_ORDER),
    ecp_group("ecp521", 21, ec.SECP521R1(), _P521_ORDER),
    # Exponents by the upper estimates of RFC 3526 8, in whole bytes.
    modp_group("modp2048", 14, MODP_2048, exponent_bits=320),
    modp_group("modp3072", 15, MODP_3072, exponent_bits=424),
    modp_group("modp4096", 16, MODP_4096, exponent_bits=480),
)
