"""A GMN that ended at any point goes on: the SAD from the journal, and to its end what was under way.

1. `restore`, before anything runs: every SA where it lay, with its numbers; every tunnel with the SA that
   seals and its Rules; every SPI that we had asked a peer for, steered and parked. What the nodes should hold
   follows, so a node that connects gets a Sync that changes next to nothing.
2. Where engine and SAD differ, the GMN ended between the two, and the engine is right about what the peer
   knows. An SA that the engine does not have was never told to the peer (it is forgotten) or is deleted (it
   is left). A CHILD_SA without a place was asked for by us: it gets its place.
3. `gathered`: the nodes that an earlier life knew are back, or `RETURN` seconds have passed, and flips that
   had begun are over. Until then no tunnel changes the SA on which it seals, and none goes: a GEN that cannot
   be told would go on routing to the old one.
4. Then each tunnel goes on by itself, by procedures that may begin at any step of theirs: a rekey of ours, a
   handshake of ours, a successor that waits for its peer's first packet, SAs that retire, Rules left over,
   IKE_SAs that are replaced or have no CHILD_SA, a rekey that was due.

Requests of ours that are outstanding come back in the engine, with their bytes; requests of a peer whose
answer was held back never happened, and come again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Final

import trio
from msgspec import structs

from protego_cli.config.model import Cluster
from protego_cli.control.procedures.driver import Driver, ExchangeError, HeldRequest
from protego_cli.control.procedures.keeper import Keeper
from protego_cli.control.procedures.migration import Migrations, Outcome
from protego_cli.control.procedures.renewal import Renewals
from protego_cli.control.procedures.tunnels import OVERDUE, Tunnels
from protego_cli.control.sas.ranges import EXHAUSTED
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.stored import ASKED, SA, TUNNEL, StoredStrand, load_asked, load_sa, load_tunnel
from protego_cli.control.sas.tunnel import Asked, Placed, Strand, Tunnel
from protego_cli.control.state.journal import NODE, Journal, nothing
from protego_cli.control.waiting import passed
from protego_cli.ike.engine import Engine
from protego_cli.ike.events import ChildEstablished, ChildSa, Standing

log = logging.getLogger(__name__)

RETURN: Final = 5.0  # seconds for nodes to come back; above an agent's longest pause and a handshake


class Restart:
    def __init__(
        self,
        cluster: Cluster,
        journal: Journal,
        engine: Engine,
        driver: Driver,
        sad: Sad,
        tunnels: Tunnels,
        migrations: Migrations,
        keeper: Keeper,
        renewals: Renewals,
        tasks: trio.Nursery,
    ) -> None:
        self._cluster = cluster
        self._journal = journal
        self._engine = engine
        self._driver = driver
        self._sad = sad
        self._tunnels = tunnels
        self._migrations = migrations
        self._keeper = keeper
        self._renewals = renewals
        self._tasks = tasks
        self._known: dict[int, tuple[ChildSa, Standing]] = {}  # the engine's CHILD_SAs, by inbound SPI
        self._moving: set[int] = set()  # inbound SPIs in requests that `_go_on_moving` sees to

    # ---- what there was

    def restore(self) -> None:
        """Take up what the journal holds; the engine is restored already. Raises EnvironmentFault."""
        self._await_nodes()
        self._take_up_sas()
        self._take_up_tunnels()
        self._take_up_requests()
        for standing in self._engine.sas():
            self._known.update((child.spi_in, (child, standing)) for child in standing.children)
            if (tunnel := self._sad.tunnels.get(standing.tunnel)) is not None:
                tunnel.ikes.add(standing.ike)
        asked = self._engine.asked()
        for tunnel in self._sad.tunnels.values():
            if tunnel.sas or tunnel.ikes:
                self._go_on(tunnel)
        for tunnel in self._sad.tunnels.values():
            if tunnel.several and (to := self._bound_for(tunnel)) is not None:
                self._go_on_moving(tunnel, to, asked)
        for spi, request in list(self._sad.asked.items()):
            self._answer(spi, request, asked.get(spi))
        for spi in self._known:
            if self._sad.find(spi) is None and spi not in self._sad.asked:
                log.warning("a CHILD_SA without a place is deleted spi=%08x", spi)
                self._tasks.start_soon(self._delete, spi)
        count = len(self._sad.all())
        if count:
            log.info("state restored sas=%d ikes=%d", count, len(self._engine.sas()))
        self._journal.forget_found()

    def _await_nodes(self) -> None:
        names = {name.decode() for name, _ in self._journal.found(NODE)}
        names &= {node.name for node in self._cluster.nodes}
        if names:
            self._sad.gathered = trio.Event()
            self._tasks.start_soon(self._gather, names)

    async def _gather(self, names: set[str]) -> None:
        with trio.move_on_after(RETURN):
            await self._sad.until_connected(names)
        async with trio.open_nursery() as nursery:
            for tunnel in self._sad.tunnels.values():
                if any(
                    strand.sealing is None or strand.sealing.gpn != gpn
                    for strand in tunnel.strands
                    for gpn in strand.ruled
                ):
                    nursery.start_soon(self._sad.tidy, tunnel)
        self._sad.gathered.set()

    def _take_up_sas(self) -> None:
        gpns = [node.name for node in self._cluster.nodes_of("gpn")]
        found = [(spi, load_sa(data)) for spi, data in self._journal.found(SA)]
        for spi, (placed, granted, number) in sorted(found, key=lambda item: item[1][0].since):
            tunnel = self._sad.tunnels.get(placed.child.tunnel)
            if tunnel is None or not gpns:  # no longer configured: the peer is told
                self._journal.put(SA, spi, None)
                self._sad.spis.release(placed.spi)
                continue
            lost = placed.gpn not in gpns
            if lost:  # no longer configured: whoever takes it knows nothing of what it has opened
                placed.gpn = gpns[0]
                placed.opens, placed.renewing = False, True
            self._sad.take_up(tunnel, placed, granted, tunnel.strand(number))
            if lost:
                self._sad.renumber(tunnel, placed)

    def _take_up_tunnels(self) -> None:
        for name, data in self._journal.found(TUNNEL):
            tunnel = self._sad.tunnels.get(name.decode())
            if tunnel is None:
                self._journal.put(TUNNEL, name, None)
                continue
            stored = load_tunnel(data)
            mark, tunnel.mark = tunnel.mark, nothing
            tunnel.retired = stored.retired
            for number, lineage in enumerate(stored.strands, 1):
                self._take_up_strand(tunnel, tunnel.strand(number), lineage)
            tunnel.mark = mark

    def _take_up_strand(self, tunnel: Tunnel, strand: Strand, stored: StoredStrand) -> None:
        strand.sealing = tunnel.sas.get(stored.sealing or 0)
        strand.successor = tunnel.sas.get(stored.successor or 0)
        for gpn, spi in stored.ruled.items():
            placed = tunnel.sas.get(spi)
            if placed is not None and placed.gpn == gpn and placed.numbers != EXHAUSTED:
                self._sad.nodes.rule(placed)
        sealing = strand.sealing
        if sealing is not None and sealing.standing:
            self._sad.nodes.route(tunnel, sealing)
            if sealing.gpn not in strand.ruled and sealing.numbers != EXHAUSTED:  # it lies elsewhere now
                self._sad.nodes.rule(sealing)

    def _take_up_requests(self) -> None:
        gpns = [node.name for node in self._cluster.nodes_of("gpn")]
        for key, data in self._journal.found(ASKED):
            asked = load_asked(data)
            tunnel = self._sad.tunnels.get(asked.tunnel)
            if tunnel is None or not gpns:
                self._journal.put(ASKED, key, None)
                continue
            if asked.gpn not in gpns:  # the peer may have the SA all the same; see `_take_up_sas`
                asked = structs.replace(asked, gpn=gpns[0], granted=asked.granted + 1, opens=False)
                self._journal.put(ASKED, key, asked)
            self._sad.take_up_asked(tunnel, int.from_bytes(key), asked)

    # ---- what was under way

    def _go_on(self, tunnel: Tunnel) -> None:
        for placed in list(tunnel.sas.values()):
            for step in self._steps(tunnel, placed):
                self._tasks.start_soon(step)
        successors = [strand.successor for strand in tunnel.strands if strand.successor is not None]
        for successor in successors:
            if not self._under_way(successor):
                self._tasks.start_soon(partial(self._tunnels.succeed, tunnel, successor, answered=False))
        seals = {sa.ike for sa in tunnel.seals}
        used = seals | {sa.ike for sa in successors}
        for ike in tunnel.ikes:
            if ike not in used and any(ike < newer for newer in seals):
                self._tasks.start_soon(self._tunnels.end_replaced, tunnel, ike)
            else:
                self._tasks.start_soon(self._tunnels.close_if_childless, tunnel, ike)
        for ike in seals:
            if len(tunnel.children(ike)) > sum(1 for sa in tunnel.seals if sa.ike == ike):
                self._tasks.start_soon(self._delete_others, tunnel, ike)
        if tunnel.scattered:
            self._sad.scattered(tunnel)

    # ---- the move of several strands

    def _bound_for(self, tunnel: Tunnel) -> str | None:
        """Where all strands of a tunnel were being moved to, and none has begun to seal."""
        aside = next((strand.aside for strand in tunnel.strands if strand.aside is not None), None)
        if aside is not None:
            return aside.gpn
        asked = (asked for asked in self._sad.asked.values() if asked.tunnel == tunnel.id)
        homes = {sa.gpn for sa in tunnel.seals}
        return next((each.gpn for each in asked if each.replaces and each.gpn not in homes), None)

    def _go_on_moving(self, tunnel: Tunnel, to: str, tokens: Mapping[int, int]) -> None:
        outcomes = []
        for spi, asked in list(self._sad.asked.items()):
            if asked.tunnel == tunnel.id and asked.replaces is not None:
                if (outcome := self._outcome(spi, asked, tokens.get(spi))) is None:
                    self._sad.unask(spi)
                else:
                    outcomes.append((spi, asked, outcome))
                self._moving.add(spi)
        self._tasks.start_soon(self._migrations.resume_together, tunnel, to, outcomes)

    def _steps(self, tunnel: Tunnel, placed: Placed) -> Iterator[Callable[[], Awaitable[None]]]:
        """What is left to do for an SA."""
        sad = self._sad
        if placed.retiring:
            if placed.seals:
                yield partial(sad.leave, tunnel, placed)
            return
        known = self._known.get(placed.spi)
        if known is None:
            if placed.standing:
                yield partial(self._tunnels.deleted, tunnel, placed, None)
            else:
                sad.forget(tunnel, placed)
            return
        leaving = placed.spi in known[1].leaving
        if placed.replaces is not None and placed is placed.strand.aside and tunnel.several:
            return  # `_go_on_moving`
        if placed.replaces is not None:
            yield partial(self._migrations.finish, tunnel, placed)
        elif not placed.standing and not leaving:
            tunnel.dialling = True
            yield partial(self._keeper.finish, tunnel, placed)
        elif placed.seals and (placed.renewing or not placed.opens or placed.numbers.lo > 1):
            placed.renewing = False
            self._renewals.renew(tunnel, placed)

    async def _delete_others(self, tunnel: Tunnel, ike: int) -> None:
        """Whoever began what has led to several SAs has had the time to end it."""
        await trio.sleep(OVERDUE)
        await self._tunnels.delete_others(tunnel, ike)

    def _under_way(self, placed: Placed) -> bool:
        """Whether another procedure sees to it."""
        return placed.replaces is not None or not placed.standing

    def _answer(self, spi: int, asked: Asked, token: int | None) -> None:
        if spi in self._moving:
            return
        tunnel = self._sad.tunnels[asked.tunnel]
        outcome = self._outcome(spi, asked, token)
        if outcome is None:
            self._sad.unask(spi)
        elif asked.replaces is None:
            tunnel.dialling = True
            self._tasks.start_soon(self._keeper.resume, tunnel, spi, asked.gpn, outcome)
        else:
            self._tasks.start_soon(self._migrations.resume, tunnel, spi, asked, outcome)

    def _outcome(self, spi: int, asked: Asked, token: int | None) -> Outcome | None:
        """A request of ours: its answer is on its way, or has come and was not acted on, or was an error."""
        known = self._known.get(spi)
        if known is not None:
            child, standing = known
            event = ChildEstablished(0, standing.ike, child, asked.replaces, spi in standing.leaving)
            return partial(_at_hand, event)
        if token is None:
            return None
        if asked.replaces is None:
            return self._driver.resume(token).outcome
        request = self._driver.resume(token, held=True)
        self._tasks.start_soon(self._let_go, asked, request)
        return request.outcome

    async def _let_go(self, asked: Asked, request: HeldRequest[ChildEstablished]) -> None:
        """A rekey's request may not have left: not every node may know of its SPI. Whoever takes the answer
        may come late, and what he waits for may have to send something behind it.
        """
        await passed(self._sad.gathered)
        await self._sad.nodes.cleared(asked.gpn)
        request.let_go()

    async def _delete(self, spi: int) -> None:
        try:
            await self._driver.delete_child(spi)
        except ExchangeError as error:
            log.warning("CHILD_SA not deleted spi=%08x reason=%s", spi, error)


async def _at_hand(event: ChildEstablished) -> ChildEstablished:
    return event
