"""The tunnels that the operator took down: stored, and read again."""

from __future__ import annotations

from trio.testing import MockClock

from protego_cli.control.operating.held import Held
from protego_cli.control.state.journal import Journal
from tests.support.stores import MemoryStore, committing


async def test_it_survives(autojump_clock: MockClock) -> None:
    store = MemoryStore({b"epoch": b"7"})
    async with committing(store) as journal:
        held = Held(journal)
        for tunnel in ("acme/hq", "acme/branch", "acme/hq"):
            held.add(tunnel)
        await journal.stored()
        held.discard("acme/branch")
        held.discard("blue/none")
        await journal.stored()
    again = Held(Journal(store, store.held))
    assert list(again) == ["acme/hq"]
    assert "acme/hq" in again
    assert "acme/branch" not in again
    assert set(store.held) == {b"epoch", b"held/acme/hq"}
