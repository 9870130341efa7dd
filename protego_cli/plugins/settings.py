"""What a provisioner may be told in the cluster file: a type for each key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from protego_cli.config.model import Setting

Fields = Mapping[str, type]

_SPOKEN: Final = {
    bool: "true or false",
    str: "a text",
    float: "a positive number",
    tuple: 'a list of texts such as ["/usr/local/bin/pool"]',
}


def faults(settings: Mapping[str, Setting], fields: Fields, needed: Iterable[str] = ()) -> dict[str, str]:
    """What is wrong, by key."""
    found = {key: f"is missing: expected {_SPOKEN[fields[key]]}" for key in needed if key not in settings}
    for key, value in settings.items():
        kind = fields.get(key)
        if kind is None:
            close = difflib.get_close_matches(key, fields, n=1)
            known = f"known here: {', '.join(sorted(('kind', *fields)))}"
            found[key] = f"is not a known key; {f'did you mean {close[0]}?' if close else known}"
        elif not _fits(value, kind):
            found[key] = f"expected {_SPOKEN[kind]}, got {value!r:.60}"
    return found


def _fits(value: Setting, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return isinstance(value, kind) and bool(value or kind is bool)
