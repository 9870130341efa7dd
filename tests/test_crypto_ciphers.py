"""The AEADs against published vectors, used with the lengths their table entries declare."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.modes import CBC

from protego_cli.crypto.algorithms import CbcEncryption, Encryption, Registry
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


# NIST SP 800-38A F.2.1 and F.2.5: two blocks of CBC
CBC_IV = "000102030405060708090a0b0c0d0e0f"
CBC_PLAIN = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
CBC_VECTORS = {
    "aes128": (
        "2b7e151628aed2a6abf7158809cf4f3c",
        "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2",
    ),
    "aes256": (
        "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
        "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d",
    ),
}


@pytest.mark.parametrize("keyword", CBC_VECTORS)
def test_cbc_matches_sp_800_38a(keyword: str) -> None:
    key, sealed = map(bytes.fromhex, CBC_VECTORS[keyword])
    cipher = REGISTRY.cipher(keyword)
    assert isinstance(cipher, CbcEncryption)
    assert (cipher.key_length, cipher.block_length) == (len(key), 16)
    encryptor = Cipher(cipher.make(key), CBC(bytes.fromhex(CBC_IV))).encryptor()
    assert encryptor.update(bytes.fromhex(CBC_PLAIN)) == sealed


@pytest.mark.parametrize(
    ("transform", "keyword"),
    [
        # RFC 7296 3.3.2 and the IANA registry "IKEv2 Parameters"
        ((1, 20, 128), "aes128gcm16"),
        ((1, 20, 256), "aes256gcm16"),
        ((1, 28, None), "chacha20poly1305"),
        ((1, 12, 128), "aes128"),
        ((1, 12, 256), "aes256"),
        ((3, 2, None), "sha1"),
        ((3, 12, None), "sha256"),
        ((3, 13, None), "sha384"),
        ((3, 14, None), "sha512"),
        ((2, 2, None), "prfsha1"),
        ((2, 5, None), "prfsha256"),
        ((2, 6, None), "prfsha384"),
        ((2, 7, None), "prfsha512"),
        ((4, 14, None), "modp2048"),
        ((4, 15, None), "modp3072"),
        ((4, 16, None), "modp4096"),
        ((4, 19, None), "ecp256"),
        ((4, 20, None), "ecp384"),
        ((4, 21, None), "ecp521"),
        ((4, 31, None), "x25519"),
    ],
)
def test_transform_numbers_are_those_of_iana(transform: tuple[int, int, int | None], keyword: str) -> None:
    algorithm = REGISTRY.find(*transform)
    assert algorithm is not None
    assert algorithm.keyword == keyword
    assert algorithm is REGISTRY.get(keyword)


def test_every_built_in_is_in_the_table_of_transform_numbers() -> None:
    assert len(REGISTRY.keywords()) == len(ALGORITHMS) == 20
