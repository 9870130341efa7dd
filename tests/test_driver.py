"""The driver: envelopes in and out, time, and commands that wait for their outcome."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protego_cli.control.procedures.driver import ExchangeError
from protego_cli.crypto.mac import hmac_sha256
from protego_cli.errors import NoAdditionalSas
from protego_cli.ike.events import Path
from protego_cli.wire.envelope import Envelope, seal_envelope
from tests.support.gmn_socket import KEY
from tests.support.gmn_world import TUNNEL, VIP, World, world

PEER = "198.51.100.7"


def sealed(data: bytes = b"x" * 40, key: bytes = KEY) -> bytes:
    return seal_envelope(key, Envelope(VIP, 4500, PEER, 4500, data), hmac_sha256)


async def rekey_child(w: World, spi_in: int, new_spi: int) -> None:
    request = w.driver.prepare_rekey(spi_in, new_spi)
    request.let_go()
    await request.outcome()


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (sealed(key=b"other" * 6), ("10.0.1.0", 4501)),
        (sealed()[:-1], ("10.0.1.0", 4501)),
        (b"", ("10.0.1.0", 4501)),
        (bytes(100), ("10.0.1.0", 4501)),
        (sealed(), ("10.0.1.0", 4502)),
        (sealed(), ("192.0.2.1", 4501)),
    ],
    ids=["forged", "cut", "empty", "zeros", "wrong port", "stranger"],
)
async def test_what_is_no_envelope_of_a_gin_is_dropped_and_counted(
    autojump_clock: MockClock, data: bytes, source: tuple[str, int]
) -> None:
    async with world() as w:
        w.socket.put(data, source)
        await trio.testing.wait_all_tasks_blocked()
        assert w.counters.nonzero() == {"gmn_drop_envelope": 1}


async def test_an_envelope_reaches_the_engine(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.socket.put(sealed(), ("10.0.1.0", 4501))
        await trio.testing.wait_all_tasks_blocked()
        assert w.counters["gmn_ike_in"] == 1
        assert sum(count for name, count in w.counters.items() if name.startswith("ike_drop")) == 1


async def test_a_request_that_is_prepared_is_stored_and_waits(autojump_clock: MockClock) -> None:
    """Let go it leaves in that step; withdrawn it leaves no trace."""
    async with world() as w:
        await w.up()
        await w.settle()
        w.log.clear()
        ike = next(iter(w.tunnel.ikes))
        for _ in range(2):
            before = len(w.store.commits)
            withdrawn = w.driver.prepare_alive(ike)
            await w.settle(1)
            assert len(w.store.commits) > before
            withdrawn.withdraw()
        request = w.driver.prepare_alive(ike)
        await w.settle()
        assert w.log == []
        request.let_go()
        assert w.log == [("wire", "gmn", "INFORMATIONAL", False)]
        await request.outcome()
        assert not w.driver._commands


async def test_an_answer_leaves_through_the_gin_that_its_peer_came_by(autojump_clock: MockClock) -> None:
    async with world() as w:
        dests = []
        send = w.socket.send
        w.socket.send = lambda data, size, dest: dests.append(dest) or send(data, size, dest)  # type: ignore[assignment, func-returns-value]
        w.nodes.kill("gin-1")
        w.peer.dial()
        await w.until(lambda: w.peer.opens)
        await w.nodes.start("gin-1")
        await w.driver.check_alive(next(iter(w.tunnel.ikes)))
        assert set(dests) == {("10.0.1.1", 4501)}
        dests.clear()
        w.nodes.kill("gin-2")
        await w.driver.check_alive(next(iter(w.tunnel.ikes)))
        assert set(dests) == {("10.0.1.0", 4501)}


async def test_a_gin_that_is_about_to_connect_is_answered(autojump_clock: MockClock) -> None:
    async with world(nodes=False) as w:
        w.socket.put(w.first_message(), ("10.0.1.0", 4501))
        await w.until(lambda: w.counters["gmn_ike_out"] == 1, 1.0)


async def test_without_a_gin_what_is_sent_is_counted_and_sent_again(autojump_clock: MockClock) -> None:
    async with world(nodes=False) as w, trio.open_nursery() as nursery:
        w.watching = False
        nursery.start_soon(w.driver.initiate, TUNNEL, w.driver.path_to(VIP, PEER), 0x12345678)
        await w.until(lambda: w.counters["gmn_drop_no_gin"] == 1)
        await w.nodes.start("gin-1")
        await w.until(lambda: w.peer.opens)
        assert w.counters["ike_retransmitted"] == 1


async def test_what_the_kernel_refuses_to_send_is_counted(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.socket.refuses = True
        w.peer.dial()
        await w.until(lambda: w.counters["gmn_drop_send"])


async def test_the_memory_of_paths_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protego_cli.control.procedures.driver.PATHS", 8)
    async with world() as w:
        for port in range(1000, 1100):
            envelope = Envelope(VIP, 4500, PEER, port, b"x" * 40)
            w.socket.put(seal_envelope(KEY, envelope, hmac_sha256), ("10.0.1.0", 4501))
        await trio.testing.wait_all_tasks_blocked()
        assert len(vars(w.driver)["_came_by"]) == 8


async def test_a_command_that_fails_says_why(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        w.peer.refuse = lambda: NoAdditionalSas("none")
        with pytest.raises(ExchangeError) as caught:
            await rekey_child(w, w.peer.newest.spi_out, 0x12345678)
        assert caught.value.notify == 35
        with pytest.raises(ExchangeError, match="no CHILD_SA") as caught:
            await rekey_child(w, 1, 2)
        assert caught.value.notify is None


async def test_a_handshake_without_child_sa_names_its_ike_sa(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.refuse = lambda: NoAdditionalSas("none")
        with pytest.raises(ExchangeError) as caught:
            await w.driver.initiate(TUNNEL, w.driver.path_to(VIP, PEER), 0x12345678)
        assert caught.value.ike in w.tunnel.ikes
        await w.driver.close(caught.value.ike or 0)
        assert not w.tunnel.ikes


async def test_a_rekey_of_the_ike_sa_changes_nothing_for_the_driver(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        (ike,) = w.tunnel.ikes
        rekeyed = await w.driver.rekey_ike(ike)
        assert (rekeyed.ike, rekeyed.initiator) == (ike, True)
        w.peer.engine.rekey_ike(next(iter(w.peer.ikes)), trio.current_time())
        w.peer.work()
        await w.settle(1)
        await w.driver.check_alive(ike)
        assert w.tunnel.ikes == {ike}
        with pytest.raises(ExchangeError, match="no such IKE_SA"):
            await w.driver.rekey_ike(ike + 999)


async def test_closing_what_does_not_exist_returns_at_once(autojump_clock: MockClock) -> None:
    async with world() as w:
        with trio.fail_after(0.001):
            await w.driver.close(12345)


async def test_a_command_that_is_cancelled_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        with trio.move_on_after(0.0001) as scope:
            await w.driver.check_alive(next(iter(w.tunnel.ikes)))
        assert scope.cancelled_caught
        assert not vars(w.driver)["_commands"]
        await w.settle()
        await w.driver.check_alive(next(iter(w.tunnel.ikes)))


async def test_the_way_to_a_peer_follows_the_ports_of_the_gins(autojump_clock: MockClock) -> None:
    async with world() as w:
        assert w.driver.path_to(VIP, PEER) == Path(VIP, 500, PEER, 500)
        w.nodes.kill("gin-1")
        w.nodes.kill("gin-2")
        assert w.driver.path_to(VIP, PEER) == Path(VIP, 4500, PEER, 4500)
