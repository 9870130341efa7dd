"""How long an SA may be used: the one rule for time, bytes and packets (RFC 7296 2.8, RFC 4301 4.4.2.1).

A lifetime that is configured is the *hard* limit, at which the SA is deleted. At the *soft* limit it is
rekeyed:

    soft = hard * (0.9 - jitter * r)          r random in [0, 1), drawn once for every SA

so that with the default jitter of 0.1 a rekey begins between 80 % and 90 % of the lifetime, tunnels that came
up together are not rekeyed together, and two sides with the same lifetime seldom begin at once. After a
failed rekey the next one waits `retry_pause`, up to the hard limit.
"""

from __future__ import annotations

from typing import Final

SOFT: Final = 0.9
FIRST_RETRY: Final = 2.0
LAST_RETRY: Final = 60.0


def soft_limit(hard: float, jitter: float, fraction: float) -> float:
    """`fraction` is the random number in [0, 1)."""
    return hard * (SOFT - jitter * fraction)


def retry_pause(failures: int, fraction: float) -> float:
    """Seconds after that many failures: twice as long each time, and half of it by chance (2.25)."""
    longest: float = min(FIRST_RETRY * 2.0 ** min(failures - 1, 16), LAST_RETRY)
    return longest * (0.5 + 0.5 * fraction)
