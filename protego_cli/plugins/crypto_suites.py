"""Built-in algorithms: AES-GCM and -CBC, ChaCha20-Poly1305, HMAC with SHA-1 and SHA-2, and groups."""

from __future__ import annotations

from collections.abc import Sequence

from protego_cli.crypto.algorithms import Algorithm
from protego_cli.crypto.builtin import ALGORITHMS
from protego_cli.hookspecs import hookimpl


@hookimpl
def protego_crypto_suites() -> Sequence[Algorithm]:
    return ALGORITHMS
