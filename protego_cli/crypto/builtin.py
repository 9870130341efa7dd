"""The algorithms Protego brings: AEADs, PRFs and key exchange groups, under IANA's IKEv2 transform numbers.

`plugins/crypto_suites.py` hands them out through the same hook that a third party's plugin uses.

RFC 4106 and 5282 (AES-GCM in ESP and IKE), RFC 7634 (ChaCha20-Poly1305 in both), RFC 4868 (PRFs),
RFC 8031, 5903 and 3526 (groups).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from protego_cli.crypto.algorithms import Algorithm, Encryption, Prf
from protego_cli.crypto.groups import ecp_group, modp_group, x25519_group
from protego_cli.crypto.mac import hmac_sha256, hmac_sha384, hmac_sha512
from protego_cli.crypto.primes import MODP_2048, MODP_3072, MODP_4096

# Orders of the base points (SEC 2, 2.4.2 and 2.5.1).
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P384_ORDER = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16
)

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
    Prf("prfsha256", 5, length=32, compute=hmac_sha256),
    Prf("prfsha384", 6, length=48, compute=hmac_sha384),
    Prf("prfsha512", 7, length=64, compute=hmac_sha512),
    x25519_group("x25519", 31),
    ecp_group("ecp256", 19, ec.SECP256R1(), _P256_ORDER),
    ecp_group("ecp384", 20, ec.SECP384R1(), _P384_ORDER),
    # Exponents by the upper estimates of RFC 3526 8, in whole bytes.
    modp_group("modp2048", 14, MODP_2048, exponent_bits=320),
    modp_group("modp3072", 15, MODP_3072, exponent_bits=424),
    modp_group("modp4096", 16, MODP_4096, exponent_bits=480),
)
