"""The cluster file read again under running tunnels: what changes, what does not, and in which order."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from protego_cli.control.channel.desired_records import Route, Sa
from protego_cli.control.channel.operator_messages import GetEvents
from protego_cli.errors import ConfigError, EnvironmentFault, Problem, ProtegoError, Refused
from protego_cli.ike.events import IkeRekeyed
from tests.support.gmn_cluster import make_tenant
from tests.support.gmn_reload import (
    OTHER,
    applied,
    edited,
    footprint,
    nothing_sent,
    reload,
    sealing,
    told,
    with_tenants,
    without_node,
    without_tunnel,
)
from tests.support.gmn_world import TUNNEL, world

# ---- nothing


async def test_the_same_file_changes_nothing(autojump_clock: MockClock) -> None:
    async with world(tunnels=3) as w:
        await w.up()
        w.log.clear()
        found = await reload(w)
        assert (found.applied, found.changes, found.problems) == (True, (), ())
        await w.settle(5)
        assert not [entry for entry in w.log if entry[0] in ("sent", "wire")]
        w.check_clean()


async def test_a_faulty_file_changes_nothing_and_says_all(autojump_clock: MockClock) -> None:
    async with world(tunnels=2) as w:
        await w.up()
        without_tunnel(w, OTHER)
        problems = [Problem("cluster.name", "is missing"), Problem("tenants.acme.vni", "is wrong")]
        w.fault = ConfigError("cluster.toml", problems)
        w.log.clear()
        found = await reload(w)
        assert found.problems == (
            "cluster.toml: cluster.name: is missing",
            "cluster.toml: tenants.acme.vni: is wrong",
        )
        assert (found.applied, found.changes) == (False, ())
        w.fault = EnvironmentFault("psk does not exist")
        assert (await reload(w)).problems == ("psk does not exist",)
        w.fault = None
        edited(w, remote_id="fqdn:")
        edited(w, remote_id="CN=hq")
        (problem,) = (await reload(w)).problems
        assert "acme/hq" in problem
        assert "distinguished name" in problem
        assert nothing_sent(w)
        assert OTHER in w.sad.tunnels


async def test_a_dry_run_only_tells(autojump_clock: MockClock) -> None:
    async with world(tunnels=2) as w:
        await w.up()
        without_tunnel(w, OTHER)
        edited(w, esp=("aes128gcm16",))
        w.log.clear()
        found = await reload(w, dry_run=True)
        assert not found.applied
        assert [told(change) for change in found.changes] == [
            "tenant tenant1 removed now: planned",
            "tunnel acme/hq changed rekey: planned",
            "tunnel tenant1/hq removed now: planned",
        ]
        assert nothing_sent(w)
        assert OTHER in w.sad.tunnels


async def test_one_reload_at_a_time(autojump_clock: MockClock) -> None:
    async with world(tunnels=2) as w:
        await w.up()
        without_tunnel(w, OTHER)
        w.interrupted.add(OTHER)
        refused: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(applied, w)
            await trio.testing.wait_all_tasks_blocked()
            try:
                await reload(w)
            except Refused as error:
                refused.append(str(error))
            w.reloads.hang_up()
            w.reloads.hang_up()  # waits already
        assert refused == ["a reload is under way; ask again when it is done"]
        await w.settle()
        events = w.sad.events.read(GetEvents()).events
        reloads = [event for event in events if event.kind == "reloaded"]
        assert [event.details["changes"] for event in reloads] == [2, 0]


# ---- tunnels


@pytest.mark.parametrize("seed", range(3))
async def test_a_new_tunnel_comes_up_beside_others(autojump_clock: MockClock, seed: int) -> None:
    async with world(seed, tunnels=2) as w:
        w.tasks.start_soon(w.keeper.run)
        await w.up()
        before = footprint(w, TUNNEL), footprint(w, OTHER)
        waiting, dialled = make_tenant(2), make_tenant(3, "auto")
        with_tenants(w, waiting, dialled)
        peers = [w.add_peer(tenant.tunnels[0]) for tenant in (waiting, dialled)]
        assert await applied(w) == [
            "tenant tenant2 added now: done",
            "tenant tenant3 added now: done",
            "tunnel tenant2/hq added now: done",
            "tunnel tenant3/hq added now: done",
        ]
        assert list(w.sad.tunnels) == [tunnel.id for tunnel in w.file.tunnels()]
        peers[0].dial()
        await w.until(w.is_up)
        await w.settle()
        assert before == (footprint(w, TUNNEL), footprint(w, OTHER))
        w.check_clean()


@pytest.mark.parametrize("seed", range(3))
async def test_a_removed_tunnel_is_closed_and_leaves_the_nodes(autojump_clock: MockClock, seed: int) -> None:
    async with world(seed, tunnels=3) as w:
        await w.up()
        before = footprint(w, TUNNEL), footprint(w, "tenant2/hq")
        spi, peer = sealing(w, OTHER).spi, w.peers[w.sad.tunnels[OTHER].config.peer or ""]
        without_tunnel(w, OTHER)
        w.interrupted.add(OTHER)
        assert await applied(w) == [
            "tenant tenant1 removed now: done",
            "tunnel tenant1/hq removed now: done",
        ]
        for node in w.nodes.all.values():  # already when the answer comes
            assert not node.held.keys() & {("sa", spi), ("steer", spi), ("rule", OTHER), ("route", OTHER)}
        await w.until(lambda: not peer.ikes)
        peer.dial()
        await w.settle(10)
        assert not peer.ikes
        assert OTHER not in w.sad.tunnels
        assert w.spis.allocate() != spi
        assert before == (footprint(w, TUNNEL), footprint(w, "tenant2/hq"))
        w.check_clean()


async def test_what_leaves_is_gone_before_anything_comes(autojump_clock: MockClock) -> None:
    """Its VNI may be another tenant's then."""
    async with world(tunnels=2, delay=(0.001, 0.05)) as w:
        await w.up()
        old, gpn = sealing(w), sealing(w).gpn
        vnis = {TUNNEL: w.sad.tunnels[OTHER].vni, OTHER: w.sad.tunnels[TUNNEL].vni}
        for name, vni in vnis.items():
            edited(w, name, vni)
        w.interrupted |= {TUNNEL, OTHER}
        w.log.clear()
        assert await applied(w) == [
            "tenant acme changed now: done",
            "tenant tenant1 changed now: done",
            "tunnel acme/hq changed reconnect: under way",
            "tunnel tenant1/hq changed reconnect: under way",
        ]
        await w.until(lambda: not any(peer.ikes for peer in w.peers.values()))
        for node, key in [
            (gpn, ("sa", old.spi)), ("gin-1", ("steer", old.spi)), ("gin-2", ("steer", old.spi)),
            ("gen-1", ("route", TUNNEL)), ("gen-2", ("route", TUNNEL)),
        ]:  # fmt: skip
            delete = ("wire", "gmn", "INFORMATIONAL", False)
            w.ordered(("acknowledged", node, key), ("reload", "gin-1"), delete)
        await w.up()
        for name, vni in vnis.items():
            record = w.nodes.all[sealing(w, name).gpn].held["sa", sealing(w, name).spi]
            assert isinstance(record, Sa)
            assert (record.tunnel, record.vni) == (name, vni)


