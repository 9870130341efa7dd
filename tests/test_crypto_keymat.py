"""HMAC as PRF and MAC, and prf+, against published vectors and an independent computation."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from protego_cli.crypto.algorithms import Integrity, Prf
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.crypto.keymat import prf_plus
from protego_cli.crypto.mac import hmac_sha256

PRFS = {algorithm.keyword: algorithm for algorithm in ALGORITHMS if isinstance(algorithm, Prf)}
INTEGRITY = {algorithm.keyword: algorithm for algorithm in ALGORITHMS if isinstance(algorithm, Integrity)}
HASHES = {"prfsha1": "sha1", "prfsha256": "sha256", "prfsha384": "sha384", "prfsha512": "sha512"}
TRUNCATED = {"sha1": 12, "sha256": 16, "sha384": 24, "sha512": 32}  # RFC 2404 3, RFC 4868 2.3

each_prf = pytest.mark.parametrize("prf", PRFS.values(), ids=list(PRFS))

# RFC 4231: key, data, then the MACs with SHA-256, SHA-384, SHA-512
RFC_4231 = {
    "case 1": (
        b"\x0b" * 20,
        b"Hi There",
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6",
        (
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde"
            "daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854"
        ),
    ),
    "case 2": (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        (
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
            "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
        ),
    ),
    "case 6, a key longer than a block": (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c60c2ef6ab4030fe8296248df163f44952",
        (
            "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f352"
            "6b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598"
        ),
    ),
}


# RFC 2202: key, data, the MAC with SHA-1
RFC_2202 = {
    "case 1": (b"\x0b" * 20, b"Hi There", "b617318655057264e28bc0b6fb378c8ef146be00"),
    "case 2": (b"Jefe", b"what do ya want for nothing?", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
    "case 6": (
        b"\xaa" * 80,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "aa4ae5e15272d00e95705637ce8a3b55ed402112",
    ),
}


def icv(keyword: str, key: bytes, data: bytes) -> bytes:
    mac = INTEGRITY[keyword].make(key)
    copied = mac.copy()
    mac.update(b"goes its own way")
    copied.update(data)
    return copied.finalize()[: INTEGRITY[keyword].icv_length]


@pytest.mark.parametrize("case", RFC_2202)
def test_sha1_matches_rfc_2202(case: str) -> None:
    key, data, mac = RFC_2202[case]
    assert PRFS["prfsha1"].compute(key, data).hex() == mac
    assert icv("sha1", key, data).hex() == mac[:24]


@pytest.mark.parametrize("case", RFC_4231)
def test_integrity_is_the_start_of_the_mac(case: str) -> None:
    key, data, *expected = RFC_4231[case]
    for keyword, mac in zip(("sha256", "sha384", "sha512"), expected, strict=True):
        assert icv(keyword, key, data).hex() == mac[: 2 * TRUNCATED[keyword]]


@pytest.mark.parametrize("integrity", INTEGRITY.values(), ids=list(INTEGRITY))
def test_integrity_implies_the_prf_of_its_hash(integrity: Integrity) -> None:
    """Keys are as long as the hash's output (RFC 2404 3, RFC 4868 2.1.1)."""
    assert integrity.prf == f"prf{integrity.keyword}"
    assert integrity.key_length == PRFS[integrity.prf].length == hashlib.new(integrity.keyword).digest_size


@pytest.mark.parametrize("case", RFC_4231)
def test_prfs_match_rfc_4231(case: str) -> None:
    key, data, *expected = RFC_4231[case]
    for keyword, mac in zip(list(HASHES)[1:], expected, strict=True):
        made = PRFS[keyword].compute(key, data)
        assert made.hex() == mac
        assert len(made) == PRFS[keyword].length
    assert hmac_sha256(key, data).hex() == expected[0]


@each_prf
@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 64, 200, 1000])
def test_prf_plus_is_the_recurrence_of_rfc_7296(prf: Prf, length: int) -> None:
    key, seed = b"SKEYSEED", b"Ni | Nr | SPIi | SPIr"
    digest = HASHES[prf.keyword]
    block, expected = b"", b""
    for counter in range(1, length // hashlib.new(digest).digest_size + 2):
        block = hmac.digest(key, block + seed + bytes([counter]), digest)
        expected += block
    assert prf_plus(prf, key, seed, length) == expected[:length]


@each_prf
def test_prf_plus_ends_where_its_counter_does(prf: Prf) -> None:
    most = 255 * prf.length
    assert len(prf_plus(prf, b"key", b"seed", most)) == most
    for length in (most + 1, -1):
        with pytest.raises(ValueError, match=f"at most {most} bytes"):
            prf_plus(prf, b"key", b"seed", length)
