"""Moving a tunnel to another GPN by rekeying it, make-before-break; or rekeying it where it is.

T moves from A to B (docs/architecture.md, "Migration, message by message"):

1. Every GIN steers a new SPI to B, B parks its packets; acknowledged.
2. CREATE_CHILD_SA (both steps: `rekeying.py`). *rekey_ms ends*
3. B holds the SA and seals on it; acknowledged. A passes on to a GEN what VTEPs still send straight to it.
4. Every GEN routes T to B, then passes a barrier to A, which A echoes when all before it is sealed and sent.
   *distribute_ms ends*
5. An empty IKE round trip (ESP and DELETE take different paths).
6. DELETE of the old SA (`parting.py`). *total_ms ends*
7. The old SA lingers (`Sad.retire`); A's Rule goes with it.

While this goes on every SPI that the peer is given lies on B. So when the peer rekeys at the same moment,
whichever SA wins completes the migration. A failed rekey touches nothing of the old SA. When B goes down
after the peer has agreed to the new SA, that SA is placed on A.

A tunnel of several strands (`tunnel.Strand`) moves as a whole: steps 1 and 2 for each, all new SAs on B with
their Rules, then step 4 for all at once. GENs route by destination alone, and from the first Route that
changes to the last barrier both GPNs seal for every strand. Meanwhile the peer has to wait with requests of
its own (TEMPORARY_FAILURE, 2.25). When one strand cannot be rekeyed none moves: the new SAs are deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio

from protego_cli.control.channel.operator_messages import Migrated
from protego_cli.control.procedures.driver import Driver, ExchangeError
from protego_cli.control.procedures.parting import Parting, delete
from protego_cli.control.procedures.recovery import Recovery
from protego_cli.control.procedures.rekeying import SETTLING, Rekeying, tell_ike_rekeyed
from protego_cli.control.sas.distribution import DesiredState
from protego_cli.control.sas.naming import find_gpn, find_tunnel
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Asked, Placed, Tunnel
from protego_cli.control.state.crash import crash_point
from protego_cli.control.waiting import holding, passed
from protego_cli.errors import ProtegoError, Refused
from protego_cli.ike.events import ChildEstablished

log = logging.getLogger(__name__)

Outcome = Callable[[], Awaitable[ChildEstablished]]
"""Waits for the peer's answer to a request. Raises ExchangeError."""


class Times(NamedTuple):
    """Seconds since the beginning."""

    rekeyed: float
    distributed: float
    total: float


def cut_off(fabric: DesiredState) -> set[str]:
    """GINs and GENs that have been there and cannot be told where a tunnel goes."""
    return {
        node.name
        for node in fabric.nodes()
        if node.role in ("gin", "gen") and node.boot is not None and not node.connected
    }


