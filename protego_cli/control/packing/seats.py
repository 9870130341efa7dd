"""Where tunnels go: the cluster as packing policies see it, and which GPNs take tunnels at all.

A GPN that is `draining` gets no new tunnel and no new SA: a tunnel that is on it goes elsewhere with its next
rekey, whoever begins that. Only where nothing else takes it does it stay. A GPN that refuses an SA of a
tunnel's, for want of a plugin perhaps, gets no other one of that tunnel.

Looking at the loads of all tunnels is work for each of them, so these and their sums are kept for a second;
how many tunnels a GPN has is always counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from protego_cli.config.model import Role
from protego_cli.control.channel.fabric import NodeState
from protego_cli.control.channel.message import Key
from protego_cli.control.packing.load import Loads
from protego_cli.control.packing.packing_view import Terms
from protego_cli.control.packing.placement import GpnView, Packer, PackingView, TunnelView
from protego_cli.control.packing.shortfall import Shortfall
from protego_cli.control.sas.tunnel import Tunnel

FRESH: Final = 1.0  # seconds for which sums of loads are good: as often as GPNs report
LATELY: Final = 3600.0  # seconds of which a tunnel's moves are counted


class Nodes(Protocol):
    """The part of `Fabric` that says who is there."""

    def nodes(self) -> list[NodeState]: ...

    def connected(self, role: Role) -> list[str]: ...

    def refusing(self, keys: Sequence[Key]) -> set[str]: ...


class Seats:
    def __init__(
        self, fabric: Nodes, packer: Packer, tunnels: Mapping[str, Tunnel], counts: Mapping[str, int]
    ) -> None:
        """`counts`: how many SAs lie on each GPN, retiring ones left out."""
        self.loads = Loads()
        self.packer = packer
        self.draining: set[str] = set()
        self.stray = trio.Event()  # a tunnel has come up on a GPN that is draining
        self._fabric = fabric
        self._tunnels = tunnels
        self._counts = counts
        self._shares: dict[str, float] = {}  # of tunnels
        self._sums: dict[str, float] = {}  # on GPNs
        self._summed = -math.inf
        self._shortfall = Shortfall()

    def choose(self, tunnel: Tunnel) -> str | None:
        """The GPN for a new SA: a migration's target, else where the tunnel is, else what the policy says.
        Where there are several strands, they stay together: they move as a whole, or not at all.
        """
        refusing = self._fabric.refusing([("sa", spi) for spi in tunnel.sas])
        connected = [gpn for gpn in self._fabric.connected("gpn") if gpn not in refusing]
        if tunnel.several and (homes := [sa.gpn for sa in tunnel.seals if sa.gpn in connected]):
            return max(dict.fromkeys(homes), key=lambda gpn: (gpn not in self.draining, homes.count(gpn)))
        if tunnel.target in connected:
            return tunnel.target
        here = tunnel.sealing.gpn if tunnel.sealing is not None else None
        if here in connected and here not in self.draining:
            return here
        now = trio.current_time()
        homeless = TunnelView(tunnel.id, self.loads.share(tunnel.id, here, now), None, _lately(tunnel, now))
        found = self.packer.place(homeless, self.view(refusing=refusing))
        return found or (here if here in connected else None)

    def stood(self, gpn: str) -> None:
        """An SA stands on this GPN."""
        if gpn in self.draining:
            self.stray.set()

    def view(
        self,
        pinned: Container[str] = (),
        spare: Iterable[GpnView] = (),
        fill: float = 1.0,
        moves_per_hour: float = math.inf,
        refusing: Collection[str] = (),
    ) -> PackingView:
        """The cluster as it is now. Tunnels that are `pinned`, on the move, or have moved as often as they
        may, are not movable. `spare`: GPNs that may be launched; `fill`: the share of its capacity that a GPN
        may be given; `refusing`: GPNs that take no tunnels.
        """
        now = trio.current_time()
        history = partial(self.loads.history, now=now)
        gpns = (*self.gpns(), *spare)
        if fill != 1.0:
            gpns = tuple(gpn._replace(capacity=fill * gpn.capacity) for gpn in gpns)
        if refusing:
            gpns = tuple(gpn._replace(accepting=gpn.accepting and gpn.name not in refusing) for gpn in gpns)
        views = self._views(pinned, now, moves_per_hour)
        terms = Terms(moves_per_hour=moves_per_hour)
        return PackingView(now, gpns, views, history, terms, self._shortfall.minutes)

    def look(self) -> None:
        """Take note of how much demand is not served now; to be called every second or so."""
        self._shortfall.look(self.gpns(), trio.current_time())

    def hot(self, share: float) -> bool:
        """Whether some GPN may be beyond this share of its capacity; cheap, whatever the tunnels are."""
        now = trio.current_time()
        nodes = self._nodes()
        return any(self.loads.busy(node.name, now) > share * node.capacity for node in nodes)

    def empty(self, gpn: str) -> bool:
        """Whether no SA lies there but those that retire."""
        return not self._counts.get(gpn)

    def _nodes(self) -> list[NodeState]:
        """The GPNs that are connected."""
        nodes = [node for node in self._fabric.nodes() if node.role == "gpn" and node.connected]
        self.loads.per_bit = {node.name: node.capacity / node.bandwidth for node in nodes if node.bandwidth}
        return nodes

    def gpns(self) -> tuple[GpnView, ...]:
        """The GPNs that are connected."""
        now = trio.current_time()
        nodes = self._nodes()
        if now >= self._summed + FRESH:
            self._add_up(now)
        return tuple(
            GpnView(
                name=node.name,
                capacity=node.capacity,
                load=self._sums.get(node.name, 0.0) + self.loads.own(node.name, now),
                accepting=node.name not in self.draining,
                tunnels=self._counts.get(node.name, 0),
            )
            for node in nodes
        )

    def stale(self) -> None:
        """Tunnels are on the move: add up anew when next asked."""
        self._summed = -math.inf

    def _add_up(self, now: float) -> None:
        sums: dict[str, float] = {}
        shares: dict[str, float] = {}
        for tunnel in self._tunnels.values():
            seat = tunnel.seat
            if seat is not None:
                shares[tunnel.id] = share = self.loads.share(tunnel.id, seat, now)
                sums[seat] = sums.get(seat, 0.0) + share
        self._shares, self._sums, self._summed = shares, sums, now

    def _views(self, pinned: Container[str], now: float, most: float) -> Iterator[TunnelView]:
        for tunnel in self._tunnels.values():
            sealing = tunnel.sealing
            if sealing is not None and not sealing.retiring:
                yield self.seen(tunnel, now, pinned, most)

    def seen(
        self, tunnel: Tunnel, now: float, pinned: Container[str] = (), most: float = math.inf
    ) -> TunnelView:
        """One tunnel as a policy sees it; not movable where it is pinned, or was moved so often lately."""
        name, sealing, seat = tunnel.id, tunnel.sealing, tunnel.seat
        share = self._shares.get(name) if now < self._summed + FRESH else None
        moves = _lately(tunnel, now)
        settled = sealing is not None and sealing.standing and not tunnel.moving.locked()
        return TunnelView(
            name,
            self.loads.share(name, seat, now) if share is None else share,
            seat,
            moves,
            settled and moves < most and name not in pinned,
            tunnel.config.apart or None,
        )


def _lately(tunnel: Tunnel, now: float) -> int:
    if not tunnel.moves:
        return 0
    return sum(1 for moved in tunnel.moves if moved > now - LATELY)
