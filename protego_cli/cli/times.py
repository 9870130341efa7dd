"""Times as people type them (6s, 3m, 1h, 500ms), and as they read them."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Final

from protego_cli.errors import UsageError

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str, option: str, low: float = 0.0, high: float = math.inf) -> float:
    """A duration that was typed, from `low` to `high` seconds. Raises UsageError, which names the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise UsageError(f"{option}: expected a duration such as 6s, 3m or 1h, got {text!r:.40}")
    length = float(found[1]) * _UNITS[found[2]]
    if not low <= length <= high:
        raise UsageError(f"{option}: expected from {low:g} to {high:g} seconds, got {text!r:.40}")
    return length


def durations(text: str, option: str) -> list[float]:
    """Several, separated by commas, each once."""
    return list(dict.fromkeys(seconds(part, option) for part in text.split(",")))


def spoken(length: float) -> str:
    """A duration, of so many seconds, in its two largest units: `2 h 5 min`."""
    left = max(0, round(length))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def moment(at: float, now: float) -> str:
    """Local time of what happened at `at`, with the day unless it is today's; both since 1970."""
    then, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now)
    return then.strftime("%H:%M:%S" if then.date() == today.date() else "%Y-%m-%d %H:%M:%S")
