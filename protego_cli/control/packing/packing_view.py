"""What a packing policy sees: a moment of the cluster, as rows or as columns.

The rows (`gpns`, `tunnels`) are for policies that look at single ones, the columns (`gpn_columns`,
`tunnel_columns`, `history`) are numpy arrays for those that calculate. Whoever makes a view has the one or
the other; what is missing is derived when first looked at, here and nowhere else. None of it may be changed.

Loads and capacities are CPU seconds per second: 1.0 is one core. In the simulator 1.0 is one GPN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:  # numpy is loaded when columns are made: data nodes load this, for plugins, and make none
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

TOLERANCE: Final = 1e-9  # sums of loads in another order differ by less
NOWHERE: Final = -1


class GpnView(NamedTuple):
    """A GPN that is connected, or one that may be launched."""

    name: str
    capacity: float
    load: float  # of its tunnels, those on their way to it, and of the process itself
    accepting: bool = True  # false: it is being emptied, and nothing may go there
    tunnels: int = 0
    running: bool = True  # false: it is launched when something is moved there

    def has_room(self, load: float) -> bool:
        return self.load + load <= self.capacity + TOLERANCE


class TunnelView(NamedTuple):
    id: str  # TENANT/TUNNEL
    load: float
    gpn: str | None = None  # where it is, or where it is on its way to; perhaps a GPN that is not connected
    moves: int = 0  # within the last hour
    movable: bool = True  # false: it is on its way, or has moved as often in the last hour as it may
    group: str | None = None  # tunnels of one group should not share a GPN


class Move(NamedTuple):
    tunnel: str
    to: str


class Terms(NamedTuple):
    """What holds for all tunnels alike."""

    step: float = 60.0  # seconds between two rows of `history`
    reaction: float = 6.0  # seconds from a measurement until what was decided upon it has taken effect
    moves_per_hour: float = math.inf  # the most for each tunnel
    move_cost: float = 0.005  # CPU seconds that one migration costs, all nodes together


class Names(tuple[str, ...]):
    """Names in their order, which know where each of them stands."""

    @cached_property
    def position(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self)}


def _keep(*columns: npt.NDArray[Any]) -> None:
    """A policy that writes into them fails, and others see what it saw."""
    for column in columns:
        column.setflags(write=False)


@dataclass(frozen=True)
class GpnColumns:
    """`GpnView`s as arrays of one length."""

    names: Names
    capacity: Floats
    load: Floats
    accepting: Bools
    tunnels: Ints
    running: Bools

    def __post_init__(self) -> None:
        _keep(self.capacity, self.load, self.accepting, self.tunnels, self.running)

    @classmethod
    def of(cls, rows: Sequence[GpnView]) -> GpnColumns:
        import numpy as np

        return cls(
            Names(row.name for row in rows),
            np.array([row.capacity for row in rows], np.float64),
            np.array([row.load for row in rows], np.float64),
            np.array([row.accepting for row in rows], np.bool_),
            np.array([row.tunnels for row in rows], np.int64),
            np.array([row.running for row in rows], np.bool_),
        )

    def rows(self) -> tuple[GpnView, ...]:
        columns = (self.capacity, self.load, self.accepting, self.tunnels, self.running)
        return tuple(
            GpnView(*row) for row in zip(self.names, *(column.tolist() for column in columns), strict=True)
        )


@dataclass(frozen=True)
class TunnelColumns:
    """`TunnelView`s as arrays of one length."""

    ids: Names
    load: Floats
    gpn: Ints  # by the position in `GpnColumns.names`; NOWHERE for none, and for one that is not listed
    moves: Ints
    movable: Bools
    group: Ints  # one number for each group; -1 for none

    def __post_init__(self) -> None:
        _keep(self.load, self.gpn, self.moves, self.movable, self.group)

    @classmethod
    def of(cls, rows: Sequence[TunnelView], gpns: Names) -> TunnelColumns:
        import numpy as np

        groups = Names(dict.fromkeys(row.group for row in rows if row.group is not None)).position
        return cls(
            Names(row.id for row in rows),
            np.array([row.load for row in rows], np.float64),
            np.array([gpns.position.get(row.gpn or "", NOWHERE) for row in rows], np.int64),
            np.array([row.moves for row in rows], np.int64),
            np.array([row.movable for row in rows], np.bool_),
            np.array([groups.get(row.group or "", -1) for row in rows], np.int64),
        )

    def rows(self, gpns: Names) -> tuple[TunnelView, ...]:
        columns = (self.load, self.gpn, self.moves, self.movable, self.group)
        return tuple(
            TunnelView(
                name,
                load,
                gpns[gpn] if gpn != NOWHERE else None,
                moves,
                movable,
                f"group-{group}" if group >= 0 else None,
            )
            for name, load, gpn, moves, movable, group in zip(
                self.ids, *(column.tolist() for column in columns), strict=True
            )
        )


History = Callable[[Names], "Floats"]


class PackingView:
    """A moment of the cluster, not to be changed.

    GPNs that run come first, in the cluster file's order or that of their launch; those that may be launched
    follow, in the order in which they are to be. Rows that are given as an iterator are listed when first
    looked at: a policy that places by the GPNs alone costs no more for ten thousand tunnels than for one.
    """

    def __init__(
        self,
        now: float,
        gpns: Iterable[GpnView] | GpnColumns,
        tunnels: Iterable[TunnelView] | TunnelColumns = (),
        history: History | None = None,
        terms: Terms = Terms(),  # noqa: B008  # a tuple
        unserved: Sequence[float] = (),
    ) -> None:
        """`now` is in seconds of any clock that never goes back. `unserved`: the share of all demand that was
        not served in each step of the last hour, oldest first; nothing where that is not known.
        """
        self.unserved = unserved
        self.now = now
        self.terms = terms
        self._gpns = gpns if isinstance(gpns, GpnColumns) else tuple(gpns)
        self._tunnels = tunnels
        self._history = history

    def __repr__(self) -> str:
        return f"PackingView({self.now}, {self.gpns}, {self.tunnels})"

    @cached_property
    def gpns(self) -> tuple[GpnView, ...]:
        return self._gpns.rows() if isinstance(self._gpns, GpnColumns) else self._gpns

    @cached_property
    def gpn_columns(self) -> GpnColumns:
        return self._gpns if isinstance(self._gpns, GpnColumns) else GpnColumns.of(self._gpns)

    @cached_property
    def tunnels(self) -> tuple[TunnelView, ...]:
        """Every tunnel that is up."""
        if isinstance(self._tunnels, TunnelColumns):
            return self._tunnels.rows(self.gpn_columns.names)
        return tuple(self._tunnels)

    @cached_property
    def tunnel_columns(self) -> TunnelColumns:
        if isinstance(self._tunnels, TunnelColumns):
            return self._tunnels
        return TunnelColumns.of(self.tunnels, self.gpn_columns.names)

    @cached_property
    def history(self) -> Floats:
        """Loads before now, measured every `terms.step` seconds: a row for each step, oldest first, a column
        for each tunnel, in the order of `tunnels`. No more than an hour's worth of steps, or none at all.
        """
        import numpy as np

        ids = self.tunnel_columns.ids
        return self._history(ids) if self._history else np.empty((0, len(ids)))

    def candidates(self, load: float) -> tuple[GpnView, ...]:
        """Where a tunnel of this load may go now: to running GPNs with room for it; where none has room, to
        any that runs and accepts, because a crowded place is better than none.
        """
        open_to = tuple(gpn for gpn in self.gpns if gpn.accepting and gpn.running)
        return tuple(gpn for gpn in open_to if gpn.has_room(load)) or open_to

    def overfilled(self, tunnels: Sequence[int], to: Sequence[int]) -> tuple[int, float] | None:
        """A GPN that these moves, all of them made, leave beyond its capacity though they need not have, and
        its load then. They had to where no GPN that accepts has room for what was moved there.
        """
        import numpy as np

        columns, gpns = self.tunnel_columns, self.gpn_columns
        target = np.asarray(to, np.int64)
        loads, source = columns.load[tunnels], columns.gpn[tunnels]
        there = source != NOWHERE
        size = len(gpns.names)
        after = gpns.load + np.bincount(target, loads, size)
        after -= np.bincount(source[there], loads[there], size)
        room = gpns.capacity - after
        most = room[gpns.accepting].max(initial=-math.inf)
        wrong = (room[target] < -TOLERANCE) & (loads <= most + TOLERANCE)
        if not wrong.any():
            return None
        gpn = int(target[wrong.argmax()])
        return gpn, float(after[gpn])

    def with_gpns(self, gpns: Iterable[GpnView]) -> PackingView:
        """The same with other GPNs. The tunnels are shared, and still listed when first looked at."""
        return PackingView(self.now, gpns, self._same(), self._history, self.terms, self.unserved)

    def _same(self) -> Iterator[TunnelView]:
        yield from self.tunnels
