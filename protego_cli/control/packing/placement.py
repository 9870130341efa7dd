"""Which GPN a tunnel goes to: the interface of packing policies, and how one is asked.

A policy is pure: it answers from a `PackingView` (`packing_view.py`), a moment of the cluster, and knows
nothing else. The live cluster and the simulator ask the same objects:

- `place`, once per tunnel that has no place, and for each tunnel of a GPN that is being emptied;
- `plan`, at every consolidation interval, for the moves that make the whole placement better;
- `mitigate`, whenever loads have been measured, for the moves that cannot wait until then. A policy may do
  without this one.

A policy that needs another GPN moves tunnels to one that is not running: it is launched first. A GPN that
is left empty is retired.

`Packer` asks it, and checks the answer before anybody acts upon it. A policy that raises or answers nonsense
fails closed: nothing is placed or moved, and the log (for `plan` and `mitigate`, the operator too) is told
which policy of which plugin it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol, TypeVar, runtime_checkable

from protego_cli.control.packing.deadline import TooLate, within
from protego_cli.control.packing.packing_view import TOLERANCE, GpnView, Move, PackingView, TunnelView
from protego_cli.errors import ProtegoError

__all__ = [
    "TOLERANCE",
    "GpnView",
    "Move",
    "Packer",
    "PackingPolicy",
    "PackingView",
    "PolicyFault",
    "TunnelView",
    "evacuate",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

PLACING: Final = 0.1  # seconds that a live policy has for one tunnel
PLANNING: Final = 1.0  # and for a plan


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
        tunnel, which is movable; to a GPN that accepts, and that is not beyond its capacity after all, unless
        no GPN would then have room for what was moved there.
        """
        ...


@runtime_checkable
class Mitigating(PackingPolicy, Protocol):
    """A policy that does not wait for the next consolidation where a GPN runs hot."""

    def mitigate(self, view: PackingView) -> Sequence[Move]:
        """As `plan`, but only what cannot wait. It is asked often, and mostly has nothing to do."""
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
    live: bool = False  # it has a deadline: meanwhile the control node does nothing else

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        """The policy's choice for a tunnel; None when there is none, or the policy fails."""
        candidates = view.candidates(tunnel.load)
        if not candidates:
            return None
        try:
            chosen = self._ask(lambda: self.policy.place(tunnel, view), PLACING)
            if chosen is not None and all(chosen != gpn.name for gpn in candidates):
                raise self._fault(f"put {tunnel.id} on {chosen!r}, {_objection(chosen, view)}")
        except PolicyFault as fault:
            self.told(fault, tunnel.id)
            return None
        return chosen

    def plan(self, view: PackingView) -> tuple[Move, ...]:
        """The policy's moves at a consolidation. Raises PolicyFault, and nothing moves."""
        return self._moves(self.policy.plan, view)

    def mitigate(self, view: PackingView) -> tuple[Move, ...]:
        """The policy's moves that cannot wait; none of a policy that knows no such. Raises PolicyFault."""
        return self._moves(self.policy.mitigate, view) if isinstance(self.policy, Mitigating) else ()

    def _moves(
        self, question: Callable[[PackingView], Iterable[object]], view: PackingView
    ) -> tuple[Move, ...]:
        most = len(view.tunnel_columns.ids) + 1  # there is at most one move for each
        try:
            return self._checked(self._ask(lambda: list(islice(question(view), most)), PLANNING), view)
        except PolicyFault as fault:
            self.told(fault, None)
            raise

    def _ask(self, question: Callable[[], T], seconds: float) -> T:
        try:
            return within(seconds, question) if self.live else question()
        except TooLate:
            raise self._fault(f"has not answered within {seconds:g} s") from None
        except Exception as error:  # a plugin's code: whatever it raises must not stop the gateway
            log.exception("packing policy failed policy=%s plugin=%s", self.policy.name, self.plugin)
            raise self._fault(f"raised {type(error).__name__}: {error}") from error

    def _fault(self, what: str) -> PolicyFault:
        return PolicyFault(f"the packing policy {self.policy.name!r} of plugin {self.plugin!r} {what}")

    def _checked(self, answer: Sequence[object], view: PackingView) -> tuple[Move, ...]:
        if not answer:
            return ()
        tunnels, gpns = view.tunnel_columns, view.gpn_columns
        rows, columns = tunnels.ids.position, gpns.names.position
        where, movable, accepting = tunnels.gpn.tolist(), tunnels.movable.tolist(), gpns.accepting.tolist()
        moved: dict[int, int] = {}
        moves: list[Move] = []
        for each in answer:
            if not (isinstance(each, tuple) and len(each) == 2):
                raise self._fault(f"planned {each!r:.80}, which is no Move(tunnel, to)")
            name, to = each
            if not (isinstance(name, str) and isinstance(to, str)):
                raise self._fault(f"planned {each!r:.80}, which is no Move(tunnel, to)")
            row, column = rows.get(name), columns.get(to)
            if row is None:
                raise self._fault(f"moves {name!r:.80}, which is no tunnel that is up")
            if row in moved:
                raise self._fault(f"moves {name} twice")
            if not movable[row]:
                raise self._fault(f"moves {name}, which cannot be moved now")
            if column is None or not accepting[column]:
                raise self._fault(f"moves {name} to {to!r:.80}, {_objection(to, view)}")
            if column == where[row]:
                raise self._fault(f"moves {name} to {to}, where it is already")
            moved[row] = column
            moves.append(each if isinstance(each, Move) else Move(name, to))
        if (overfilled := view.overfilled(list(moved), list(moved.values()))) is not None:
            gpn, load = overfilled
            raise self._fault(
                f"fills {gpns.names[gpn]} to {load:.3f}, beyond its capacity of {gpns.capacity[gpn]:g}, "
                "while others have room"
            )
        return tuple(moves)


def _objection(name: object, view: PackingView) -> str:
    """Why nothing may go to what a policy has chosen."""
    gpn = next((gpn for gpn in view.gpns if gpn.name == name), None)
    if gpn is None:
        return "which is no connected GPN"
    if not gpn.accepting:
        return "which accepts none"
    return "which is full while others have room" if gpn.running else "which does not run yet"


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
