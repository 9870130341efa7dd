"""The registry of algorithms: lookups, and two plugins that claim the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protego_cli.crypto.algorithms import Encryption, Registry
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.errors import PluginError

REGISTRY = Registry(("built-in", algorithm) for algorithm in ALGORITHMS)
GCM = REGISTRY.encryption("aes256gcm16")


def test_lookups_by_keyword_and_by_transform() -> None:
    assert REGISTRY.get("aes256gcm16") is GCM
    assert REGISTRY.find(1, 20, 256) is GCM
    assert REGISTRY.get("nothing") is None
    assert REGISTRY.find(1, 20, 192) is None
    assert REGISTRY.find(1, 20, None) is None
    assert REGISTRY.keywords() == sorted(algorithm.keyword for algorithm in ALGORITHMS)


@pytest.mark.parametrize("keyword", ["nothing", "prfsha256", "x25519", "sha256"])
def test_only_a_cipher_is_a_cipher(keyword: str) -> None:
    with pytest.raises(KeyError, match=keyword):
        REGISTRY.cipher(keyword)


def test_each_kind_is_found_as_what_it_is() -> None:
    assert REGISTRY.cipher("aes256gcm16") is GCM
    assert REGISTRY.cipher("aes256") is REGISTRY.get("aes256")
    assert REGISTRY.integrity("sha1") is REGISTRY.find(3, 2, None)
    for lookup, keyword in ((REGISTRY.encryption, "aes256"), (REGISTRY.integrity, "prfsha1")):
        with pytest.raises(KeyError, match=keyword):
            lookup(keyword)


def test_a_keyword_claimed_twice_names_both_plugins() -> None:
    other = replace(GCM, transform_id=1025)
    with pytest.raises(PluginError, match=r"'first' and 'second' both provide the algorithm 'aes256gcm16'"):
        Registry([("first", GCM), ("second", other)])


def test_a_transform_claimed_twice_names_both_plugins() -> None:
    other: Encryption = replace(GCM, keyword="mygcm")
    with pytest.raises(PluginError, match=r"'aes256gcm16' of plugin 'first' and 'mygcm' of 'second'"):
        Registry([("first", GCM), ("second", other)])