@pytest.mark.parametrize("lazy", [False, True])
async def test_more_selectors_come_by_a_rekey(autojump_clock: MockClock, lazy: bool) -> None:
    async with world(tunnels=2) as w:
        w.peer.lazy = lazy
        await w.up()
        before, old = footprint(w, OTHER), sealing(w)
        after = edited(w, remote_ts=("10.2.0.0/24", "10.9.0.0/24"))
        w.peer.configure(after)
        assert await applied(w) == ["tunnel acme/hq changed rekey: under way"]
        await w.until(lambda: sealing(w) is not old and not w.tunnel.outdated)
        assert sealing(w).ike == old.ike
        for gen in ("gen-1", "gen-2"):
            route = w.nodes.all[gen].held["route", TUNNEL]
            assert isinstance(route, Route)
            assert route.prefixes == after.remote_ts
        await w.settle(10)
        assert footprint(w, OTHER) == before
        w.check_clean()


async def test_a_peer_that_narrows_keeps_what_it_had(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        edited(w, remote_ts=("10.2.0.0/16",))
        await applied(w)
        await w.until(lambda: not w.tunnel.outdated)
        assert sealing(w) is not old
        assert sealing(w).child.remote_ts == old.child.remote_ts
        assert w.tunnel.error is None


async def test_fewer_selectors_close_the_sa_that_has_more(autojump_clock: MockClock) -> None:
    """It carries what is not allowed any more (RFC 7296 2.9.2)."""
    async with world(tunnels=2, start="auto") as w:
        await w.up(by="gateway")
        before, old = footprint(w, OTHER), sealing(w)
        after = edited(w, remote_ts=("10.2.0.0/25",))
        w.interrupted.add(TUNNEL)
        assert await applied(w) == ["tunnel acme/hq changed reconnect: under way"]
        await w.until(w.is_up)
        assert sealing(w) is not old
        route = w.nodes.all["gen-1"].held["route", TUNNEL]
        assert isinstance(route, Route)
        assert route.prefixes == after.remote_ts
        await w.settle(10)
        assert footprint(w, OTHER) == before
        w.check_clean()


async def test_new_proposals_that_the_peer_does_not_have_change_nothing_until_it_does(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        after = edited(w, esp=("aes128gcm16",))
        assert await applied(w) == ["tunnel acme/hq changed rekey: under way"]
        await w.until(lambda: w.tunnel.error)
        assert w.tunnel.error is not None
        assert w.tunnel.error.startswith("goes on under its old terms: acme/hq cannot be rekeyed: ")
        assert "NO_PROPOSAL_CHOSEN" in w.tunnel.error
        await w.settle(10)
        assert sealing(w) is old

        await w.migrations.migrate(TUNNEL, "gpn-2")  # as it was negotiated, so a GPN can still be emptied
        assert sealing(w).child.suite.startswith("aes256gcm16")

        w.peer.configure(after)
        await w.until(lambda: not w.tunnel.outdated)
        assert sealing(w).child.suite.startswith("aes128gcm16")
        assert sealing(w).gpn == "gpn-2"
        assert w.tunnel.error is None
        await w.settle(10)
        w.check_clean()


async def test_new_ike_proposals_rekey_the_ike_sa(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        after = edited(w, ike=("aes128gcm16-prfsha256-ecp256",))
        w.peer.configure(after)
        assert await applied(w) == ["tunnel acme/hq changed rekey: under way"]
        await w.until(lambda: not w.tunnel.outdated)
        (rekeyed,) = [event for event in w.peer.events if isinstance(event, IkeRekeyed)]
        assert rekeyed.suite == "aes128gcm16-prfsha256-ecp256"
        assert sealing(w) is old


async def test_another_mtu_is_on_the_gpn_at_once(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        edited(w, mtu=1400, fragment="outer", mss="auto")
        assert await applied(w) == ["tunnel acme/hq changed now: done"]
        assert sealing(w) is old
        record = w.nodes.all[old.gpn].held["sa", old.spi]
        assert isinstance(record, Sa)
        assert (record.mtu, record.fragment, record.mss) == (1400, "outer", "auto")


async def test_another_window_comes_with_a_rekey_and_not_before(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        edited(w, window=4096)
        assert await applied(w) == ["tunnel acme/hq changed rekey: under way"]
        await w.until(lambda: not w.tunnel.outdated)
        windows = {
            record.spi_in: record.window
            for record in w.nodes.all[old.gpn].held.values()
            if isinstance(record, Sa)
        }
        assert windows == {old.spi: 1024, sealing(w).spi: 4096}
        old.peer = ("198.51.100.7", 4501)
        w.sad.nodes.put_sa(w.tunnel, old)
        record = w.nodes.all[old.gpn].desired["sa", old.spi]
        assert isinstance(record, Sa)
        assert record.window == 1024


async def test_another_dscp_is_with_the_gpn_at_once(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.up()
        old = sealing(w)
        for option, dscp in (("clear", 0), (46, 46), ("copy", None)):
            edited(w, dscp=option)
            assert await applied(w) == ["tunnel acme/hq changed now: done"]
            assert sealing(w) is old
            held = w.nodes.all[old.gpn].held.values()
            assert [record.dscp for record in held if isinstance(record, Sa)] == [dscp]


async def test_terms_that_change_again_meanwhile_are_the_last_ones(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.wire_delay = (0.05, 0.05)
        await w.up()
        first = edited(w, esp=("aes128gcm16",))
        w.peer.configure(msgspec.structs.replace(first, esp=("aes128gcm16", "chacha20poly1305")))
        await applied(w)
        await w.settle(0.06)  # the request is with the peer
        edited(w, esp=("chacha20poly1305",))
        await applied(w)
        await w.until(lambda: not w.tunnel.outdated)
        assert sealing(w).child.suite.startswith("chacha20poly1305")


async def test_terms_of_a_tunnel_that_is_down_are_for_its_next_negotiation(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.peer.configure(edited(w, esp=("aes128gcm16",)))
        assert await applied(w) == ["tunnel acme/hq changed rekey: done"]
        await w.up()
        assert sealing(w).child.suite.startswith("aes128gcm16")


@pytest.mark.parametrize("start", ["wait", "auto"])
async def test_another_secret_makes_the_tunnel_anew(autojump_clock: MockClock, start: Any) -> None:
    async with world(tunnels=2, start=start) as w:
        await w.up(by="peer" if start == "wait" else "gateway")
        before, old = footprint(w, OTHER), sealing(w)
        w.secrets[TUNNEL] = b"another secret of good length"
        w.interrupted.add(TUNNEL)
        found = await reload(w)
        assert [told(change) for change in found.changes] == ["tunnel acme/hq changed reconnect: under way"]
        assert "secret of" not in str(found)
        await w.until(lambda: not w.peer.ikes)
        if start == "wait":
            w.peer.dial()
        await w.settle(3)
        assert not w.is_up()  # the peer has the old one
        w.peer.configure(w.peer.config, psk=w.secrets[TUNNEL])
        if start == "wait":
            w.peer.dial()
        await w.until(w.is_up)
        assert sealing(w) is not old
        await w.settle(10)
        assert footprint(w, OTHER) == before
        w.check_clean()


async def test_another_peer_is_dialled(autojump_clock: MockClock) -> None:
    async with world(start="auto") as w:
        await w.up(by="gateway")
        old = w.peer
        new = w.add_peer(edited(w, peer="198.51.100.99"))
        w.interrupted.add(TUNNEL)
        await applied(w)
        await w.until(lambda: w.is_up() and new.opens)
        assert not old.ikes
        assert sealing(w).peer[0] == new.address


async def test_start_says_who_dials_from_now_on(autojump_clock: MockClock) -> None:
    async with world() as w:
        w.tasks.start_soon(w.keeper.run)
        await w.settle(5)
        assert not w.peer.ikes
        edited(w, start="auto")
        assert await applied(w) == ["tunnel acme/hq changed now: done"]
        await w.until(w.is_up)
        placed = sealing(w)
        edited(w, start="wait")
        await applied(w)
        assert sealing(w) is placed
        w.interrupted.add(TUNNEL)
        w.peer.close()
        await w.settle(120)
        assert not w.peer.ikes
        edited(w, start="auto")
        await applied(w)
        await w.until(w.is_up)


# ---- what is under way


@pytest.mark.parametrize("seed", range(40))
async def test_a_reload_may_come_at_any_moment(autojump_clock: MockClock, seed: int) -> None:
    """Between any two steps of a handshake, a rekey of either side, a migration; and then come back."""
    async with world(seed, tunnels=3, start="auto", delay=(0.0001, 0.02)) as w:
        random = Random(seed)
        whole = w.file
        w.interrupted.add(OTHER)
        busy = w.peers[whole.tunnels()[1].peer or ""]
        before: list[object] = []
        if random.random() < 0.7:
            await w.up(by="gateway")
            before = footprint(w, TUNNEL)
        else:
            w.tasks.start_soon(w.keeper.run)

        async def tolerantly(call: Any, *args: object) -> None:
            with suppress(ProtegoError):
                await call(*args)

        for name in random.sample(["gpn-1", "gpn-2", "gpn-3"], 2):
            w.tasks.start_soon(tolerantly, w.migrations.migrate, OTHER, name)
        if busy.opens and random.random() < 0.5:
            busy.rekey()
        if random.random() < 0.3:
            busy.dial()
        await trio.sleep(random.uniform(0, 0.1))
        if random.random() < 0.5:
            without_tunnel(w, OTHER)
        else:
            edited(w, OTHER, 7777)
        await applied(w)
        await trio.sleep(random.uniform(0, 0.1))
        w.file = whole
        await applied(w)
        await w.until(lambda: w.is_up() and all(peer.opens for peer in w.peers.values()), 300)
        await w.settle(60)
        assert w.is_up()
        assert sealing(w, OTHER).child.spi_out in busy.opens
        assert len(busy.ikes) == 1
        assert not before or footprint(w, TUNNEL) == before
        w.check_clean()


@pytest.mark.parametrize("moment", range(24))
@pytest.mark.parametrize("deed", ["peer dials", "gateway dials", "peer rekeys", "migration"])
async def test_a_removal_may_come_at_any_moment(autojump_clock: MockClock, deed: str, moment: int) -> None:
    """Whatever is under way for the tunnel, nothing of it is left in the end: no SA, no SPI, no IKE_SA."""
    async with world(moment, start="auto" if deed == "gateway dials" else "wait", delay=(0.008, 0.008)) as w:
        w.wire_delay = (0.008, 0.008)
        w.interrupted.add(TUNNEL)
        if deed in ("peer rekeys", "migration"):
            await w.up()

        async def migrate() -> None:
            with suppress(ProtegoError):
                await w.migrations.migrate(TUNNEL, "gpn-3")

        match deed:
            case "peer dials":
                w.peer.dial()
            case "gateway dials":
                w.tasks.start_soon(w.keeper.run)
            case "peer rekeys":
                w.peer.rekey()
            case "migration":
                w.tasks.start_soon(migrate)
        await trio.sleep(0.004 + moment * 0.004)
        without_tunnel(w)
        await applied(w)
        await w.settle(20)
        assert not w.sad.all()
        assert not w.peer.ikes
        assert not w.tunnels_of_engine()
        w.check_clean()


async def test_no_tunnel_lands_on_a_gpn_while_it_leaves(autojump_clock: MockClock) -> None:
    async with world(tunnels=3, delay=(0.02, 0.02)) as w:
        w.peer.dial()
        w.peers["198.51.100.8"].dial()
        await w.until(lambda: sum(placed.standing for _, placed in w.sad.all()) == 2)
        (empty,) = {"gpn-1", "gpn-2", "gpn-3"} - {placed.gpn for _, placed in w.sad.all()}
        without_node(w, empty)
        without_tunnel(w, OTHER)  # takes its time
        w.interrupted.add(OTHER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(applied, w)
            await trio.sleep(0.001)
            w.peers["198.51.100.9"].dial()
            await w.until(lambda: "tenant2/hq" in {tunnel.id for tunnel, _ in w.sad.all()})
            assert empty in w.nodes.all  # still: the reload goes on
        await w.until(w.is_up)
        await w.settle(10)
        w.check_clean()
