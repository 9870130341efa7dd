"""The gateway's SAD: every CHILD_SA of every tunnel, on which GPN it lies, which one of a strand seals.

Life of an SA here:
1. `seat` says where it goes; `place` gives it numbers and its records; `installed` waits until they stand.
2. `flip` makes it the sealing one: Rule on its GPN, Route at the GENs with a barrier to the GPN before. That
   one gives on to a GEN meanwhile what comes straight from VTEPs, and its Rule ends with `unrule`.
3. `retire`: the peer knows it no more, and it opens what is still on its way, for `linger` seconds
   (`lingering.py`).
4. `forget`: it is on no node, its SPI is quarantined.

An SA stands on its GPN and is steered there, acknowledged, before a peer may hear of it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Final

import trio
from msgspec import structs

from protego_cli.config.model import Cluster
from protego_cli.control.operating.events import EventLog
from protego_cli.control.operating.strangers import Strangers
from protego_cli.control.packing.placement import Packer, PolicyFault
from protego_cli.control.packing.seats import Seats
from protego_cli.control.sas.distribution import DesiredState, Distribution
from protego_cli.control.sas.limits import Limits
from protego_cli.control.sas.lingering import Lingering
from protego_cli.control.sas.ranges import SealingRanges
from protego_cli.control.sas.spis import SpiAllocator
from protego_cli.control.sas.stored import ASKED, SA, TUNNEL, store_sa, store_tunnel
from protego_cli.control.sas.tunnel import Asked, Placed, Strand, Tunnel
from protego_cli.control.state.journal import Journal
from protego_cli.control.waiting import holding, passed
from protego_cli.errors import ProtegoError, Refused
from protego_cli.ike.events import ChildSa

log = logging.getLogger(__name__)

SEAT_WAIT: Final = 3.0  # seconds to wait for a GPN to connect; below a peer's first retransmission
RETIRING: Final = 32
"""SAs of one tunnel that linger at a time; a peer that rekeys without end loses the oldest."""


def _nobody(*told: object) -> None:
    """Who is told of what happens here before anybody wants to know."""


class Sad:
    """The tunnels, their SAs, and where each lies."""

    def __init__(
        self,
        cluster: Cluster,
        fabric: DesiredState,
        packer: Packer,
        spis: SpiAllocator,
        tasks: trio.Nursery,
        journal: Journal,
        events: EventLog,
    ) -> None:
        """`tasks` runs what outlives the call that began it; what happens to tunnels is told to `events`."""
        self.ageing: Callable[[Tunnel, Placed], None] = _nobody  # is told of every new SA
        # is told of an SA that begins to seal and may open nothing, since its first process has gone
        self.closed: Callable[[Tunnel, Placed], None] = _nobody
        self.scattered: Callable[[Tunnel], None] = _nobody  # is told of one whose strands lie on several GPNs
        self.events = events
        self.journal = journal
        self.asked: dict[int, Asked] = {}  # SPIs of ours in requests that are not answered, or not yet placed
        self.inherited: set[int] = set()  # of these, what an earlier life may have placed and not stored
        self.gathered = trio.Event()  # the nodes of an earlier life are back, or have had their time
        self.gathered.set()
        self.tunnels = {
            tunnel.id: self._keep(Tunnel(tunnel, tenant.vni))
            for tenant in cluster.tenants
            for tunnel in tenant.tunnels
        }
        self.fabric = fabric
        self.spis = spis
        self.nodes = Distribution(fabric, *_edges(cluster))
        self.strangers = Strangers()
        self._ranges = SealingRanges()
        self._linger = cluster.ike.linger
        self._by_spi: dict[int, tuple[Tunnel, Placed]] = {}
        self._load: Counter[str] = Counter()  # SAs that do not retire, by GPN
        self.seats = Seats(
            fabric, replace(packer, told=self._policy_failed, live=True), self.tunnels, self._load
        )
        self.seats.loads.window = cluster.elastic.window
        self.limits = Limits(cluster, fabric)
        self._membership = trio.Event()
        self._lingering = Lingering(self.nodes, self.forget, tasks)

    def _keep(self, tunnel: Tunnel) -> Tunnel:
        """In the journal, for as long as it is there."""

        def worth() -> bytes | None:
            return store_tunnel(tunnel) if self.tunnels.get(tunnel.id) is tunnel else None

        tunnel.mark = partial(self.journal.mark, TUNNEL, tunnel.id.encode(), worth)
        return tunnel

    def reload(self, cluster: Cluster, packer: Packer) -> None:
        """Hold the tunnels of another cluster file, and place them by another policy. A tunnel that is in
        both goes on under its new terms; one that goes was withdrawn before.
        """
        ceilings = {tunnel.id: self.limits.ceiling(tunnel) for tunnel in self.tunnels.values()}
        tunnels: dict[str, Tunnel] = {}
        for tenant in cluster.tenants:
            for config in tenant.tunnels:
                tunnel = self.tunnels.get(config.id) or self._keep(Tunnel(config, tenant.vni))
                before, tunnel.config = tunnel.config, config
                tunnels[config.id] = tunnel
                if (before.dscp, before.path) != (config.dscp, config.path):
                    for placed in tunnel.sas.values():
                        self.nodes.put_sa(tunnel, placed)
        self.tunnels.clear()
        self.tunnels.update(tunnels)
        self.seats.packer = replace(packer, told=self._policy_failed, live=True)
        self.seats.loads.window = cluster.elastic.window
        self._linger = cluster.ike.linger
        self.nodes.reach(*_edges(cluster))
        self.limits.reload(cluster, tunnels.values(), trio.current_time())
        for tunnel in tunnels.values():
            if self.limits.ceiling(tunnel) != ceilings.get(tunnel.id):
                for placed in tunnel.sas.values():
                    self.steer(placed)

    def withdraw(self, tunnel: Tunnel) -> list[int]:
        """A tunnel is no more: nothing of it is to be left on any node. Returns its IKE_SAs, which are to be
        closed. What was being done for it ends as if the peer had closed them.
        """
        tunnel.withdrawn = True
        if self.tunnels.get(tunnel.id) is tunnel:
            del self.tunnels[tunnel.id]
            tunnel.mark()
        ikes = sorted(tunnel.ikes)
        tunnel.ikes.clear()
        for placed in list(tunnel.sas.values()):
            self.forget(tunnel, placed)
        self.seats.loads.forget(tunnel.id)
        tunnel.changed()
        return ikes

    def _policy_failed(self, fault: PolicyFault, tunnel: str | None) -> None:
        self.events.emit("policy failed", tunnel=tunnel, reason=fault)

    # ---- looking up

    def find(self, spi: int, gpn: str | None = None) -> tuple[Tunnel, Placed] | None:
        """The SA of an inbound SPI; with `gpn`, only if that is where it lies."""
        found = self._by_spi.get(spi)
        return found if found and gpn in (None, found[1].gpn) else None

    def all(self) -> list[tuple[Tunnel, Placed]]:
        return list(self._by_spi.values())

    def on(self, gpn: str) -> list[tuple[Tunnel, Placed]]:
        """Every SA that lies on a GPN."""
        return [(tunnel, placed) for tunnel, placed in self._by_spi.values() if placed.gpn == gpn]

    # ---- choosing a GPN

    def seat(self, tunnel: Tunnel) -> str | None:
        """The GPN for a new SA."""
        return self.seats.choose(tunnel)

    async def seat_soon(self, tunnel: Tunnel) -> str | None:
        """The same, waiting a moment for a GPN to connect."""
        gpn = self.seat(tunnel)
        with trio.move_on_after(SEAT_WAIT):
            while gpn is None:
                await self._membership.wait()
                gpn = self.seat(tunnel)
        return gpn

    async def until_connected(self, names: set[str]) -> None:
        """Return when all these nodes are there."""
        while not names <= {node.name for node in self.fabric.nodes() if node.connected}:
            await self._membership.wait()

    def membership_changed(self) -> None:
        """A node came or went."""
        self._membership.set()
        self._membership = trio.Event()
        for tunnel in self.tunnels.values():
            tunnel.changed()

    # ---- placing

    def place(
        self,
        tunnel: Tunnel,
        child: ChildSa,
        ike: int,
        gpn: str,
        peer: tuple[str, int] | None = None,
        *,
        strand: Strand | None = None,
    ) -> Placed:
        """Give a CHILD_SA its place, numbers and records; nothing is acknowledged yet. `peer`: where its ESP
        goes, if not along the IKE_SA's path; `strand`, if not what its selectors say.
        """
        strand = strand or tunnel.strand_for(child, ike) or tunnel.strands[0]
        peer, spi = peer or child.peer, child.spi_in
        inherited, asked = spi in self.inherited, self._answered(spi)
        expected = asked is not None and asked.gpn == gpn  # there, with the range that was granted in advance
        if asked is not None:
            self._ranges.restore(spi, asked.granted - 1 if expected else asked.granted)
            if not expected:
                self.nodes.unpark(spi, asked.gpn)
        numbers = self._ranges.grant(spi, esn=child.esn)
        placed = Placed(
            child, ike, gpn, numbers, peer, window=tunnel.config.window, since=self.events.clock()
        )
        placed.expires = placed.since + tunnel.config.lifetimes.child
        placed.opens = asked is None or asked.opens
        placed.marks_complete = not inherited
        self._enter(tunnel, placed, strand)
        self.ageing(tunnel, placed)
        placed.mark(binding=not expected)
        self.limit(tunnel)  # GPNs hear of it at once, and of the SA
        return placed

    def take_up(self, tunnel: Tunnel, placed: Placed, granted: int, strand: Strand) -> None:
        """The SA lay there in an earlier life of the GMN, which had `granted` so many ranges of it."""
        self._ranges.restore(placed.spi, granted)
        self._enter(tunnel, placed, strand)
        self.limit(tunnel)
        if placed.retiring:
            self._load[placed.gpn] -= 1
            self._let_linger(tunnel, placed)
        else:
            self.ageing(tunnel, placed)

    def _enter(self, tunnel: Tunnel, placed: Placed, strand: Strand) -> None:
        spi = placed.spi
        placed.mark = partial(self.journal.mark, SA, spi.to_bytes(4), partial(self._store, spi))
        self.spis.hold(spi)
        self._by_spi[spi] = tunnel, placed
        self._load[placed.gpn] += 1
        tunnel.add(placed, strand)
        self.nodes.put_sa(tunnel, placed)
        self.steer(placed)

    def _store(self, spi: int) -> bytes | None:
        found = self._by_spi.get(spi)
        return None if found is None else store_sa(found[1], self._ranges.granted(spi))

    def ask(
        self, tunnel: Tunnel, spi: int, gpn: str, peer: tuple[str, int], replaces: int | None = None
    ) -> None:
        """We are about to ask the peer for an SA with this SPI: its packets go to `gpn` and wait there. It
        becomes an SA by `place`, or `unask` ends it.
        """
        self._ask(tunnel, spi, Asked(tunnel.id, gpn, peer, replaces))

    def take_up_asked(self, tunnel: Tunnel, spi: int, asked: Asked) -> None:
        """The same was asked by an earlier life of the GMN."""
        self.asked[spi] = asked
        self.inherited.add(spi)
        self._ask(tunnel, spi, asked)

    def _ask(self, tunnel: Tunnel, spi: int, asked: Asked) -> None:
        self.spis.hold(spi)
        self.nodes.park(spi, asked.gpn)
        self.nodes.steer(spi, asked.gpn, asked.peer, self.limits.ceiling(tunnel))
        if self.asked.get(spi) != asked:
            self.asked[spi] = asked
            self.journal.put(ASKED, spi.to_bytes(4), asked, binding=False)

    def process_ended(self, gpn: str) -> None:
        """What an earlier life may have placed on a GPN is in another process's hands from now on."""
        for spi, asked in self.asked.items():
            if asked.gpn == gpn and spi in self.inherited:
                self.asked[spi] = anew = structs.replace(asked, granted=asked.granted + 1, opens=False)
                self.journal.put(ASKED, spi.to_bytes(4), anew)

    def unask(self, spi: int) -> None:
        """No SA came of it. The nodes hear of it with their next update."""
        if (asked := self._answered(spi)) is not None:
            self.nodes.unpark(spi, asked.gpn)
            self.nodes.unsteer(spi)
            self.spis.release(spi)

    def _answered(self, spi: int) -> Asked | None:
        asked = self.asked.pop(spi, None)
        self.inherited.discard(spi)
        if asked is not None:
            self.journal.put(ASKED, spi.to_bytes(4), None, binding=False)
        return asked

    def steer(self, placed: Placed) -> None:
        """The GINs pass it what comes from where its peer is."""
        self._steer(placed, placed.gpn)

    def _steer(self, placed: Placed, gpn: str) -> None:
        found = self._by_spi.get(placed.spi)
        ceiling = self.limits.ceiling(found[0]) if found else None
        self.nodes.steer(placed.spi, gpn, placed.peer, ceiling)

    async def turn(self, placed: Placed, gpn: str) -> None:
        """GINs pass its packets to this GPN from now on, where they wait for `move`; acknowledged. What the
        one before has opened is below the marks of these GINs then.
        """
        self.nodes.park(placed.spi, gpn)
        await self.nodes.let_go(gpn)
        self._steer(placed, gpn)
        await self.nodes.steered()

    def limit(self, tunnel: Tunnel) -> None:
        """Hold the tunnel and its tenant to their limits on the GPNs where their SAs lie now."""
        self.nodes.tell(self.limits.settle(tunnel, trio.current_time()))

    def move(self, tunnel: Tunnel, placed: Placed, gpn: str) -> None:
        """Place an SA elsewhere, where its packets go already (`turn`). What its old GPN may have opened must
        be below its floor.
        """
        before = placed.gpn
        self.nodes.drop_sa(placed)
        self.nodes.unrule(placed)
        self._load[before] -= 1
        self._load[gpn] += 1
        placed.gpn = gpn
        self.renumber(tunnel, placed)
        self.nodes.tell((before,))
        self.limit(tunnel)

    def renumber(self, tunnel: Tunnel, placed: Placed) -> None:
        """Another process holds the SA from now on: a new sealing range, and counting from zero."""
        used = placed.meter.highest_out
        placed.numbers = self._ranges.grant(placed.spi, esn=placed.child.esn, used=used)
        placed.meter.restart()
        self.nodes.put_sa(tunnel, placed)

    async def installed(self, placed: Placed) -> None:
        """Wait until the SA is on its GPN and steered there. Raises NodeDown or Refused."""
        await self.nodes.placed(placed.gpn, *placed.keys)

    # ---- sealing

    async def install_first(self, tunnel: Tunnel, placed: Placed) -> None:
        """Seal on the first SA of a strand; return when it stands. Raises NodeDown."""
        self._seal_on(tunnel, placed)
        self.nodes.rule(placed)
        await self.installed(placed)
        await self._route_first(tunnel, placed)

    async def install_silent(self, tunnel: Tunnel, placed: Placed) -> None:
        """The same up to where it would seal: `begin_sealing` has to follow. Raises NodeDown."""
        self._seal_on(tunnel, placed)
        await self.installed(placed)

    async def begin_sealing(self, tunnel: Tunnel, placed: Placed) -> None:
        """Seal on what was installed silently, as soon as all is stored that led to it: a new life that knew
        nothing of it would derive the same keys from the same IKE_AUTH, and begin with the same numbers.
        Raises NodeDown.
        """
        await self.journal.stored()
        if placed.seals:
            self.nodes.rule(placed)
            await self.nodes.holds(placed.gpn, *placed.keys)
            await self._route_first(tunnel, placed)

    async def _route_first(self, tunnel: Tunnel, placed: Placed) -> None:
        if placed.seals:
            self.nodes.route(tunnel, placed)
            await self.nodes.routed()
            if not tunnel.several:
                self.events.emit("tunnel up", tunnel=tunnel.id, node=placed.gpn, spi=placed.spi)

    def _seal_on(self, tunnel: Tunnel, placed: Placed) -> None:
        strand = placed.strand
        strand.sealing = placed
        if strand.successor is placed:
            strand.successor = None
        if not placed.opens:
            self.closed(tunnel, placed)
        tunnel.changed()

    async def flip(self, tunnel: Tunnel, new: Placed, *, ours: bool = False) -> None:
        """Seal on `new` from now on; return when all that was to be sealed before has been sent, and the GPN
        before seals no more. Its Rule is desired no more then, but not yet known to be gone (`let_go`).

        `ours`: the peer has the old SA until our DELETE. Then the old Rule is the caller's to end; and it
        raises NodeDown, and changes nothing, when the new GPN is not there.
        """
        await passed(self.gathered)
        async with holding(new.strand.flipping):
            old = new.strand.sealing
            if old is new:
                return
            if new.going:
                self._rule_again(new)
                return
            self.nodes.rule(new)
            try:
                await self.nodes.holds(new.gpn, *new.keys)
            except ProtegoError as error:
                if ours:
                    self._rule_again(new)
                    raise
                log.warning("rule not confirmed tunnel=%s node=%s reason=%s", tunnel.id, new.gpn, error)
            if new.going:  # the peer has deleted it, or its IKE_SA ended meanwhile
                self._rule_again(new)
                return
            self._seal_on(tunnel, new)
            self.nodes.route(tunnel, new)
            if old is not None and old.gpn != new.gpn:
                await self._hand_over(old)
            else:
                await self.nodes.routed()
            if old is not None and not ours:
                self.nodes.unrule(old)
        if tunnel.scattered:
            self.scattered(tunnel)

    async def flip_together(self, tunnel: Tunnel, news: Sequence[Placed]) -> None:
        """`flip` of several strands to one GPN, at once, all `ours`: till the barriers are passed both GPNs
        seal for all of them. Changes nothing, and raises NodeDown or Refused, when one of them cannot.
        """
        await passed(self.gathered)
        async with AsyncExitStack() as stack:
            for new in news:
                await stack.enter_async_context(holding(new.strand.flipping))
            olds = [new.strand.sealing for new in news]
            try:
                for new in news:
                    self.nodes.rule(new)
                await self.nodes.holds(news[0].gpn, *(key for new in news for key in new.keys))
                if any(new.going for new in news):
                    raise Refused(f"the peer of {tunnel.id} has deleted one of its new SAs at once")
            except ProtegoError:
                for new in news:
                    self._rule_again(new)
                raise
            for new in news:
                self._seal_on(tunnel, new)
            self.nodes.route(tunnel, *news)
            await self._hand_over(*(old for old in olds if old is not None and old.gpn != news[0].gpn))

    async def _hand_over(self, *olds: Placed) -> None:
        """Return when the GENs route elsewhere, and the GPNs of these SAs have sealed and sent all that came
        to them. Meanwhile it is stored what seals: no new life may go back to where a Rule has ended.
        """
        for old in olds:
            self.nodes.divert(old)
        left = dict.fromkeys(old.gpn for old in olds)
        behind = [gpn for gpn in left if gpn in self.fabric.connected("gpn")]
        self.nodes.tell(behind)
        stored = self.journal.storing()
        for gpn in behind or (None,):
            await self.nodes.routed(gpn)
        for gpn in behind:
            await self.nodes.let_go(gpn)
        await passed(stored)

    def _rule_again(self, new: Placed) -> None:
        """The SA that seals goes on to, and not `new`."""
        sealing = new.strand.sealing
        if sealing is not None and sealing.gpn == new.gpn:
            self.nodes.rule(sealing)
        else:
            self.nodes.unrule(new)

    async def tidy(self, tunnel: Tunnel) -> None:
        """End the Rules that an earlier life's flip had yet to end, as it would have: behind a barrier."""
        for strand in tunnel.strands:
            async with holding(strand.flipping):
                for gpn, spi in strand.ruled.items():
                    placed, sealing = tunnel.sas.get(spi), strand.sealing
                    if placed is None or (sealing is not None and sealing.gpn == gpn):
                        continue
                    await self.nodes.routed(gpn if gpn in self.fabric.connected("gpn") else None)
                    self.nodes.unrule(placed)
                    await self.nodes.let_go(gpn)

    async def flip_whole(self, tunnel: Tunnel, new: Placed) -> None:
        """`flip`, and what still reaches the GPN before goes on to a GEN."""
        old = new.strand.sealing
        await self.flip(tunnel, new)
        if old is not None:
            await self.nodes.let_go(old.gpn)

    async def leave(self, tunnel: Tunnel, *leaving: Placed) -> None:
        """Return when none of these seals and all that they sealed has been sent. Another SA of the strand
        seals then; none where there is no other.
        """
        for placed in leaving:
            placed.leaving = True
        await passed(self.gathered)
        for strand in dict.fromkeys(placed.strand for placed in leaving):
            await self._leave(tunnel, strand, leaving)
        for placed in leaving:  # a rekey of ours has put a Rule before its flip
            if placed.strand.ruled.get(placed.gpn) == placed.spi:
                self._rule_again(placed)
        for gpn in {placed.gpn for placed in leaving}:
            await self.nodes.let_go(gpn)

    async def _leave(self, tunnel: Tunnel, strand: Strand, leaving: Sequence[Placed]) -> None:
        while True:
            async with holding(strand.flipping):
                pass  # a flip that has begun is over, its barrier passed; it may have been to one of these
            sealing = strand.sealing
            if sealing is None or sealing not in leaving:
                return
            heir = strand.heir(leaving)
            if heir is None:
                for other in tunnel.strands:  # what is new beside it may have its traffic now
                    new = other.successor
                    if other.sealing is None and new is not None and new.standing:
                        await self.flip(tunnel, new)
                self._silence(tunnel, strand)
                await self.nodes.routed()
                self.nodes.unrule(sealing)  # now that no GEN passes it anything
            else:
                await self.flip(tunnel, heir)

    def _silence(self, tunnel: Tunnel, strand: Strand) -> None:
        """Nothing seals for this strand any more; the Rule is the caller's to end."""
        self.nodes.unroute(strand)
        strand.sealing = None
        tunnel.changed()
        if not tunnel.seals:
            self.events.emit("tunnel down", tunnel=tunnel.id)

    # ---- ending

    def retire(self, tunnel: Tunnel, placed: Placed) -> None:
        """The peer knows the SA no more: open what is still on its way for a while, then forget it."""
        if placed.retiring or placed.spi not in tunnel.sas:
            return
        placed.ends = self.events.clock() + self._linger
        self._load[placed.gpn] -= 1
        if placed.strand.successor is placed:
            placed.strand.successor = None
        lingering = [sa for sa in tunnel.sas.values() if sa.retiring]
        if len(lingering) > RETIRING:
            self.forget(tunnel, lingering[0])
        tunnel.changed()
        self._let_linger(tunnel, placed)

    def _let_linger(self, tunnel: Tunnel, placed: Placed) -> None:
        left = min(max(0.0, (placed.ends or 0.0) - self.events.clock()), self._linger)
        self._lingering.add(tunnel, placed, left)

    def forget(self, tunnel: Tunnel, placed: Placed) -> None:
        """Take the SA from every node; they hear of it with their next update. Idempotent."""
        if self._by_spi.pop(placed.spi, None) is None:
            return
        if not placed.retiring:
            placed.ends = self.events.clock()
            self._load[placed.gpn] -= 1
        placed.mark()
        self.nodes.drop_sa(placed)
        self.nodes.unsteer(placed.spi)
        if placed.seals:
            self._silence(tunnel, placed.strand)
        self.nodes.unrule(placed)
        tunnel.remove(placed)
        self.limit(tunnel)
        self._ranges.forget(placed.spi)
        self.spis.release(placed.spi)


def _edges(cluster: Cluster) -> tuple[list[str], list[str]]:
    """The names of the GINs and of the GENs."""
    return [gin.name for gin in cluster.nodes_of("gin")], [gen.name for gen in cluster.nodes_of("gen")]