class Migrations:
    def __init__(self, sad: Sad, driver: Driver, recovery: Recovery) -> None:
        self._sad = sad
        self._driver = driver
        self._recovery = recovery
        self._rekeying = Rekeying(sad, driver)
        self._requested: dict[str, str] = {}  # tunnel -> target, of what the operators asked for

    async def migrate(self, name: str, to: str) -> Migrated:
        """Move a tunnel as the operator asks. Raises NotFound or Refused, saying why."""
        tunnel = find_tunnel(self._sad.tunnels, name)
        if name in self._requested:
            raise Refused(f"{name} is being moved to {self._requested[name]}; ask again when that is done")
        self._check(tunnel, to)
        self._requested[name] = to
        try:
            async with holding(tunnel.moving):
                return await self._migrate(tunnel, to)
        finally:
            del self._requested[name]

    async def relocate(self, tunnel: Tunnel, source: str, to: str) -> Migrated | None:
        """Move a tunnel as a policy has decided, behind whatever moves it now. None when it is not on
        `source` any more, so that there is nothing to do. Raises NotFound or Refused.
        """
        async with holding(tunnel.moving):
            with trio.move_on_after(SETTLING):  # it may be coming up
                await tunnel.until(lambda: tunnel.sealing is None or tunnel.sealing.standing)
            sealing = tunnel.sealing
            if sealing is None or sealing.retiring or sealing.gpn != source:
                return None
            return await self._migrate(tunnel, to)

    async def _migrate(self, tunnel: Tunnel, to: str) -> Migrated:
        """A migration, told in events. The caller holds `moving`."""
        events, name = self._sad.events, tunnel.id
        try:
            source = self._check(tunnel, to).gpn
            events.emit("migration begun", tunnel=name, node=to, source=source)
            times = await self._move_all(tunnel, to)
        except ProtegoError as error:
            events.emit("migration failed", tunnel=name, node=to, reason=error)
            raise
        tunnel.moves.append(trio.current_time())
        rekey, distribute = times.rekeyed, times.distributed - times.rekeyed
        events.emit(
            "migrated",
            tunnel=name,
            node=to,
            source=source,
            rekey_ms=round(rekey * 1e3, 1),
            distribute_ms=round(distribute * 1e3, 1),
            total_ms=round(times.total * 1e3, 1),
        )
        return Migrated(
            tunnel=name,
            source=source,
            to=to,
            method="rekey",
            rekey_ms=round(rekey * 1e3, 3),
            distribute_ms=round(distribute * 1e3, 3),
            total_ms=round(times.total * 1e3, 3),
        )

    async def renew(self, tunnel: Tunnel, placed: Placed) -> None:
        """Rekey a sealing SA where it is, or away from there if its GPN is draining. Nothing happens when it
        does not seal any more.
        """
        async with holding(tunnel.moving):
            await self._renew(tunnel, placed)

    async def renegotiate(self, tunnel: Tunnel, placed: Placed) -> None:
        """Rekey what of a tunnel is outdated, under its present policy; the IKE_SA first, its keys make those
        of the CHILD_SA. Nothing happens when this SA does not seal any more.
        """
        async with holding(tunnel.moving):
            if not placed.seals:
                return
            config, outdated = tunnel.config, set(tunnel.outdated)
            if "ike" in outdated:
                for ike in dict.fromkeys(sa.ike for sa in tunnel.seals):
                    await self._rekey_ike(tunnel, ike)
                if tunnel.config == config:
                    tunnel.outdated.discard("ike")
            if "child" in outdated:
                for sealing in tunnel.seals:
                    await self._renew(tunnel, sealing, anew=True)
                if tunnel.config == config:
                    tunnel.outdated.discard("child")

    async def _rekey_ike(self, tunnel: Tunnel, ike: int) -> None:
        try:
            rekeyed = await self._driver.rekey_ike(ike)
        except ExchangeError as error:
            raise Refused(f"the IKE_SA of {tunnel.id} cannot be rekeyed: {error}") from error
        tell_ike_rekeyed(self._sad.events, rekeyed)

    async def _renew(self, tunnel: Tunnel, placed: Placed, *, anew: bool = False) -> None:
        await passed(self._sad.gathered)
        if not placed.seals:
            return
        if placed.gpn not in self._sad.fabric.connected("gpn"):
            raise Refused(f"{placed.gpn} is down")
        to = placed.gpn if tunnel.several else self._sad.seat(tunnel) or placed.gpn
        times = await self._move(tunnel, placed, to, anew=anew)
        sealing = placed.strand.sealing
        self._sad.events.emit(
            "rekeyed",
            tunnel=tunnel.id,
            node=to,
            spi=sealing.spi if sealing else None,
            initiator="gateway",
            total_ms=round(times.total * 1e3, 1),
        )

    async def rekey(self, tunnel: Tunnel) -> None:
        """The same for all its sealing SAs, as the operator asks. Raises Refused, saying why."""
        if tunnel.id in self._requested:
            raise Refused(f"{tunnel.id} is being moved to {self._requested[tunnel.id]}, which rekeys it")
        seals = [sa for sa in tunnel.seals if not sa.retiring]
        if not seals:
            raise Refused(f"{tunnel.id} is not up, so there is nothing to rekey")
        for placed in seals:
            try:
                await self.renew(tunnel, placed)
            except ProtegoError as error:
                self._sad.events.emit(
                    "rekey failed", tunnel=tunnel.id, node=placed.gpn, spi=placed.spi, reason=error
                )
                raise

    async def gather(self, tunnel: Tunnel) -> None:
        """Move the strands of a tunnel to one GPN: the death of a GPN has parted them. Raises Refused."""
        async with holding(tunnel.moving):
            if not tunnel.scattered:
                return
            to = self._sad.seat(tunnel)
            if to is None:
                raise Refused(f"no GPN could take {tunnel.id}")
            await self._move_all(tunnel, to)

    # ---- what can be asked

    def _check(self, tunnel: Tunnel, to: str) -> Placed:
        """The SA to be moved. Raises NotFound or Refused."""
        if not find_gpn(self._sad.fabric, to).connected:
            raise Refused(f"{to} is down")
        if to in self._sad.seats.draining:
            raise Refused(f"{to} is draining and takes no tunnels; `protego undrain {to}` changes that")
        if away := cut_off(self._sad.fabric):
            raise Refused(
                f"{min(away)} is cut off from the GMN and may still pass packets on as it last knew; "
                f"nothing is moved until it is back"
            )
        sealing = tunnel.sealing
        if sealing is None or sealing.retiring:
            raise Refused(f"{tunnel.id} is not up, so there is nothing to move")
        elsewhere = next((sa for sa in tunnel.seals if sa.gpn != to), None)
        if elsewhere is None:
            raise Refused(f"{tunnel.id} is on {to} already")
        return elsewhere

    # ---- the procedure

    async def _move_all(self, tunnel: Tunnel, to: str) -> Times:
        """Move a tunnel, with as many strands as it has when nothing that its peer began is open."""
        await passed(self._sad.gathered)
        tunnel.target = to
        try:
            sealing = await self._rekeying.settled(tunnel)
            if tunnel.several:
                return await self._together(tunnel, to)
            return await self._rekey_onto(tunnel, sealing, to, anew=False)
        finally:
            tunnel.target = None
            tunnel.changed()

    async def _move(self, tunnel: Tunnel, sealing: Placed, to: str, *, anew: bool) -> Times:
        """Rekey the sealing SA of one strand, onto a GPN where the others are, too."""
        tunnel.target = to
        try:
            return await self._rekey_onto(tunnel, sealing, to, anew)
        finally:
            tunnel.target = None

    async def _rekey_onto(self, tunnel: Tunnel, sealing: Placed, to: str, anew: bool) -> Times:
        start = trio.current_time()
        spi = self._sad.spis.allocate()
        try:
            old, event = await self._rekeying.rekey(tunnel, sealing, to, spi, anew)
        except ProtegoError:
            await self._rekeying.undo(spi, to)
            raise
        rekeyed = trio.current_time() - start
        crash_point("migration.rekeyed")
        if event is None:
            await self._rekeying.undo(spi, to)
            distributed = await self._completed_by_peer(tunnel, old, to)
        else:
            distributed = await self._answered(tunnel, old, event, to)
        return Times(rekeyed, distributed - start, trio.current_time() - start)

    async def _answered(self, tunnel: Tunnel, old: Placed, event: ChildEstablished, to: str) -> float:
        """Steps 3 to 7; when the tunnel began to seal on `to`."""
        new = await self._place(tunnel, event, old, to)
        if event.redundant:  # it opens, should the peer use it, until the engine has deleted it
            await self._sad.installed(new)
            return await self._completed_by_peer(tunnel, old, to)
        new.replaces = old.spi
        distributed = await self._replace(tunnel, new, old)
        if new.gpn != to:
            raise Refused(f"{to} is gone or refuses the SA; {tunnel.id} is on {new.gpn} now, under a new one")
        return distributed

    async def _replace(self, tunnel: Tunnel, new: Placed, old: Placed) -> float:
        crash_point("migration.placed")
        await passed(self._sad.gathered)
        with Parting(self._sad, self._driver, tunnel, [new], [old]) as parting:
            distributed = await self._distribute(tunnel, new, old)
            if old.seals:
                raise Refused(f"{tunnel.id}: the peer deleted the new SA at once; it stays on {old.gpn}")
            parting.begin()
        crash_point("migration.distributed")
        await parting.end()
        new.replaces = None
        crash_point("migration.deleted")
        return distributed

    # ---- several strands

    async def _together(self, tunnel: Tunnel, to: str) -> Times:
        """Move all strands that are not on `to` at once, or none. Raises ProtegoError."""
        start = trio.current_time()
        begun = list(tunnel.strands)
        try:
            for strand in begun:
                sealing = strand.sealing
                if sealing is not None and sealing.gpn != to and strand.aside is None:
                    await self._set_aside(tunnel, sealing, to)
                    crash_point("migration.aside")
            rekeyed = trio.current_time() - start
            news = [strand.aside for strand in begun if strand.aside is not None]
            stay = [sa for sa in tunnel.seals if sa.strand.aside is None]
            settled = all(strand.successor is None for strand in tunnel.strands)
            if not news or not settled or any(sa.gpn != to for sa in (*news, *stay)):
                raise Refused(f"{tunnel.id}: its peer has changed it meanwhile; try again")
            olds = [old for new in news if (old := new.strand.sealing) is not None]
            with Parting(self._sad, self._driver, tunnel, news, olds) as parting:
                await self._sad.flip_together(tunnel, news)
                parting.begin()
        except ProtegoError:
            await self._take_back(tunnel)
            raise
        tunnel.changed()
        distributed = trio.current_time() - start
        crash_point("migration.distributed")
        await parting.end()
        for new in news:
            new.replaces = None
        crash_point("migration.deleted")
        return Times(rekeyed, distributed, trio.current_time() - start)

    async def _set_aside(self, tunnel: Tunnel, sealing: Placed, to: str) -> None:
        """Rekey the sealing SA of one strand onto `to`, where the new SA stands and does not seal yet."""
        spi = self._sad.spis.allocate()
        try:
            old, event = await self._rekeying.rekey(tunnel, sealing, to, spi, anew=False)
            if event is None:
                raise Refused(f"{tunnel.id}: a rekey of the peer came between; try again")
        except ProtegoError:
            await self._rekeying.undo(spi, to)
            raise
        crash_point("migration.rekeyed")
        await self._stand_aside(tunnel, old, event, to)

    async def _stand_aside(self, tunnel: Tunnel, old: Placed, event: ChildEstablished, to: str) -> None:
        new = await self._place(tunnel, event, old, to)
        if not event.redundant:
            new.replaces = old.spi
        await self._sad.installed(new)
        tunnel.stand(new)
        if event.redundant:  # it opens, should the peer use it, until the engine has deleted it
            raise Refused(f"{tunnel.id}: a rekey of the peer came between; try again")

    async def _take_back(self, tunnel: Tunnel) -> None:
        """Delete what stands aside: the tunnel stays where it is."""
        for strand in tunnel.strands:
            new = strand.aside
            if new is None:
                continue
            new.replaces = None
            await self._sad.leave(tunnel, new)
            await delete(self._sad, self._driver, tunnel, new)
        tunnel.changed()

    # ---- after a restart of the GMN

    async def resume_together(
        self, tunnel: Tunnel, to: str, asked: Sequence[tuple[int, Asked, Outcome]]
    ) -> None:
        """Go on with a move of several strands that an earlier life has begun; `asked`: requests whose
        answers have not been acted on.
        """
        async with holding(tunnel.moving):
            tunnel.target = to
            try:
                for spi, request, outcome in asked:
                    try:
                        event = await outcome()
                    except ProtegoError:
                        await self._rekeying.undo(spi, request.gpn)
                        continue
                    await passed(self._sad.gathered)
                    old = tunnel.sas.get(request.replaces or 0)
                    if old is None:
                        await self._rekeying.undo(spi, request.gpn)
                        await self._driver.delete_child(spi)
                    else:
                        await self._stand_aside(tunnel, old, event, request.gpn)
                await passed(self._sad.gathered)
                await self._together(tunnel, to)
            except ProtegoError as error:
                await self._take_back(tunnel)
                self._sad.events.emit("migration failed", tunnel=tunnel.id, node=to, reason=error)
            finally:
                tunnel.target = None
                tunnel.changed()

    async def resume(self, tunnel: Tunnel, spi: int, asked: Asked, outcome: Outcome) -> None:
        """Go on with a rekey that an earlier life has begun: `outcome` is the peer's answer to it."""
        async with holding(tunnel.moving):
            tunnel.target = asked.gpn
            try:
                event = await outcome()
                old = tunnel.sas.get(asked.replaces or 0)
                if old is not None and not old.seals and not event.redundant:
                    await passed(self._sad.gathered)
                    # The peer's own rekey has put another one there.
                    old = await self._rekeying.settled(tunnel, old.strand)
                old = old or tunnel.sealing
                if old is None:
                    await self._rekeying.undo(spi, asked.gpn)
                    await self._driver.delete_child(spi)
                else:
                    await self._answered(tunnel, old, event, asked.gpn)
            except ProtegoError as error:
                await self._rekeying.undo(spi, asked.gpn)
                self._sad.events.emit("migration failed", tunnel=tunnel.id, node=asked.gpn, reason=error)
            finally:
                tunnel.target = None

    async def finish(self, tunnel: Tunnel, new: Placed) -> None:
        """Go on where an earlier life had placed the new SA, at the latest to the DELETE of the old one."""
        async with holding(tunnel.moving):
            old = tunnel.sas.get(new.replaces or 0)
            try:
                if new.retiring:
                    return
                if old is not None and new.strand.sealing in (old, new):
                    await self._replace(tunnel, new, old)
                    return
                tunnel.stand(new)
                new.replaces = None
                if new.strand.sealing is None:
                    await self._sad.flip_whole(tunnel, new)
            except ProtegoError as error:
                self._sad.events.emit("migration failed", tunnel=tunnel.id, node=new.gpn, reason=error)

    # ---- its steps

    async def _place(self, tunnel: Tunnel, event: ChildEstablished, old: Placed, to: str) -> Placed:
        """The new SA, with its packets going to where the old one's are known to come from, as long as the
        path of the IKE_SA is the same. Raises Refused when the IKE_SA is gone.
        """
        child = event.child
        if event.ike not in tunnel.ikes:
            await self._rekeying.undo(child.spi_in, to)
            raise Refused(f"{tunnel.id} went down meanwhile")
        peer = old.peer if (child.path, child.raw) == (old.child.path, old.child.raw) else child.peer
        return self._sad.place(tunnel, child, event.ike, to, peer, strand=old.strand)

    async def _distribute(self, tunnel: Tunnel, new: Placed, old: Placed) -> float:
        """Steps 3 and 4; when they were done. If the target has gone down, the SA goes elsewhere, back to the
        old GPN if possible: the peer counts on it by now.
        """
        try:
            if not new.going and not new.strand.flipping.locked():  # whose Rule may be of the same GPN
                self._sad.nodes.rule(new, binding=False)  # in one update with the SA
            self._sad.nodes.tell((new.gpn, old.gpn))
            stored = self._sad.journal.storing()
            await self._sad.nodes.holds(new.gpn, *new.keys)
            tunnel.stand(new)
            crash_point("migration.installed")
            await passed(stored)  # before a GEN routes there
            await self._sad.flip(tunnel, new, ours=True)
        except ProtegoError as error:
            log.warning("new SA not on its GPN tunnel=%s node=%s reason=%s", tunnel.id, new.gpn, error)
            tunnel.target = None
            to = self._sad.seat(tunnel) or old.gpn
            await self._sad.turn(new, to)  # it may live, and open what GINs pass on: so first no more of it
            await self._recovery.settle_floors([new])
            if new.retiring:
                self._sad.nodes.unpark(new.spi, to)
                raise Refused(f"{tunnel.id} went down meanwhile") from error
            self._sad.move(tunnel, new, to)
            await self._sad.nodes.let_go(new.gpn)
            tunnel.stand(new)
            await self._sad.flip(tunnel, new)
        return trio.current_time()

    async def _completed_by_peer(self, tunnel: Tunnel, old: Placed, to: str) -> float:
        """The peer's own SA won (RFC 7296 2.8.1): wait until it seals, and until the peer has deleted the old
        one; when it began to seal.
        """
        with trio.move_on_after(SETTLING):
            await tunnel.until(lambda: not old.seals and tunnel.settled)
        sealing = old.strand.sealing
        if sealing is None or sealing is old or sealing.gpn != to:
            raise Refused(f"{tunnel.id}: a rekey of the peer came between and was not completed; try again")
        sealed = trio.current_time()
        with trio.move_on_after(SETTLING):
            await tunnel.until(lambda: old.retiring)
        return sealed
