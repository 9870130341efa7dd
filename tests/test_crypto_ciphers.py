"""The AEADs against published vectors, used with the lengths their table entries declare."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag

from protego_cli.crypto.algorithms import Encryption, Registry
from protego_cli.crypto.builtin import ALGORITHMS

REGISTRY = Registry(("built-in", algorithm) for algorithm in ALGORITHMS)
CIPHERS = [algorithm for algorithm in ALGORITHMS if isinstance(algorithm, Encryption)]

# McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 4 and 16.
GCM_KEY = "feffe9928665731c6d6a8f9467308308"
GCM_NONCE = "cafebabefacedbaddecaf888"
GCM_AAD = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
GCM_PLAIN = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
)
GCM_128 = (
    "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
    "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091"
    "5bc94fbc3221a5db94fae95ae7121a47"
)
GCM_256 = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
    "76fc6ece0f4e1768cddf8853bb2d551b"
)
# RFC 7634 appendix A: an ESP packet.
CHACHA_KEYMAT = bytes(range(0x80, 0xA4))
CHACHA_PLAIN = (
    "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f1011121314151617"
    "18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363701020204"
)
CHACHA_SEALED = (
    "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f72aa71e7c"
    "4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43"
)


@pytest.mark.parametrize(
    ("keyword", "key", "sealed"),
    [("aes128gcm16", GCM_KEY, GCM_128), ("aes256gcm16", GCM_KEY * 2, GCM_256)],
)
def test_gcm_matches_the_published_vectors(keyword: str, key: str, sealed: str) -> None:
    cipher = REGISTRY.encryption(keyword)
    nonce = bytes.fromhex(GCM_NONCE)
    assert len(nonce) == cipher.salt_length + cipher.iv_length
    assert len(bytes.fromhex(key)) == cipher.key_length
    made = cipher.make(bytes.fromhex(key)).encrypt(nonce, bytes.fromhex(GCM_PLAIN), bytes.fromhex(GCM_AAD))
    assert made.hex() == sealed
    assert len(made) == len(bytes.fromhex(GCM_PLAIN)) + cipher.icv_length


def test_chacha20poly1305_seals_the_esp_packet_of_rfc_7634() -> None:
    cipher = REGISTRY.encryption("chacha20poly1305")
    key, salt = CHACHA_KEYMAT[: cipher.key_length], CHACHA_KEYMAT[cipher.key_length :]
    assert len(salt) == cipher.salt_length
    iv, header = bytes.fromhex("1011121314151617"), bytes.fromhex("0102030400000005")
    assert len(iv) == cipher.iv_length
    sealed = cipher.make(key).encrypt(salt + iv, bytes.fromhex(CHACHA_PLAIN), header)
    assert sealed.hex() == CHACHA_SEALED


@pytest.mark.parametrize("cipher", CIPHERS, ids=lambda cipher: cipher.keyword)
def test_what_was_sealed_opens_and_a_flipped_bit_does_not(cipher: Encryption) -> None:
    aead = cipher.make(bytes(cipher.key_length))
    nonce = bytes(cipher.salt_length + cipher.iv_length)
    sealed = aead.encrypt(nonce, b"payload", b"header")
    assert aead.decrypt(nonce, sealed, b"header") == b"payload"
    for position in (0, len(sealed) - 1):
        forged = bytearray(sealed)
        forged[position] ^= 1
        with pytest.raises(InvalidTag):
            aead.decrypt(nonce, bytes(forged), b"header")
    with pytest.raises(InvalidTag):
        aead.decrypt(nonce, sealed, b"Header")


@pytest.mark.parametrize(
    ("transform", "keyword"),
    [
        # RFC 7296 3.3.2 and the IANA registry "IKEv2 Parameters"
        ((1, 20, 128), "aes128gcm16"),
        ((1, 20, 256), "aes256gcm16"),
        ((1, 28, None), "chacha20poly1305"),
        ((2, 5, None), "prfsha256"),
        ((2, 6, None), "prfsha384"),
        ((2, 7, None), "prfsha512"),
        ((4, 14, None), "modp2048"),
        ((4, 15, None), "modp3072"),
        ((4, 16, None), "modp4096"),
        ((4, 19, None), "ecp256"),
        ((4, 20, None), "ecp384"),
        ((4, 31, None), "x25519"),
    ],
)
def test_transform_numbers_are_those_of_iana(transform: tuple[int, int, int | None], keyword: str) -> None:
    algorithm = REGISTRY.find(*transform)
    assert algorithm is not None
    assert algorithm.keyword == keyword
    assert algorithm is REGISTRY.get(keyword)


def test_every_built_in_is_in_the_table_of_transform_numbers() -> None:
    assert len(REGISTRY.keywords()) == len(ALGORITHMS) == 12
