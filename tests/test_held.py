"""The tunnels that the operator took down: stored before it counts, and read again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from protego_cli.control.held import Held
from protego_cli.control.store import Change
from protego_cli.errors import EnvironmentFault


class State:
    """A store in memory."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {b"epoch": b"7"}
        self.full = False

    def commit(self, changes: Sequence[Change]) -> None:
        if self.full:
            raise EnvironmentFault("the disk is full")
        for key, value in changes:
            if value is None:
                del self.values[key]
            else:
                self.values[key] = value


def test_it_survives() -> None:
    state = State()
    held = Held(state.values, state.commit)
    for tunnel in ("acme/hq", "acme/branch", "acme/hq"):
        held.add(tunnel)
    held.discard("acme/branch")
    held.discard("blue/none")
    again = Held(state.values, state.commit)
    assert list(again) == ["acme/hq"]
    assert "acme/hq" in again
    assert "acme/branch" not in again
    assert state.values == {b"epoch": b"7", b"held:acme/hq": b""}


def test_what_cannot_be_stored_does_not_count() -> None:
    state = State()
    held = Held(state.values, state.commit)
    held.add("acme/hq")
    state.full = True
    with pytest.raises(EnvironmentFault):
        held.add("acme/branch")
    with pytest.raises(EnvironmentFault):
        held.discard("acme/hq")
    assert list(held) == ["acme/hq"]
