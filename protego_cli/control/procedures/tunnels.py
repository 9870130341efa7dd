"""What happens to tunnels: what their peers ask for and delete, where they move to, what GPNs see of them.

1. `ChildOffered`: choose the GPN, install the SA, `accept`. A tunnel's first SA seals at once; one that
   replaces another seals from the peer's first packet on it, from the DELETE of the old one (RFC 7296 2.8),
   or after `OVERDUE` seconds. One that came with a new IKE_SA ends the old IKE_SA then. One that came beside
   others of its IKE_SA takes over from those whose traffic it could carry, so they are deleted then; from the
   rest it stands apart, a strand of its own (`tunnel.Strand`) on the same GPN, and seals as a successor does
   where one of them may have had its packets until then, else at once.
2. `ChildDeleteOffered`: seal on another SA, pass the barrier, `accept`, let the SA linger.
3. `IkeDeleteOffered`: the same for all SAs of an IKE_SA; another IKE_SA's SA seals, if there is one.
   `IkeClosed`: its SAs retire.
4. `PeerMoved`, `PeerAddress`: the peer's SAs seal towards its new address.
5. An IKE_SA that has no CHILD_SA for `CHILDLESS` seconds is closed, so that the peer can begin anew.

`handle` and the reports decide without an await; what has to be waited for runs in a task of its own.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from typing import Final

import trio

from protego_cli.control.channel.node_messages import FirstPacket, PeerAddress, Report
from protego_cli.control.packing.load import Passed
from protego_cli.control.packing.offered import Offers
from protego_cli.control.procedures.driver import Driver, ExchangeError
from protego_cli.control.procedures.parting import delete
from protego_cli.control.procedures.rekeying import tell_ike_rekeyed
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import STRANDS, Placed, Strand, Tunnel, carries, endpoint, overlap
from protego_cli.control.waiting import holding, passed
from protego_cli.errors import NoAdditionalSas, ProtegoError, ProtocolError, TemporaryFailure
from protego_cli.ike.events import (
    CLOSED_BY_PEER,
    CLOSED_BY_US,
    ChildDeleted,
    ChildDeleteOffered,
    ChildOffered,
    Event,
    IkeClosed,
    IkeDeleteOffered,
    IkeEstablished,
    IkeRekeyed,
    Negotiated,
    NegotiationFailed,
    PeerMoved,
)
from protego_cli.ike.record import Negotiation
from protego_cli.wire.notifies import notify_name

log = logging.getLogger(__name__)

OVERDUE: Final = 10.0  # seconds after which a successor seals although its peer sent nothing on it
REPLACED: Final = 1.0  # the same where a new IKE_SA has brought it: its peer may have lost the old one
UNUSED: Final = 2 * OVERDUE  # seconds to wait for a tunnel to settle
CHILDLESS: Final = 2.0
ASIDE: Final = 3.0  # seconds for which a DELETE waits; a peer asks again, and goes on asking
SEATS: Final = 3  # GPNs that are tried for one request


class Tunnels:
    def __init__(self, sad: Sad, driver: Driver, tasks: trio.Nursery) -> None:
        """Makes itself the driver's listener. `tasks` runs what has to be waited for."""
        self._sad = sad
        self._driver = driver
        self._tasks = tasks
        self._offers = Offers(self._tunnel_of)
        driver.listener = self.handle

    # ---- what the engine says

    def handle(self, event: Event) -> None:
        """An event that no command waits for; never blocks."""
        match event:
            case NegotiationFailed():
                self._negotiation_failed(event)
            case Negotiated():
                self._negotiated(event.record)
            case IkeEstablished():
                if tunnel := self._sad.tunnels.get(event.tunnel):
                    self._ike_established(tunnel, event)
                else:
                    self._tasks.start_soon(self._driver.close, event.ike)
            case ChildOffered():
                tunnel = self._sad.tunnels.get(event.child.tunnel)
                if tunnel is None or event.ike not in tunnel.ikes:
                    self._driver.reject(event.ticket, TemporaryFailure("the IKE_SA is about to be closed"))
                else:
                    tunnel.offers += 1
                    tunnel.changed()
                    self._tasks.start_soon(self._offered, tunnel, event)
            case ChildDeleteOffered():
                if found := self._sad.find(event.spi_in):
                    self._tasks.start_soon(self.deleted, *found, event.ticket)
                else:
                    self._driver.accept(event.ticket)
            case ChildDeleted():  # by the engine itself: the redundant one of two that crossed
                if found := self._sad.find(event.spi_in):
                    self._tasks.start_soon(self.deleted, *found, None)
            case IkeDeleteOffered():
                if tunnel := self._sad.tunnels.get(event.tunnel):
                    self._tasks.start_soon(self._ike_deleted, tunnel, event)
                else:
                    self._driver.accept(event.ticket)
            case IkeClosed():
                if tunnel := self._sad.tunnels.get(event.tunnel):
                    self._ike_closed(tunnel, event)
            case IkeRekeyed():
                tell_ike_rekeyed(self._sad.events, event)
            case PeerMoved(path=path):
                if tunnel := self._sad.tunnels.get(event.tunnel):
                    self._peer_moved(tunnel, event.ike, (path.remote, path.remote_port))
            case _:
                log.debug("outcome nobody waits for event=%s", type(event).__name__)

    def _negotiation_failed(self, event: NegotiationFailed) -> None:
        self._sad.events.emit(
            "negotiation failed",
            tunnel=event.tunnel,
            peer=event.path.remote,
            notify=notify_name(event.notify),
            reason=event.detail,
        )
        tunnel = self._sad.tunnels.get(event.tunnel or "")
        if tunnel is not None:
            tunnel.error = event.detail

    def _negotiated(self, record: Negotiation) -> None:
        """Remember it for `protego explain`. What anybody may send hides nothing that a peer has proven."""
        now = self._sad.events.clock()
        tunnel = self._sad.tunnels.get(record.tunnel or "")
        if tunnel is None:
            self._sad.strangers.add(now, record)
            return
        if record.exchange == "CREATE_CHILD_SA":
            sort = "rekey"
        else:
            sort = "handshake" if record.authentic or record.initiator else "unproven"
        tunnel.negotiations[sort] = now, record

    def _ike_established(self, tunnel: Tunnel, event: IkeEstablished) -> None:
        if tunnel.held:  # taken down while we dialled
            self._tasks.start_soon(self._driver.close, event.ike)
            return
        tunnel.ikes.add(event.ike)
        tunnel.ikes_since[event.ike] = self._sad.events.clock()
        tunnel.changed()
        self._sad.events.emit(
            "IKE_SA up",
            tunnel=tunnel.id,
            peer=event.path.remote,
            suite=event.suite,
            initiator="gateway" if event.initiator else "peer",
        )
        self._tasks.start_soon(self.close_if_childless, tunnel, event.ike)

    async def _ike_deleted(self, tunnel: Tunnel, event: IkeDeleteOffered) -> None:
        """A peer has dialled anew, or goes. It opens nothing more once it has our answer."""
        if event.ike in tunnel.ikes:
            tunnel.replaced.add(event.ike)
        await self._sad.leave(tunnel, *tunnel.children(event.ike))
        self._driver.accept(event.ticket)

    def _ike_closed(self, tunnel: Tunnel, event: IkeClosed) -> None:
        self._sad.events.emit("IKE_SA closed", tunnel=tunnel.id, reason=event.reason)
        tunnel.ikes.discard(event.ike)
        tunnel.ikes_since.pop(event.ike, None)
        tunnel.replaced.discard(event.ike)
        if not tunnel.ikes and event.reason not in (CLOSED_BY_US, CLOSED_BY_PEER):
            tunnel.error = event.reason
        tunnel.changed()
        leaving = [sa for sa in tunnel.sas.values() if sa.ike == event.ike and not sa.retiring]
        for placed in leaving:
            self._sad.retire(tunnel, placed)
        if leaving:
            self._tasks.start_soon(self._sad.leave, tunnel, *leaving)

    # ---- the peer asks for a CHILD_SA

    async def _offered(self, tunnel: Tunnel, event: ChildOffered) -> None:
        beside = event.replaces is None and any(sa.ike == event.ike for sa in tunnel.seals)
        placed: Placed | None = None
        error: ProtocolError = TemporaryFailure("no GPN could take the tunnel")
        try:
            placed = await self._install_offer(tunnel, event)
        except ProtocolError as refusal:
            error = refusal
        finally:
            tunnel.offers -= 1
            tunnel.changed()
        if placed is None:
            await self._reject(tunnel, event, error)
            return
        if tunnel.scattered:
            self._sad.scattered(tunnel)
        if placed.strand.successor is placed:
            await self.succeed(tunnel, placed)
        elif len(tunnel.ikes) > 1:
            await trio.sleep(REPLACED)
            await self.end_unused(tunnel)
        if beside:
            await self.delete_others(tunnel, event.ike, placed)

    def _strand(self, tunnel: Tunnel, event: ChildOffered) -> Strand:
        """The strand of what the peer asks for. Raises ProtocolError when it cannot have it, or not now: a
        move of several strands, or a move and a strand that begins, must not cross.
        """
        old = None if event.replaces is None else tunnel.sas.get(event.replaces)
        strand = old.strand if old is not None else tunnel.strand_for(event.child, event.ike)
        if strand is None:
            raise NoAdditionalSas(f"the tunnel has {STRANDS} CHILD_SAs with selectors of their own already")
        seals = tunnel.seals
        if strand.sealing is None and seals:
            bound = {
                sa.gpn for sa in (*seals, *(each.successor for each in tunnel.strands)) if sa is not None
            }
            crossing = len(bound | ({tunnel.target} if tunnel.target else set())) > 1
        else:
            ikes = {sa.ike for sa in seals}
            crossing = tunnel.several and event.ike in ikes and tunnel.target not in (None, seals[0].gpn)
        if crossing:
            raise TemporaryFailure("the tunnel is being moved")
        return strand

    async def _install_offer(self, tunnel: Tunnel, event: ChildOffered) -> Placed | None:
        """Install the SA and accept. None when no GPN takes it, or its IKE_SA is gone. Raises ProtocolError
        when the peer cannot have it.
        """
        sad = self._sad
        await passed(sad.gathered)
        placed: Placed | None = None
        for _ in range(SEATS):
            gpn = await sad.seat_soon(tunnel)
            if gpn is None or event.ike not in tunnel.ikes:
                break
            if placed is None:
                strand, here = self._strand(tunnel, event), tunnel.sealing
                if strand.sealing is None and here and here.gpn in sad.fabric.connected("gpn"):
                    gpn = here.gpn
                placed = sad.place(tunnel, event.child, event.ike, gpn, strand=strand)
            elif placed.gpn != gpn:
                sad.move(tunnel, placed, gpn)  # its peer has not heard of it, so nothing was opened
                sad.steer(placed)
            first = all(sa is placed or _apart(sa, placed) for sa in tunnel.seals)
            try:
                if first:
                    await sad.install_silent(tunnel, placed)
                else:
                    placed.strand.successor = placed
                    await sad.installed(placed)
            except ProtegoError as error:
                log.warning("SA not installed tunnel=%s node=%s reason=%s", tunnel.id, gpn, error)
                continue
            if event.ike in tunnel.ikes:
                self.stand(tunnel, placed)
                if event.replaces is not None:
                    self._sad.events.emit(
                        "rekeyed", tunnel=tunnel.id, node=placed.gpn, spi=placed.spi, initiator="peer"
                    )
                answer = self._driver.prepare_answer(event.ticket)
                if first:
                    await self._seal_first(tunnel, placed)
                answer()
                return placed
        if placed is not None:
            sad.forget(tunnel, placed)
        return None

    async def _seal_first(self, tunnel: Tunnel, placed: Placed) -> None:
        """Before its peer hears of the SA, which may be answered at once."""
        try:
            await self._sad.begin_sealing(tunnel, placed)
        except ProtegoError as error:  # it seals there as soon as the GPN is back
            log.warning("SA not sealing yet tunnel=%s node=%s reason=%s", tunnel.id, placed.gpn, error)

    async def _reject(self, tunnel: Tunnel, event: ChildOffered, error: ProtocolError) -> None:
        if event.ike in tunnel.ikes:
            tunnel.error = str(error)
            self._sad.events.emit("request rejected", tunnel=tunnel.id, reason=tunnel.error)
            self._driver.reject(event.ticket, error)
            if not tunnel.children(event.ike):  # it is of no use so: let the peer dial anew
                await self._driver.close(event.ike)
        else:  # void, unless the tunnel was withdrawn: then the IKE_SA waits for this answer, to be closed
            self._driver.reject(event.ticket, TemporaryFailure("the tunnel is no more"))
        await self._sad.nodes.steered()

    def stand(self, tunnel: Tunnel, placed: Placed) -> None:
        """The SA of a new tunnel, or of the peer's asking, is acknowledged."""
        tunnel.stand(placed)
        self._sad.seats.stood(placed.gpn)
        self._sad.events.emit(
            "SA up",
            tunnel=tunnel.id,
            node=placed.gpn,
            spi=placed.spi,
            suite=placed.child.suite,
            peer=endpoint(placed.peer),
        )

    async def succeed(self, tunnel: Tunnel, placed: Placed, *, answered: bool = True) -> None:
        """Let a successor seal at last, and end the IKE_SA whose SA it has replaced; other strands have a
        moment to get their SA of the new one. Not `answered`: the peer may have to ask again to hear of it.
        """
        strand = placed.strand
        old = strand.sealing
        before = [old] if old is not None else [sa for sa in tunnel.seals if overlap(sa.child, placed.child)]
        again = not answered or any(sa.ike == placed.ike for sa in before)
        patience = OVERDUE if again else REPLACED
        with trio.move_on_after(patience if tunnel.seals else 0):
            await tunnel.until(
                lambda: strand.successor is not placed or (old is not None and strand.sealing is None)
            )
        if strand.successor is placed:
            await self._sad.flip_whole(tunnel, placed)
        if old is not None and old.ike != placed.ike and {old.ike, placed.ike} <= tunnel.ikes:
            with trio.move_on_after(REPLACED):
                await tunnel.until(lambda: all(sa.ike != old.ike for sa in tunnel.seals))
            await self.end_replaced(tunnel, old.ike)
        await self.end_unused(tunnel)

    async def end_unused(self, tunnel: Tunnel) -> None:
        """A peer that dials again and again leaves several IKE_SAs; once all is settled, those go of whose
        CHILD_SAs none seals.
        """
        with trio.move_on_after(UNUSED):
            await tunnel.until(lambda: tunnel.settled and not tunnel.target)
        for ike in tunnel.ikes - {sa.ike for sa in tunnel.seals}:
            if tunnel.settled and tunnel.seals and tunnel.children(ike):
                await self.end_replaced(tunnel, ike)

    async def end_replaced(self, tunnel: Tunnel, ike: int) -> None:
        """An IKE_SA goes that a newer one has replaced, once all that its SAs sealed has been sent."""
        if ike not in tunnel.ikes or ike in tunnel.replaced:
            return
        tunnel.replaced.add(ike)
        self._sad.events.emit("IKE_SA replaced", tunnel=tunnel.id, reason="a newer one stands")
        await self._sad.leave(tunnel, *tunnel.children(ike))
        await self._driver.close(ike)

    async def delete_others(self, tunnel: Tunnel, ike: int, by: Placed | None = None) -> None:
        """Delete the SAs of this IKE_SA whose traffic others of it carry now, once their packets have
        arrived: those in whose strand another one seals, and those that `by` has taken over from.
        """
        await tunnel.until(lambda: tunnel.settled)
        async with holding(tunnel.moving):
            others = [sa for sa in tunnel.children(ike) if sa.standing and _superfluous(sa, by)]
            if not others:
                return
            await self._sad.leave(tunnel, *others)
            try:
                await self._driver.check_alive(ike)
            except ExchangeError as error:
                log.warning("round trip failed tunnel=%s reason=%s", tunnel.id, error)
            for placed in others:
                await delete(self._sad, self._driver, tunnel, placed)

    async def deleted(self, tunnel: Tunnel, placed: Placed, ticket: int | None) -> None:
        """A CHILD_SA goes: seal on another, answer if the peer asked, let it linger. Where that other waits
        for the rest of the tunnel to move, so does this.
        """
        with trio.move_on_after(ASIDE):
            await tunnel.until(lambda: not (tunnel.several and placed.seals and placed.strand.aside))
        await self._sad.leave(tunnel, placed)
        if ticket is not None:
            self._driver.accept(ticket)
        self._sad.retire(tunnel, placed)
        await self.close_if_childless(tunnel, placed.ike)

    async def expire(self, tunnel: Tunnel, placed: Placed, limit: str) -> None:
        """An SA is at its hard limit and was not rekeyed: nothing may be sealed on it any more."""
        self._sad.events.emit("SA expired", tunnel=tunnel.id, node=placed.gpn, spi=placed.spi, reason=limit)
        await self._sad.leave(tunnel, placed)
        await delete(self._sad, self._driver, tunnel, placed)
        await self.close_if_childless(tunnel, placed.ike)

    async def close_if_childless(self, tunnel: Tunnel, ike: int) -> None:
        await trio.sleep(CHILDLESS)
        if ike in tunnel.ikes and not (
            tunnel.children(ike) or tunnel.offers or tunnel.dialling or tunnel.target
        ):
            log.info("IKE_SA without CHILD_SA is closed tunnel=%s", tunnel.id)
            await self._driver.close(ike)

    # ---- what the nodes say

    def _tunnel_of(self, of: int | str) -> str | None:
        """The tunnel of an inbound SPI or of a strand's name."""
        if isinstance(of, int):
            found = self._sad.find(of)
            return found[0].id if found is not None else None
        name = of.partition("#")[0]
        return name if name in self._sad.tunnels else None

    def reported(self, gpn: str, report: Report) -> None:
        passed = []
        for usage in report.usage:
            if found := self._sad.find(usage.spi_in, gpn):
                tunnel, placed = found
                placed.marks_complete = True
                if (totals := placed.meter.read(usage)) is not None:
                    passed.append(Passed(tunnel.id, placed.child.suite, totals))
        now = trio.current_time()
        loads = self._sad.seats.loads
        loads.calibrated(gpn, report.costs)
        loads.report(gpn, report.cpu, passed, now, overflow=report.counters.get("gpn_drop_overflow", 0))
        for coming in self._offers.report(gpn, report.offered, now):
            loads.offer(*coming, now)
        self._sad.nodes.tell(self._sad.limits.report(gpn, passed, now))

    def first_packet(self, gpn: str, event: FirstPacket) -> None:
        """The peer uses a new SA: so may we (RFC 7296 2.8)."""
        if found := self._sad.find(event.spi_in, gpn):
            tunnel, placed = found
            if placed.strand.successor is placed:
                self._tasks.start_soon(self._sad.flip_whole, tunnel, placed)

    def peer_address(self, gpn: str, event: PeerAddress) -> None:
        """Authentic packets come from elsewhere: so ours go there, IKE's as well (RFC 7296 2.23)."""
        found = self._sad.find(event.spi_in, gpn)
        try:
            address = str(ipaddress.ip_address(event.address))
        except ValueError:
            return
        if found is not None and 0 < event.port < 1 << 16:
            tunnel, placed = found
            if self._driver.follow(placed.ike, address, event.port):
                self._peer_moved(tunnel, placed.ike, (address, event.port))

    def _peer_moved(self, tunnel: Tunnel, ike: int, peer: tuple[str, int]) -> None:
        moved = [sa for sa in tunnel.sas.values() if sa.ike == ike and sa.peer != peer]
        if not moved:
            return
        self._sad.events.emit("peer moved", tunnel=tunnel.id, peer=endpoint(peer))
        for placed in moved:
            placed.peer = peer
            self._sad.nodes.put_sa(tunnel, placed)
            self._sad.steer(placed)
        self._tasks.start_soon(self._deliver, {placed.gpn for placed in moved})

    async def _deliver(self, gpns: Iterable[str]) -> None:
        """What was decided reaches the GINs and these GPNs."""
        await self._sad.nodes.steered()
        for gpn in gpns:
            await self._sad.nodes.let_go(gpn)


def _apart(placed: Placed, new: Placed) -> bool:
    """Whether no packet that the new SA is to seal is this one's until then."""
    return placed.strand is not new.strand and not overlap(placed.child, new.child)


def _superfluous(placed: Placed, by: Placed | None) -> bool:
    """Whether another SA of its IKE_SA carries its traffic: of its strand, or else `by`."""
    strand = placed.strand
    if placed.seals:
        return by is not None and by.seals and by is not placed and carries(by.child, placed.child)
    sealing = strand.sealing
    return placed is not strand.successor and sealing is not None and sealing.ike == placed.ike
