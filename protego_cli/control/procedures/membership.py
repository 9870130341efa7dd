"""What the GMN does when nodes come, go and report: the fabric's observer, one line per matter."""

from __future__ import annotations

import math
from typing import Final

import trio

from protego_cli.control.channel.fabric import Reported
from protego_cli.control.channel.node_messages import FirstPacket, PeerAddress, RangeLow, Report
from protego_cli.control.procedures.ageing import Ageing
from protego_cli.control.procedures.recovery import Recovery
from protego_cli.control.procedures.renewal import Renewals
from protego_cli.control.procedures.tunnels import Tunnels
from protego_cli.control.sas.sad import Sad

APART: Final = 5.0  # seconds that the clocks of a node and of the GMN may differ
LASTING: Final = 10.0  # seconds for which they do before it is told: reports may have waited for either


class Membership:
    """A `FabricObserver`."""

    def __init__(
        self,
        sad: Sad,
        tunnels: Tunnels,
        recovery: Recovery,
        renewals: Renewals,
        ageing: Ageing,
    ) -> None:
        self._sad = sad
        self._tunnels = tunnels
        self._recovery = recovery
        self._renewals = renewals
        self._ageing = ageing
        self._restarted: set[str] = set()  # GPNs whose tunnels are to be rekeyed once they are up
        self._astray: dict[str, float] = {}  # since when a node's clock differs; infinity once it is told

    async def node_connecting(self, node: str, restarted: bool) -> None:
        if not restarted:
            return
        self._sad.events.emit("node restarted", node=node)
        known = self._sad.fabric.node(node)
        role = known.role if known else None
        if role == "gin":
            self._recovery.gin_restarted()
        elif role == "gpn":
            self._restarted.add(node)
            self._sad.seats.loads.forget_gpn(node)
            await self._recovery.gpn_restarted(node)

    async def node_up(self, node: str) -> None:
        self._sad.events.emit("node up", node=node)
        self._sad.membership_changed()
        self._look_for_refused(node)
        self._look_for_raw(node)
        if node in self._restarted:
            self._restarted.discard(node)
            self._renewals.renew_all(node)

    def _look_for_refused(self, node: str) -> None:
        """It has taken its Sync, but perhaps not all of it."""
        known = self._sad.fabric.node(node)
        if known is not None and known.refused:
            reason = next(iter(known.refused.values()))
            self._sad.events.emit("records refused", node=node, reason=reason, records=len(known.refused))

    def _look_for_raw(self, node: str) -> None:
        """A GIN that cannot do without UDP has come to tunnels that do, which a rekey does not change."""
        nodes = self._sad.fabric.nodes()
        if not any(each.name == node and each.role == "gin" and each.raw_esp is False for each in nodes):
            return
        raw = {tunnel.id for tunnel, placed in self._sad.all() if placed.child.raw}
        if raw:
            reason = "it has no CAP_NET_RAW: give it the capability, or take these tunnels down and up"
            self._sad.events.emit("raw ESP missing", node=node, tunnels=len(raw), reason=reason)

    def _look_at_clock(self, node: str, clock: float) -> None:
        """A GPN ends SAs by its own clock: one that is ahead by a lifetime drops all that it should carry."""
        ahead = clock - self._sad.events.clock() if clock else 0.0
        if abs(ahead) <= APART:
            self._astray.pop(node, None)
            return
        now = trio.current_time()
        if now - self._astray.setdefault(node, now) >= LASTING:
            self._astray[node] = math.inf
            way = "ahead of" if ahead > 0 else "behind"
            reason = f"{abs(ahead):.0f} s {way} the GMN's, so SAs end at another time there: use NTP"
            self._sad.events.emit("clock differs", node=node, reason=reason)

    async def node_down(self, node: str, reason: str = "") -> None:
        self._sad.events.emit("node down", node=node, reason=reason)
        self._sad.membership_changed()

    async def reported(self, node: str, request: Reported) -> None:
        match request:
            case Report():
                self._look_at_clock(node, request.clock)
                self._tunnels.reported(node, request)
                self._ageing.reported(node, request)
            case FirstPacket():
                self._tunnels.first_packet(node, request)
            case PeerAddress():
                self._tunnels.peer_address(node, request)
            case RangeLow():
                found = self._sad.find(request.spi_in, node)
                if found is not None and found[1].seals:
                    self._renewals.renew(*found)
