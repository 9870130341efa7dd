"""Tunnels at the GMN: what peers ask for and delete, in which order nodes hear of it, what status says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from protego_cli.control.channel.desired_records import Rule, Sa, Steer
from protego_cli.control.channel.node_messages import PeerAddress, RangeLow, Report, SaUsage
from protego_cli.control.channel.operator_messages import GetStatus, ListNames, Names
from protego_cli.control.procedures.tunnels import OVERDUE
from protego_cli.control.sas.ranges import EXTENDED_SIZE
from protego_cli.control.sas.sad import SEAT_WAIT
from protego_cli.control.sas.stored import load_sa
from protego_cli.control.sas.tunnel import Meter, Placed, Totals
from protego_cli.ike.events import ExchangeFailed, IkeClosed, Path
from tests.support.gmn_cluster import VIP
from tests.support.gmn_world import TUNNEL, World, world
from tests.support.stores import MemoryStore


def sealing(w: World) -> Placed:
    placed = w.tunnel.sealing
    assert placed is not None
    return placed


# ---- a peer dials


async def test_everything_stands_before_the_peer_hears_of_its_child_sa(autojump_clock: MockClock) -> None:
    async with world(delay=(0.0001, 0.05)) as w:
        await w.up()
        answer = ("wire", "gmn", "IKE_AUTH", True)
        sa, rule = ("sa", sealing(w).spi), ("acknowledged", "gpn-1", ("rule", TUNNEL))
        w.ordered(("acknowledged", "gpn-1", sa), rule)
        for gin in ("gin-1", "gin-2"):
            w.ordered(("acknowledged", gin, ("steer", sealing(w).spi)), answer)
        for gen in ("gen-1", "gen-2"):
            w.ordered(rule, ("sent", gen, ("route", TUNNEL)))
            w.ordered(("acknowledged", gen, ("route", TUNNEL)), answer)
        w.check_clean()


async def test_tunnels_are_spread_over_the_gpns(autojump_clock: MockClock) -> None:
    async with world(tunnels=6) as w:
        await w.up()
        nodes = {node.name: node.tunnels for node in (await w.status()).nodes if node.role == "gpn"}
        assert nodes == {"gpn-1": 2, "gpn-2": 2, "gpn-3": 2}


async def test_a_peer_that_dials_before_any_gpn_is_there_is_answered_when_one_comes(
    autojump_clock: MockClock,
) -> None:
    async with world(nodes=False) as w:
        for node in ("gin-1", "gen-1"):
            await w.nodes.start(node)
        w.peer.dial()
        await trio.sleep(SEAT_WAIT * 0.8)
        await w.nodes.start("gpn-2")
        await w.until(lambda: w.peer.opens, limit=1.0)
        assert sealing(w).gpn == "gpn-2"


async def test_without_a_gpn_the_peer_is_refused_and_may_dial_anew(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(nodes=False) as w:
        await w.nodes.start("gin-1")
        w.peer.dial()
        await w.until(lambda: any(isinstance(event, IkeClosed) for event in w.peer.events))
        failed = next(event for event in w.peer.events if isinstance(event, ExchangeFailed))
        assert failed.notify == 43
        await w.until(lambda: not w.tunnel.ikes)
        status = await w.tunnel_status()
        assert (status.state, status.error) == ("down", "no GPN could take the tunnel")
        assert "request rejected tunnel=acme/hq" in caplog.text
        await w.nodes.start("gpn-1")
        await w.up()
        assert (await w.tunnel_status()).error is None


async def test_a_gpn_that_dies_while_it_is_given_a_tunnel_is_replaced(autojump_clock: MockClock) -> None:
    async with world() as w:

        def strike(entry: tuple[object, ...]) -> None:
            if entry[:2] == ("sent", "gpn-1"):
                w.nodes.kill("gpn-1")

        w.nodes.tap = strike
        await w.up()
        assert sealing(w).gpn == "gpn-2"
        assert sealing(w).numbers.lo == EXTENDED_SIZE
        assert w.on("gin-1", "steer") == {sealing(w).spi}
        assert w.nodes.all["gin-1"].held["steer", sealing(w).spi] == Steer(
            sealing(w).spi, "gpn-2", w.peer.address, 4500
        )
        w.check_clean()


async def test_a_failed_negotiation_is_in_the_status_of_its_tunnel(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as w:
        policy = next(iter(vars(w.peer.engine)["_context"].policies._by_name.values())).policy
        w.peer.engine.set_policies([replace(policy, psk=b"another secret altogether")])
        w.peer.dial()
        await w.until(lambda: w.tunnel.error)
        assert "pre-shared key" in str((await w.tunnel_status()).error)
        assert "negotiation failed tunnel=acme/hq" in caplog.text


# ---- a peer rekeys


async def test_a_rekey_of_the_peer_seals_from_its_first_packet_on(autojump_clock: MockClock) -> None:
    async with world(delay=(0.0001, 0.02)) as w:
        await w.up()
        await w.settle()
        old = sealing(w)
        w.peer.tidy = False
        w.peer.silent = True
        w.log.clear()
        w.peer.rekey()
        await w.until(lambda: len(w.peer.opens) == 2)
        new = w.peer.newest.spi_out
        answer = ("wire", "gmn", "CREATE_CHILD_SA", True)
        w.ordered(("acknowledged", "gpn-1", ("sa", new)), answer)
        for gin in ("gin-1", "gin-2"):
            w.ordered(("acknowledged", gin, ("steer", new)), answer)
        await w.settle(1)
        assert sealing(w) is old  # the peer has not shown that it has the new one
        w.packet(new)
        await w.until(lambda: sealing(w) is not old)
        assert sealing(w).spi == new
        rule = w.nodes.all["gpn-1"].held["rule", TUNNEL]
        assert isinstance(rule, Rule)
        assert rule.spi_in == new
        w.peer.delete(next(iter(w.peer.opens)))
        await w.settle(10)
        w.check_clean()


async def test_a_delete_of_the_old_sa_is_answered_when_the_new_one_seals(autojump_clock: MockClock) -> None:
    async with world(delay=(0.0001, 0.02)) as w:
        await w.up()
        await w.settle()
        old = sealing(w)
        w.peer.silent = True  # its first packet will not tell
        w.log.clear()
        w.peer.rekey()
        await w.until(lambda: len(w.peer.opens) == 1 and sealing(w) is not old)
        w.ordered(
            ("wire", "peer", "INFORMATIONAL", False),
            ("acknowledged", "gpn-1", ("rule", TUNNEL)),
            ("wire", "gmn", "INFORMATIONAL", True),
            ("peer deleted", old.spi),
        )
        await w.settle(10)
        w.check_clean()


async def test_a_rekey_while_its_gpn_is_down_moves_the_tunnel_behind_a_barrier(
    autojump_clock: MockClock,
) -> None:
    async with world(delay=(0.0001, 0.02)) as w:
        await w.up()
        await w.settle()
        w.tunnel.target = "gpn-3"  # as a migration does that waits for the peer
        w.log.clear()
        w.peer.rekey()
        await w.until(lambda: sealing(w).gpn == "gpn-3")
        w.tunnel.target = None
        await w.settle(10)
        for gen in ("gen-1", "gen-2"):
            w.ordered(("barrier", gen, "gpn-1"), ("drop", "gpn-1", ("rule", TUNNEL)))
            w.ordered(("barrier", gen, "gpn-1"), ("wire", "gmn", "INFORMATIONAL", True))
        w.check_clean()


async def test_an_sa_leaves_its_gpn_once_it_is_stored_where_it_lies(autojump_clock: MockClock) -> None:
    async with world(store=MemoryStore(delay=0.1)) as w:
        await w.up()
        w.peer.silent, w.peer.tidy = True, False
        w.peer.rekey()
        await w.until(
            lambda: w.tunnel.sas and list(w.tunnel.sas.values())[-1] is w.tunnel.strands[0].successor
        )
        await w.settle()
        placed, stored = list(w.tunnel.sas.values())[-1], list[str]()

        def drop(entry: tuple[object, ...]) -> None:
            if entry[0] == "drop" and entry[2] == ("sa", placed.spi):
                stored.append(load_sa(w.store.held[b"sa/" + placed.spi.to_bytes(4)])[0].gpn)

        w.nodes.tap, w.watching = drop, False
        w.sad.move(w.tunnel, placed, "gpn-2")
        await w.settle()
        assert stored == ["gpn-2"]


async def test_a_peer_that_neither_sends_nor_deletes_is_followed_in_the_end(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        old = sealing(w)
        w.peer.tidy, w.peer.silent = False, True
        w.peer.rekey()
        await trio.sleep(OVERDUE - 1)
        assert sealing(w) is old
        await trio.sleep(2)
        assert sealing(w) is not old


async def test_a_peer_that_rekeys_without_end_holds_a_bounded_number_of_sas(
    autojump_clock: MockClock,
) -> None:
    async with world(linger=1000.0) as w:
        await w.up()
        for _ in range(50):
            before = sealing(w)
            w.peer.rekey()
            await w.until(lambda before=before: sealing(w) is not before and w.tunnel.settled)  # type: ignore[misc]
            await w.settle(0.1)
        assert len(w.tunnel.sas) <= 34


# ---- ends


async def test_the_end_of_the_ike_sa_is_the_end_of_the_tunnel(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        w.peer.close()
        await w.until(lambda: w.tunnel.sealing is None)
        status = await w.tunnel_status()
        assert (status.state, status.gpn, status.spi_in) == ("down", None, None)
        await w.settle(0.1)
        assert w.on("gen-1", "route") == set()
        assert w.on("gpn-1", "rule") == set()
        await w.settle(10)
        assert not any(node.desired for node in w.nodes.all.values())
        assert not vars(w.sad)["_by_spi"]


async def test_a_delete_of_the_only_child_sa_is_answered(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        w.peer.delete(w.peer.newest.spi_in)
        await w.until(lambda: not w.peer.opens)
        assert w.tunnel.sealing is None
        assert (await w.tunnel_status()).state == "down"
        await w.until(lambda: not w.peer.ikes, limit=3)  # so that the peer can begin at the beginning
        await w.up()


async def test_a_new_ike_sa_replaces_the_old_one(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        (first,) = w.tunnel.ikes
        w.peer.dial()  # it knows of the first, so it says no INITIAL_CONTACT
        await w.until(lambda: first not in w.tunnel.ikes)
        await w.settle(10)
        assert len(w.tunnel.ikes) == 1
        assert len(w.peer.opens) == 1
        w.check_clean()


async def test_a_peer_that_reauthenticates_hears_of_the_end_when_another_sa_seals(
    autojump_clock: MockClock,
) -> None:
    """Make-before-break, as strongSwan has it: the new IKE_SA stands, and at once the old one is deleted."""
    async with world(delay=(0.0001, 0.02)) as w:
        await w.up()
        await w.settle()
        old, (first,) = sealing(w), w.peer.ikes
        w.peer.silent = True  # its first packet will not tell
        w.peer.dial()
        await w.until(lambda: len(w.peer.ikes) == 2)
        w.log.clear()
        w.peer.engine.close(first, trio.current_time())
        w.peer.work()
        await w.until(lambda: w.peer.ikes != {first} and len(w.peer.ikes) == 1)
        w.ordered(
            ("wire", "peer", "INFORMATIONAL", False),
            ("acknowledged", "gpn-1", ("rule", TUNNEL)),
            ("wire", "gmn", "INFORMATIONAL", True),
        )
        assert sealing(w) is not old
        await w.settle(10)
        assert len(w.tunnel.ikes) == len(w.peer.opens) == 1
        w.check_clean()


async def test_a_peer_that_lost_its_state_gets_its_tunnel_anew(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.settle()
        old = sealing(w)
        w.watching = False
        w.peer.opens.clear()
        w.peer.seals.clear()
        w.peer.ikes.clear()
        w.peer.seed += 1
        w.peer.__post_init__()  # another process of it, which says INITIAL_CONTACT
        await w.up()
        w.watching = True
        assert sealing(w) is not old
        await w.settle(10)
        assert len(w.tunnel.ikes) == 1
        w.check_clean()


# ---- moved peers


async def test_packets_from_elsewhere_move_what_goes_to_the_peer(autojump_clock: MockClock) -> None:
    """IKE as well, which the peer may not speak for long; a new life of the GMN knows it, too."""
    async with world() as w:
        await w.up()
        spi, address = sealing(w).spi, w.peer.address
        await w.nodes.observer.reported("gpn-1", PeerAddress(spi, address, 61000))
        await w.settle(0.1)
        sa = w.nodes.all["gpn-1"].held["sa", spi]
        assert isinstance(sa, Sa)
        assert (sa.peer, sa.peer_port) == (address, 61000)
        assert sa.seal_lo == 1
        for gin in ("gin-1", "gin-2"):
            assert w.nodes.all[gin].held["steer", spi] == Steer(spi, "gpn-1", address, 61000)
        w.kill_gmn()
        await w.gmn_returns()
        (ike,) = w.driver.describe(TUNNEL)
        assert ike.path == Path(VIP, 4500, address, 61000)
        await w.until(lambda: w.sad.gathered.is_set())
        await w.migrations.migrate(TUNNEL, "gpn-2")
        assert sealing(w).peer == (address, 61000)


@pytest.mark.parametrize(
    ("node", "address", "port"),
    [("gpn-2", "192.0.2.9", 61000), ("gpn-1", "nonsense", 61000), ("gpn-1", "192.0.2.9", 0)],
)
async def test_a_report_that_is_not_the_holders_or_makes_no_sense_moves_nothing(
    autojump_clock: MockClock, node: str, address: str, port: int
) -> None:
    async with world() as w:
        await w.up()
        await w.nodes.observer.reported(node, PeerAddress(sealing(w).spi, address, port))
        assert sealing(w).peer == (w.peer.address, 4500)


# ---- ranges and totals


async def test_a_range_that_runs_low_is_renewed_by_a_rekey_in_place(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        await w.nodes.observer.reported("gpn-1", RangeLow(old.spi))
        await w.nodes.observer.reported("gpn-1", RangeLow(old.spi))
        await w.until(lambda: sealing(w) is not old)
        assert sealing(w).gpn == "gpn-1"
        assert sealing(w).numbers.lo == 1
        await w.settle(10)
        w.check_clean()


async def test_totals_never_run_backwards(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()

        async def report(gpn: str, spi: int, packets: int) -> None:
            usage = SaUsage(spi, packets, packets * 100, packets * 2, packets * 200, packets, packets)
            await w.nodes.observer.reported(gpn, Report(0.1, (usage,)))

        first = sealing(w).spi
        await report("gpn-1", first, 10)
        await w.migrations.migrate(TUNNEL, "gpn-2")
        second = sealing(w).spi
        await report("gpn-2", second, 5)
        await report("gpn-2", second, 3)  # that process counts from zero again
        await report("gpn-1", first, 11)  # what still came on the old SA
        await report("gpn-3", second, 1000)  # it does not have that SA
        await w.settle(10)
        status = await w.tunnel_status()
        assert (status.packets_in, status.packets_out) == (19, 38)
        assert (status.bytes_in, status.bytes_out) == (1900, 3800)


def test_a_meter_counts_on_over_processes() -> None:
    meter = Meter()
    meter.read(SaUsage(1, 7, 70, 8, 80, 7, 9))
    meter.restart()
    meter.read(SaUsage(1, 9, 90, 9, 90, 16, 9))
    assert meter.total == Totals(16, 160, 17, 170)
    assert meter.highest_in == 16


# ---- what operators ask


async def test_status_says_what_the_contract_names(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.nodes.observer.reported("gpn-1", Report(0.25))
        w.nodes.all["gpn-1"].report = Report(0.25, counters={"gpn_opened": 4})
        await w.nodes.stop("gen-2")
        status = await w.status()
        assert status.epoch == 1
        assert [(node.name, node.role, node.state, node.tunnels) for node in status.nodes] == [
            ("gmn-1", "gmn", "up", 1),
            ("gin-1", "gin", "up", 0),
            ("gin-2", "gin", "up", 0),
            ("gen-1", "gen", "up", 0),
            ("gen-2", "gen", "down", 0),
            ("gpn-1", "gpn", "up", 1),
            ("gpn-2", "gpn", "up", 0),
            ("gpn-3", "gpn", "up", 0),
        ]
        gpn = next(node for node in status.nodes if node.name == "gpn-1")
        assert (gpn.cpu, gpn.counters) == (0.25, {"gpn_opened": 4})
        (tunnel,) = status.tunnels
        assert (tunnel.id, tunnel.state, tunnel.gpn, tunnel.suite) == (
            TUNNEL,
            "up",
            "gpn-1",
            "aes256gcm16-esn",
        )
        assert tunnel.spi_in == f"{w.peer.newest.spi_out:08x}"
        assert tunnel.spi_out == f"{w.peer.newest.spi_in:08x}"
        assert tunnel.peer == w.peer.address


async def test_names_are_those_of_the_cluster_file(autojump_clock: MockClock) -> None:
    async with world(tunnels=2) as w:
        names = await w.operations.answer(ListNames())
        assert isinstance(names, Names)
        assert names.tunnels == (TUNNEL, "tenant1/hq")
        assert names.nodes[0] == "gmn-1"
        assert set(names.nodes) == {node.name for node in w.cluster.nodes}


async def test_a_tunnel_whose_gpn_is_down_is_down(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        await w.nodes.stop("gpn-1")
        status = await w.operations.answer(GetStatus())
        assert status.tunnels[0].state == "down"  # type: ignore[attr-defined]
        assert status.tunnels[0].gpn == "gpn-1"  # type: ignore[attr-defined]


# ---- load


async def test_status_shows_rates_and_shares_from_reports(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        spi = sealing(w).spi
        for second in range(1, 6):
            usage = SaUsage(spi, 20_000 * second, 28_000_000 * second, 10_000 * second, 0, 1, 1)
            await w.nodes.observer.reported("gpn-1", Report(0.5, (usage,)))
            await trio.sleep(1)
        status = await w.status()
        tunnel = status.tunnels[0]
        assert tunnel.pps_in == pytest.approx(20_000, rel=0.15)
        assert tunnel.pps_out == pytest.approx(10_000, rel=0.15)
        assert tunnel.bps_in == pytest.approx(224e6, rel=0.15)
        nodes = {node.name: node for node in status.nodes}
        assert tunnel.cpu == pytest.approx(0.5, rel=0.15)
        assert nodes["gpn-1"].load == pytest.approx(0.5, rel=0.15)
        assert (nodes["gpn-1"].capacity, nodes["gpn-2"].load) == (1.0, 0.0)
        assert (nodes["gin-1"].load, nodes["gin-1"].capacity) == (None, None)


async def test_a_new_tunnel_goes_where_there_is_room(autojump_clock: MockClock) -> None:
    """The policy sees measured loads: a GPN without a tunnel that is busy otherwise is passed over."""
    async with world() as w:
        for _ in range(3):
            await w.nodes.observer.reported("gpn-1", Report(1.2))
            await trio.sleep(1)
        await w.up()
        assert sealing(w).gpn == "gpn-2"
