"""Our half of a key exchange, kept so that it can be made again: by the random bytes it was generated from.

A gateway that restarts while a request of ours is on its way needs the private value again to understand the
answer. No group has to know: `generate` takes all its randomness from the source it is given, so the same
bytes make the same private value.
"""

from __future__ import annotations

from protego_cli.crypto.algorithms import KeGroup, KePrivate, RandomSource
from protego_cli.errors import StateError


class KeyShare:
    """`seed` is as secret as the private value."""

    __slots__ = ("_private", "group", "seed")

    def __init__(self, group: KeGroup, private: KePrivate, seed: bytes) -> None:
        self.group = group
        self.seed = seed
        self._private = private

    @classmethod
    def generate(cls, group: KeGroup, random: RandomSource) -> KeyShare:
        drawn: list[bytes] = []

        def recorded(length: int) -> bytes:
            drawn.append(random(length))
            return drawn[-1]

        private = group.generate(recorded)
        return cls(group, private, b"".join(drawn))

    @classmethod
    def again(cls, group: KeGroup, seed: bytes) -> KeyShare:
        """Raises StateError for a seed that is not one of this group."""
        left = memoryview(seed)

        def replayed(length: int) -> bytes:
            nonlocal left
            if length > len(left):
                raise StateError(f"the seed of a key exchange in the group {group.keyword} is too short")
            piece, left = left[:length], left[length:]
            return bytes(piece)

        private = group.generate(replayed)
        if left:
            raise StateError(f"the seed of a key exchange in the group {group.keyword} is too long")
        return cls(group, private, seed)

    @property
    def public(self) -> bytes:
        """What goes into our KE payload."""
        return self._private.public

    def shared(self, peer_public: bytes) -> bytes:
        """The shared secret. Raises InvalidSyntax for a public value that is not acceptable."""
        return self._private.shared(peer_public)
