"""Our half of a key exchange, made again from the bytes it was drawn from."""

from __future__ import annotations

from random import Random

import pytest

from protego_cli.crypto.algorithms import KeGroup, KePrivate, RandomSource
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.crypto.shares import KeyShare
from protego_cli.errors import StateError


class Twofold:
    """A private value that is drawn in two pieces, as a plugin's may be."""

    def __init__(self, random: RandomSource) -> None:
        self.public = random(3) + b"-" + random(5)

    def shared(self, peer_public: bytes) -> bytes:
        return self.public + peer_public


def twofold(random: RandomSource) -> KePrivate:
    return Twofold(random)


def test_a_key_exchange_is_made_again_from_its_seed() -> None:
    groups = [one for one in ALGORITHMS if isinstance(one, KeGroup)]
    for group in (*groups, KeGroup("twofold", 1024, 9, twofold)):
        share = KeyShare.generate(group, Random(1).randbytes)
        other = KeyShare.generate(group, Random(2).randbytes)
        again = KeyShare.again(group, share.seed)
        assert again.public == share.public
        assert again.shared(other.public) == share.shared(other.public)
        assert share.seed.hex() not in repr(share)
        for wrong in (b"", share.seed[:-1], share.seed + b"x"):
            with pytest.raises(StateError):
                KeyShare.again(group, wrong)
