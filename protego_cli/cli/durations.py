"""Durations as people type them: 6s, 3m, 1h, 500ms."""

from __future__ import annotations

import re
from typing import Final

from protego_cli.errors import UsageError

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str, option: str) -> float:
    """Raises UsageError, which names the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise UsageError(f"{option}: expected a duration such as 6s, 3m or 1h, got {text!r:.40}")
    return float(found[1]) * _UNITS[found[2]]


def durations(text: str, option: str) -> list[float]:
    """Several, separated by commas, each once."""
    return list(dict.fromkeys(seconds(part, option) for part in text.split(",")))
