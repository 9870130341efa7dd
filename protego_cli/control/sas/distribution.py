"""How the GMN's decisions reach the data nodes: desired at once, acknowledged before anything relies on it.

Every change is first recorded for all nodes it concerns, without an await, so that two tasks can never send
their changes in another order than they decided. Then the caller waits for the acknowledgements it needs:

- a GPN must be there, and able to act on what the caller needs: `holds` raises NodeDown or Refused;
- a GIN or GEN that is not there gets the change with its next Sync, and nothing passes through it meanwhile
  that the change is for. It is not waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import trio

from protego_cli.config.model import Rate
from protego_cli.control.channel.desired_records import Park, Route, Steer
from protego_cli.control.channel.fabric import NodeDown, NodeState
from protego_cli.control.channel.message import Key
from protego_cli.control.packing.seats import Nodes
from protego_cli.control.sas.limits import Desires
from protego_cli.control.sas.records import route_record, rule_record, sa_record
from protego_cli.control.sas.tunnel import Placed, Strand, Tunnel
from protego_cli.errors import ProtegoError

log = logging.getLogger(__name__)

PATIENCE: Final = 5.0  # seconds for a barrier; well within what a peer waits for the answer to its DELETE
AGAIN: Final = 0.05  # seconds between looks for a GEN that is away


class DesiredState(Nodes, Desires, Protocol):
    """The part of `Fabric` that decides and delivers."""

    def node(self, name: str) -> NodeState | None: ...

    def push(self, node: str) -> None: ...

    async def applied(self, node: str, barriers: Sequence[str] = (), needs: Iterable[Key] = ()) -> None: ...

    async def marks(self, spis: Sequence[int]) -> dict[int, int]: ...


class Distribution:
    """Puts tunnels on GPNs, steers them at GINs, routes them at GENs."""

    def __init__(self, fabric: DesiredState, gins: Sequence[str], gens: Sequence[str]) -> None:
        self._fabric = fabric
        self._gins = tuple(gins)
        self._gens = tuple(gens)
        self._steers: dict[int, Steer] = {}  # what every GIN should hold
        self._routes: dict[str, Route] = {}  # what every GEN should hold, by strand

    def reach(self, gins: Sequence[str], gens: Sequence[str]) -> None:
        """The GINs and GENs that there are from now on; what the others hold, the new ones shall hold."""
        for gin in set(gins).difference(self._gins):
            self._fabric.desire(gin, put=self._steers.values())
        for gen in set(gens).difference(self._gens):
            self._fabric.desire(gen, put=self._routes.values())
        self._gins, self._gens = tuple(gins), tuple(gens)

    # ---- deciding, without an await

    def steer(self, spi: int, gpn: str, peer: tuple[str, int], ceiling: Rate | None = None) -> None:
        """Packets with this SPI go to this GPN, no more than `ceiling`; they are expected from `peer`."""
        self._steers[spi] = record = Steer(spi, gpn, *peer, ceiling)
        for gin in self._gins:
            self._fabric.desire(gin, put=(record,))

    def unsteer(self, spi: int) -> None:
        self._steers.pop(spi, None)
        for gin in self._gins:
            self._fabric.desire(gin, drop=(("steer", spi),))

    def park(self, spi: int, gpn: str) -> None:
        """Packets of an SPI whose keys will follow wait at this GPN."""
        self._fabric.desire(gpn, put=(Park(spi),))

    def unpark(self, spi: int, gpn: str) -> None:
        self._fabric.desire(gpn, drop=(("park", spi),))

    def put_sa(self, tunnel: Tunnel, placed: Placed) -> None:
        """The SA on its GPN, in the place of what was parked for it."""
        self._fabric.desire(placed.gpn, put=(sa_record(tunnel, placed),), drop=(("park", placed.spi),))

    def drop_sa(self, placed: Placed) -> None:
        self._fabric.desire(placed.gpn, drop=(("sa", placed.spi),))

    def rule(self, placed: Placed, *, binding: bool = True) -> None:
        """The strand's packets that reach this GPN are sealed on this SA. `binding`: a GEN may route there as
        soon as it has the Rule, so no new life may take it away.
        """
        strand = placed.strand
        if strand.ruled.get(placed.gpn) != placed.spi:
            strand.ruled = strand.ruled | {placed.gpn: placed.spi}
            strand.mark(binding=binding)
        self._fabric.desire(placed.gpn, put=(rule_record(placed),))

    def divert(self, placed: Placed, *, diverted: bool = True) -> None:
        """What VTEPs still send straight to the GPN of this SA is to go on to a GEN, for the tunnel is
        leaving; or no longer.
        """
        if placed.strand.ruled.get(placed.gpn) == placed.spi:
            self._fabric.desire(placed.gpn, put=(rule_record(placed, direct=not diverted),))

    def unrule(self, placed: Placed, *, binding: bool = True) -> None:
        """End the Rule of this SA on its GPN, if it has one still. Not `binding`: a new life may give it
        back, because the peer has the SA until something is stored.
        """
        strand = placed.strand
        if strand.ruled.get(placed.gpn) == placed.spi:
            strand.ruled = {gpn: spi for gpn, spi in strand.ruled.items() if gpn != placed.gpn}
            if binding:
                strand.mark()
            self._fabric.desire(placed.gpn, drop=(("rule", strand.name),))

    def route(self, tunnel: Tunnel, *placed: Placed) -> None:
        """The packets of these SAs' strands go to their GPN; a GEN learns of all of them at once."""
        records = [route_record(tunnel, sa) for sa in placed]
        self._routes.update((record.tunnel, record) for record in records)
        for gen in self._gens:
            self._fabric.desire(gen, put=records)

    def unroute(self, strand: Strand) -> None:
        self._routes.pop(strand.name, None)
        for gen in self._gens:
            self._fabric.desire(gen, drop=(("route", strand.name),))

    # ---- acknowledgements

    async def holds(self, gpn: str, *needs: Key) -> None:
        """Wait until a GPN acts on all that is desired of it. Raises NodeDown, or Refused when it cannot act
        on one of these records.
        """
        await self._fabric.applied(gpn, needs=needs)

    async def let_go(self, gpn: str) -> None:
        """The same for a change that a GPN which is gone needs not hear of."""
        await self._tolerantly(gpn)

    async def steered(self) -> None:
        """Wait until every GIN that is there steers as desired."""
        await self._all(self._gins)

    def announce(self, gpn: str) -> None:
        """This GPN and the GINs hear of what is desired of them; `placed` waits for that."""
        self.tell((gpn, *self._gins))

    async def placed(self, gpn: str, *needs: Key) -> None:
        """`holds` and `steered`, side by side. Raises NodeDown or Refused."""
        self.tell(self._gins)
        await self.holds(gpn, *needs)
        await self._all(self._gins)

    async def cleared(self, gpn: str) -> None:
        """`let_go` and `steered`, side by side."""
        await self._all((gpn, *self._gins))

    def tell(self, nodes: Iterable[str]) -> None:
        """Let nodes hear of what is desired of them, without waiting for it."""
        for node in nodes:
            self._fabric.push(node)

    def gone(self, gpns: Iterable[str]) -> None:
        """These GPNs and the GINs hear of what they need no more."""
        self.tell((*gpns, *self._gins))

    async def routed(self, behind: str | None = None) -> None:
        """Wait until every GEN that is there routes as desired, and all that went to the GPN `behind` before
        has been sealed and sent.

        A GEN that is late or cut off may go on passing packets to `behind`: it is asked again, or when it is
        back, for `PATIENCE` seconds. A GPN that is not there has nothing left to send.
        """
        if behind is None:
            await self._all(self._gens)
            return
        if len(self._gens) == 1:
            await self._pass_barrier(self._gens[0], behind)
            return
        async with trio.open_nursery() as nursery:
            for gen in self._gens:
                nursery.start_soon(self._pass_barrier, gen, behind)

    async def _pass_barrier(self, gen: str, behind: str) -> None:
        with trio.move_on_after(PATIENCE):
            while True:
                try:
                    await self._fabric.applied(gen, barriers=(behind,))
                except ProtegoError as error:
                    log.debug("barrier not passed node=%s reason=%s", gen, error)
                else:
                    return
                if behind not in self._fabric.connected("gpn") or not self._runs(gen):
                    return
                await trio.sleep(AGAIN)
                while gen not in self._fabric.connected("gen"):  # noqa: ASYNC110 - rare, and bounded
                    await trio.sleep(AGAIN)
        log.warning("barrier given up node=%s gpn=%s", gen, behind)

    def _runs(self, name: str) -> bool:
        """Whether a node was ever there, so that it may pass packets on now."""
        node = self._fabric.node(name)
        return node is not None and node.boot is not None

    async def everywhere(self) -> None:
        """Wait until every node that is there acts on all that is desired of it."""
        await self._all([node.name for node in self._fabric.nodes() if node.connected])

    async def _all(self, nodes: Sequence[str]) -> None:
        self.tell(nodes)
        for node in nodes:
            await self._tolerantly(node)

    async def _tolerantly(self, node: str) -> None:
        try:
            await self._fabric.applied(node)
        except NodeDown as error:
            log.debug("change waits for a sync node=%s reason=%s", node, error)
        except ProtegoError as error:
            log.warning("change not confirmed node=%s reason=%s", node, error)
