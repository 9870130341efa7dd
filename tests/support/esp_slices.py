"""Kept slices as tests want them: for every row, however short and new, or for none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from protego_cli.esp import aead, inbound, outbound, sorting
from protego_cli.esp.slices import Sliced

_cut = Sliced.cut


def _at_once(sliced: Sliced, start: int, length: int, step: int, count: int) -> Sequence[memoryview] | None:
    return _cut(sliced, start, length, step, count) or _cut(sliced, start, length, step, count)


@contextmanager
def slices(*, everywhere: bool) -> Iterator[None]:
    """Within this, either all rows go through kept slices, from a layout's first on, or none does."""
    few = 1 if everywhere else 1 << 30
    with (
        patch.object(aead, "FEW", few),
        patch.object(inbound, "FEW", few),
        patch.object(outbound, "FEW", few),
        patch.object(sorting, "ENOUGH", few),
        patch.object(Sliced, "cut", _at_once),
    ):
        yield
