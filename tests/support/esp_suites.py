"""Every ESP suite that the built-in algorithms make, AEADs first."""

from __future__ import annotations

import itertools

from protego_cli.crypto.algorithms import CbcEncryption, Encryption, EspSuite, Integrity
from protego_cli.crypto.builtin import ALGORITHMS

_CIPHERS: list[tuple[Encryption | CbcEncryption, Integrity | None]] = [
    *((a, None) for a in ALGORITHMS if isinstance(a, Encryption)),
    *itertools.product(
        [a for a in ALGORITHMS if isinstance(a, CbcEncryption)],
        [a for a in ALGORITHMS if isinstance(a, Integrity)],
    ),
]
SUITES = [EspSuite(*cipher, esn) for esn in (False, True) for cipher in _CIPHERS]


def key(suite: EspSuite, seed: int) -> bytes:
    """Keying material, every byte different from its neighbours."""
    return bytes((seed + place) & 255 for place in range(suite.keymat_length))
