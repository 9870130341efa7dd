"""Proposals in the cluster file: what parses, and how clearly the rest is refused."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protego_cli.config.model import TunnelConfig
from protego_cli.crypto.algorithms import CbcEncryption, Cipher, Encryption, Integrity, KeGroup, Prf, Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.crypto.proposal import EspProposal, IkeProposal, parse_esp, parse_ike

REGISTRY = Registry(("built-in", algorithm) for algorithm in ALGORITHMS)
AEADS = [algorithm for algorithm in ALGORITHMS if isinstance(algorithm, Encryption)]
CBCS = [algorithm for algorithm in ALGORITHMS if isinstance(algorithm, CbcEncryption)]
INTEGRITY = [algorithm for algorithm in ALGORITHMS if isinstance(algorithm, Integrity)]
CIPHERS: list[tuple[Cipher, Integrity | None]]
CIPHERS = [*((aead, None) for aead in AEADS), *itertools.product(CBCS, INTEGRITY)]
PRFS = [algorithm for algorithm in ALGORITHMS if isinstance(algorithm, Prf)]
WORDS = st.sampled_from([*REGISTRY.keywords(), "esn", "noesn", "", "sha"]) | st.text(max_size=8)
GROUPS = [algorithm for algorithm in ALGORITHMS if isinstance(algorithm, KeGroup)]


@pytest.mark.parametrize(
    "proposal",
    [IkeProposal(c, p, g, i) for (c, i), p, g in itertools.product(CIPHERS, PRFS, GROUPS)],
    ids=str,
)
def test_every_ike_proposal_survives_its_text(proposal: IkeProposal) -> None:
    assert parse_ike(str(proposal), REGISTRY) == proposal


@pytest.mark.parametrize(
    "proposal",
    [EspProposal(c, g, i) for (c, i), g in itertools.product(CIPHERS[:3], [*GROUPS, None])],
    ids=str,
)
def test_every_esp_proposal_survives_its_text(proposal: EspProposal) -> None:
    assert parse_esp(str(proposal), REGISTRY) == proposal


def test_the_prf_is_that_of_the_integrity_hash_unless_named() -> None:
    assert str(parse_ike("aes256-sha256-modp2048", REGISTRY)) == "aes256-sha256-prfsha256-modp2048"
    assert str(parse_ike("aes128-sha1-ecp521", REGISTRY)) == "aes128-sha1-prfsha1-ecp521"
    named = parse_ike("aes256-sha256-prfsha384-ecp384", REGISTRY)
    assert str(named) == "aes256-sha256-prfsha384-ecp384"


def test_sha1_is_in_no_default() -> None:
    defaults = {field.name: field.default for field in msgspec.structs.fields(TunnelConfig)}
    suites = [parse_ike(text, REGISTRY) for text in defaults["ike"]]
    assert suites
    for text in [*defaults["ike"], *defaults["esp"]]:
        assert "sha1" not in text
    assert all(suite.prf.keyword != "prfsha1" for suite in suites)


def test_the_order_of_keywords_is_free_and_the_text_canonical() -> None:
    assert str(parse_ike("x25519-aes256gcm16-prfsha256", REGISTRY)) == "aes256gcm16-prfsha256-x25519"
    assert str(parse_esp("ecp256-aes128gcm16", REGISTRY)) == "aes128gcm16-ecp256"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aes256gmc16-prfsha256-x25519", ["unknown algorithm 'aes256gmc16'", "did you mean 'aes256gcm16'?"]),
        ("AES256GCM16-prfsha256-x25519", ["unknown algorithm 'AES256GCM16'", "did you mean 'aes256gcm16'?"]),
        (
            "aes256gcm16-sha256-x25519",
            ["integrity algorithm 'sha256'", "'aes256gcm16' is an AEAD", "for the PRF, write 'prfsha256'"],
        ),
        ("aes256gcm16-sha256-prfsha256-x25519", ["'aes256gcm16' is an AEAD", "needs none: remove it"]),
        ("aes256-prfsha256-x25519", ["names no integrity algorithm", "'aes256' needs", "known are sha1, "]),
        ("aes256-sha256-sha1-modp2048", ["two of a kind", "integrity algorithm"]),
        ("aes256-sha265-modp2048", ["unknown algorithm 'sha265'", "did you mean 'sha256'?"]),
        ("aes256-sha256-modp2048-noesn", ["sequence numbers", "only an ESP proposal"]),
        ("rot13-prfsha256-x25519", ["unknown algorithm 'rot13'", "known are aes128, aes128gcm16, aes256, "]),
        ("prfsha256-x25519", ["names no cipher", "known are aes128, aes128gcm16, aes256, aes256gcm16, "]),
        ("aes256gcm16-x25519", ["IKE proposal", "names no PRF", "known are prfsha1, prfsha256, prfsha384, "]),
        ("aes256gcm16-prfsha256", ["names no key exchange group", "x25519"]),
        ("aes256gcm16-prfsha256-x25519-ecp256", ["two of a kind", "'x25519' and 'ecp256'", "group"]),
        ("aes256gcm16-aes256gcm16-prfsha256-x25519", ["two of a kind", "cipher"]),
        ("aes256gcm16--prfsha256-x25519", ["empty keyword"]),
        ("aes256gcm16-prfsha256-x25519-", ["empty keyword"]),
        ("", ["empty keyword"]),
        (
            " aes256gcm16-prfsha256-x25519",
            ["unknown algorithm ' aes256gcm16'", "did you mean 'aes256gcm16'?"],
        ),
    ],
)
def test_a_wrong_ike_proposal_is_told_what_is_wrong(text: str, says: list[str]) -> None:
    with pytest.raises(ValueError) as refused:
        parse_ike(text, REGISTRY)
    for part in [repr(text), *says]:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aes256gcm16-prfsha256", ["names the PRF 'prfsha256'", "only an IKE proposal"]),
        ("x25519", ["ESP proposal", "names no cipher"]),
        ("aes256gcm16-aes128gcm16", ["two of a kind", "'aes256gcm16' and 'aes128gcm16'", "cipher"]),
        ("aes256gcm-x25519", ["did you mean 'aes256gcm16'?"]),
    ],
)
def test_a_wrong_esp_proposal_is_told_what_is_wrong(text: str, says: list[str]) -> None:
    with pytest.raises(ValueError) as refused:
        parse_esp(text, REGISTRY)
    for part in [repr(text), *says]:
        assert part in str(refused.value)


def test_an_empty_registry_is_said_to_be_empty() -> None:
    with pytest.raises(ValueError, match="no plugin provides any"):
        parse_esp("aes256gcm16", Registry([]))


@given(st.lists(WORDS, max_size=6).map("-".join))
def test_any_text_parses_or_is_a_value_error(text: str) -> None:
    for parse in (parse_ike, parse_esp):
        try:
            proposal = parse(text, REGISTRY)
        except ValueError:
            continue
        assert set(text.split("-")) <= {*str(proposal).split("-"), "esn", "noesn"}
        assert parse(str(proposal), REGISTRY) == proposal
