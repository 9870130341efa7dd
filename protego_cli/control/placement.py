"""Which GPN a tunnel goes to: the interface of packing policies, and how one is asked.

A policy is pure: it answers from a `PackingView`, a moment of the cluster, and knows nothing else. It is
asked

- `place`, once per tunnel that has no place, and for each tunnel of a GPN that is being emptied;
- `plan`, for the moves that make the whole placement better.

`Packer` asks it, and checks the answer before anybody acts upon it. A policy that raises or answers nonsense
fails closed: nothing is placed or moved, and the log (for `plan`, the operator too) is told which
policy of which plugin it was.

Loads and capacities are CPU seconds per second: 1.0 is one core.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

from protego_cli.errors import ProtegoError

log = logging.getLogger(__name__)

T = TypeVar("T")

TOLERANCE: Final = 1e-9  # sums of loads in another order differ by less


class GpnView(NamedTuple):
    """A GPN that is connected."""

    name: str
    capacity: float
    load: float  # of its tunnels, those on their way to it, and of the process itself
    accepting: bool = True  # false: it is being emptied, and nothing may go there
    tunnels: int = 0

    def has_room(self, load: float) -> bool:
        return self.load + load <= self.capacity + TOLERANCE


class TunnelView(NamedTuple):
    id: str  # TENANT/TUNNEL
    load: float
    gpn: str | None = None  # where it is, or where it is on its way to; perhaps a GPN that is not connected
    moves: int = 0  # within the last hour
    movable: bool = True


class Move(NamedTuple):
    tunnel: str
    to: str


class PackingView:
    """A moment of the cluster, not to be changed. GPNs are in the cluster file's order.

    `tunnels` is listed when first looked at: a policy that places by the GPNs alone costs no more for
    ten thousand tunnels than for one.
    """

    def __init__(
        self,
        now: float,
        gpns: Iterable[GpnView],
        tunnels: Iterable[TunnelView] = (),
        history: Callable[[str], Sequence[float]] = lambda _: (),
    ) -> None:
        """`now` is in seconds of any clock that never goes back."""
        self.now = now
        self.gpns = tuple(gpns)
        self.history = history  # a tunnel's load in each of the last minutes, oldest first
        self._listed = tunnels

    def __repr__(self) -> str:
        return f"PackingView({self.now}, {self.gpns}, {self.tunnels})"

    @cached_property
    def tunnels(self) -> tuple[TunnelView, ...]:
        """Every tunnel that is up."""
        return tuple(self._listed)

    def candidates(self, load: float) -> tuple[GpnView, ...]:
        """Where a tunnel of this load may go: to GPNs with room for it; where none has room, to any that
        accepts, because a crowded place is better than none.
        """
        accepting = tuple(gpn for gpn in self.gpns if gpn.accepting)
        return tuple(gpn for gpn in accepting if gpn.has_room(load)) or accepting

    def with_gpns(self, gpns: Iterable[GpnView]) -> PackingView:
        return PackingView(self.now, gpns, self._same(), self.history)

    def _same(self) -> Iterator[TunnelView]:
        yield from self.tunnels


class PackingPolicy(Protocol):
    @property
    def name(self) -> str:
        """What `cluster.packing` selects it by."""
        ...

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        """The GPN for a tunnel that has no place, one of `view.candidates(tunnel.load)`; None to place it
        nowhere now.
        """
        ...

    def plan(self, view: PackingView) -> Sequence[Move]:
        """The moves that make the placement better, in the order they are to be made. At most one for each
        tunnel, which is movable; to a GPN that accepts, and that is not beyond its capacity after all.
        """
        ...


class PolicyFault(ProtegoError):
    """A packing policy raised, or answered what makes no sense."""


def log_fault(fault: PolicyFault, tunnel: str | None) -> None:
    log.error("policy failed tunnel=%s reason=%s", tunnel or "-", fault)


@dataclass(frozen=True)
class Packer:
    """A policy and the plugin it comes from. `told`: hears of what it does wrong, and for which tunnel."""

    policy: PackingPolicy
    plugin: str
    told: Callable[[PolicyFault, str | None], None] = log_fault

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        """The policy's choice for a tunnel; None when there is none, or the policy fails."""
        candidates = view.candidates(tunnel.load)
        if not candidates:
            return None
        try:
            chosen = self._ask(lambda: self.policy.place(tunnel, view))
            if chosen is not None and all(chosen != gpn.name for gpn in candidates):
                raise self._fault(f"put {tunnel.id} on {chosen!r}, {_objection(chosen, view)}")
        except PolicyFault as fault:
            self.told(fault, tunnel.id)
            return None
        return chosen

    def plan(self, view: PackingView) -> tuple[Move, ...]:
        """The policy's moves. Raises PolicyFault, and nothing moves."""
        most = len(view.tunnels) + 1  # there is at most one move for each
        try:
            return self._checked(self._ask(lambda: list(islice(self.policy.plan(view), most))), view)
        except PolicyFault as fault:
            self.told(fault, None)
            raise

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except Exception as error:  # a plugin's code: whatever it raises must not stop the gateway
            log.exception("packing policy failed policy=%s plugin=%s", self.policy.name, self.plugin)
            raise self._fault(f"raised {type(error).__name__}: {error}") from error

    def _fault(self, what: str) -> PolicyFault:
        return PolicyFault(f"the packing policy {self.policy.name!r} of plugin {self.plugin!r} {what}")

    def _checked(self, answer: Sequence[object], view: PackingView) -> tuple[Move, ...]:
        known = {tunnel.id: tunnel for tunnel in view.tunnels}
        gpns = {gpn.name: gpn for gpn in view.gpns}
        loads = {gpn.name: gpn.load for gpn in view.gpns}
        moves: dict[str, Move] = {}
        for each in answer:
            if not (isinstance(each, tuple) and len(each) == 2 and all(isinstance(s, str) for s in each)):
                raise self._fault(f"planned {each!r:.80}, which is no Move(tunnel, to)")
            move = Move(*each)
            tunnel = known.get(move.tunnel)
            if tunnel is None:
                raise self._fault(f"moves {move.tunnel!r:.80}, which is no tunnel that is up")
            if move.tunnel in moves:
                raise self._fault(f"moves {move.tunnel} twice")
            if not tunnel.movable:
                raise self._fault(f"moves {move.tunnel}, which cannot be moved now")
            if move.to not in gpns or not gpns[move.to].accepting:
                raise self._fault(f"moves {move.tunnel} to {move.to!r:.80}, {_objection(move.to, view)}")
            if move.to == tunnel.gpn:
                raise self._fault(f"moves {move.tunnel} to {move.to}, where it is already")
            moves[move.tunnel] = move
            loads[move.to] += tunnel.load
            if tunnel.gpn in loads:
                loads[tunnel.gpn] -= tunnel.load
        for name in {move.to for move in moves.values()}:
            if loads[name] > gpns[name].capacity + TOLERANCE:
                raise self._fault(
                    f"fills {name} to {loads[name]:.3f}, beyond its capacity of {gpns[name].capacity:g}"
                )
        return tuple(moves.values())


def _objection(name: object, view: PackingView) -> str:
    """Why nothing may go to what a policy has chosen."""
    gpn = next((gpn for gpn in view.gpns if gpn.name == name), None)
    if gpn is None:
        return "which is no connected GPN"
    return "which is full while others have room" if gpn.accepting else "which accepts none"


def evacuate(
    packer: Packer, tunnels: Iterable[TunnelView], view: PackingView
) -> tuple[list[Move], list[TunnelView]]:
    """Where tunnels go whose GPN does not accept any more, and those that the policy places nowhere.

    The heaviest are asked for first; each is placed among those placed before it.
    """
    gpns = {gpn.name: gpn for gpn in view.gpns}
    moves: list[Move] = []
    left: list[TunnelView] = []
    for tunnel in sorted(tunnels, key=lambda tunnel: (-tunnel.load, tunnel.id)):
        chosen = packer.place(tunnel._replace(gpn=None), view.with_gpns(gpns.values()))
        if chosen is None:
            left.append(tunnel)
            continue
        moves.append(Move(tunnel.id, chosen))
        there = gpns[chosen]
        gpns[chosen] = there._replace(load=there.load + tunnel.load, tunnels=there.tunnels + 1)
    return moves, left
