"""The policy `predictive`: as few GPNs as serve nearly all demand, and few moves.

It knows what each GPN is expected to leave unserved (`outlook.py`) and what may be left: the budget. Every
measurement is answered by

1. shelter: what is nowhere, or on a GPN that accepts none, finds a place;
2. relief: the move that serves the most, again and again, while it serves more than a move is worth;
3. extension: where more than twice the budget is left unserved, another GPN is used, and relieves the worst.

And at each interval by

4. consolidation: one of the lightest GPNs is emptied, its tunnels put where they leave the least unserved.
   If one does not fit, the lightest tunnel whose place it can take makes way and moves on. That holds if the
   budget does after relief; then another GPN is tried.

So the room that is kept, z standard deviations of each GPN's sum, is no constant: it is what the budget buys.
The budget is steered by feedback: what was served of all demand in the last hour, against `TARGET`. The price
of a move rises with the number of moves in the last hour, and is never less than what a migration costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from protego_cli.control.packing.packing_view import NOWHERE, TOLERANCE, Move, PackingView
from protego_cli.plugins.packing.decreasing import BestFit, shelter
from protego_cli.plugins.packing.outlook import Outlook

if TYPE_CHECKING:
    from protego_cli.control.packing.packing_view import Floats, Ints

TARGET: Final = 0.9991  # of demand is to be served
GAIN: Final = 3.0  # the budget grows by so much of itself for each share of it that was not used
LEAST: Final = 0.25  # bounds of the budget, in what TARGET allows
MOST: Final = 4.0
CREDIT: Final = 10  # steps that TARGET is taken to have been met exactly, before any were measured
EXTEND: Final = 2.0  # budgets that may be left unserved before another GPN is used
PRICE: Final = 0.2  # of what TARGET allows to be left unserved in a step: what a move has to serve
OFTEN: Final = 1.5  # moves per tunnel and hour at which that is the price
STEEP: Final = 6  # the price's power of the frequency
CHEAPEST: Final = 0.25  # of the price, where moves are rare
LASTS: Final = 5.0  # steps: an emptied GPN is to stay away so long, for the moves that it took
TRIED: Final = 2  # GPNs, before it is given up to empty another
ROOMIEST: Final = 48  # GPNs that are looked at for a place
CELLS: Final = 16384  # of tunnels by GPNs that are looked at together
MOVES: Final = 64  # of one decision: so many, or a share of the tunnels if that is more
SHARE: Final = 0.03


def mitigate(view: PackingView, fill: float) -> list[Move]:
    return _Decision(view, fill).moves()


def plan(view: PackingView, fill: float) -> list[Move]:
    decision = _Decision(view, fill)
    while decision.consolidate():
        pass
    return decision.moves()


class _Decision:
    def __init__(self, view: PackingView, fill: float) -> None:
        """`fill` of a GPN's capacity is where it is full for tunnels that nothing is known of."""
        self._bins = bins = Outlook(view, fill)
        tunnels, terms = len(bins.size), view.terms
        shelter(bins, BestFit())
        self._before = bins.at.copy()
        self._most = max(MOVES, int(SHARE * tunnels))
        allowed = (1 - TARGET) * float(bins.load.sum())
        self._budget = allowed * _feedback(_avoidable(view))
        often = float(view.tunnel_columns.moves.mean()) / OFTEN if tunnels else 0.0
        self._worth = PRICE * allowed * max(often**STEEP, CHEAPEST)
        self._price = max(self._worth, terms.move_cost / terms.step)
        self._relieve()
        while self._extend():
            self._relieve()

    def moves(self) -> list[Move]:
        return self._bins.moves()

    def _left(self) -> float:
        """What is expected to be left unserved, but for what a GPN cannot carry of the one tunnel it has."""
        bins = self._bins
        return float(bins.unserved()[bins.tunnels > 1].sum())

    def _spent(self) -> bool:
        return int(np.count_nonzero(self._bins.at != self._before)) >= self._most

    # ---- relief

    def _relieve(self) -> None:
        bins = self._bins
        used = int(bins.used().sum())
        together = max(1, CELLS * used // max(1, len(bins.size) * min(used, ROOMIEST)))
        done: set[int] = set()
        while not done.issuperset(hot := self._hot()):
            done = set(hot)
            for first in range(0, len(hot), together):
                some = hot[first : first + together]
                while not self._spent() and self._shift(some):
                    if len(hot) > together:  # those looked at before have one more place to go to
                        done.clear()

    def _hot(self) -> list[int]:
        """Where a move might be worth it, the worst first."""
        unserved = self._bins.unserved()
        hot = ((unserved > self._price) & (self._bins.tunnels > 1)).nonzero()[0]
        worst: list[int] = hot[np.argsort(-unserved[hot], kind="stable")].tolist()
        return worst

    def _shift(self, hot: list[int]) -> bool:
        """The best moves away from these GPNs, each between GPNs that no other of them has changed; False
        where none is worth it.
        """
        bins = self._bins
        leaving = np.zeros(len(bins.load) + 1, np.bool_)  # the last is that of NOWHERE
        leaving[hot] = True
        tunnels = (leaving[bins.at] & bins.movable & (bins.size > 0)).nonzero()[0]
        gpns = bins.roomiest_used(ROOMIEST)
        if not len(tunnels) or not len(gpns):
            return False
        unserved = bins.unserved()
        relief = unserved[bins.at[tunnels]] - bins.without(tunnels)
        tunnels, relief = tunnels[relief > self._price], relief[relief > self._price]
        if not len(tunnels):
            return False
        sources = bins.at[tunnels]
        gain, may = bins.joined(tunnels, gpns)
        np.subtract(unserved[gpns], gain, out=gain)
        gain += relief[:, None]
        gain[~may] = -np.inf
        moved = False
        while not self._spent():
            row, column = divmod(int(gain.argmax()), len(gpns))
            if gain[row, column] <= self._price:
                break
            source, to = sources[row], gpns[column]
            bins.move(int(tunnels[row]), int(to))
            gain[(sources == source) | (sources == to)] = -np.inf
            gain[:, (gpns == source) | (gpns == to)] = -np.inf
            moved = True
        return moved

    # ---- extension

    def _extend(self) -> bool:
        bins = self._bins
        unserved = bins.unserved()
        if self._left() <= EXTEND * self._budget or self._spent():
            return False
        fresh = np.flatnonzero(bins.accepting & ~bins.used())
        worst = int(np.where(bins.tunnels > 1, unserved, 0.0).argmax())
        tunnels = bins.on(worst)
        tunnels = tunnels[bins.movable[tunnels]]
        if not len(fresh) or not len(tunnels):
            return False
        joined, may = bins.joined(tunnels, fresh[:1])
        gain = np.where(may[:, 0], unserved[worst] - bins.without(tunnels) - joined[:, 0], -np.inf)
        if gain.max() <= self._price:
            return False
        enough = tunnels[gain >= 0.9 * gain.max()]
        bins.move(int(enough[bins.size[enough].argmin()]), int(fresh[0]))
        return True

    # ---- consolidation

    def consolidate(self) -> bool:
        """Empty one of the lightest GPNs; False where the budget does not allow it, and all is as before."""
        return any(self._give_up(gpn) for gpn in self._bins.lightest(TRIED))

    def _give_up(self, gpn: int) -> bool:
        bins = self._bins
        others = (bins.accepting & bins.used()).nonzero()[0]
        others = others[others != gpn]
        if self._spent() or bins.at_least(gpn, others) > self._budget:
            return False
        before = bins.copy()
        if self._empty(gpn, others):
            self._relieve()
            moved = int(np.count_nonzero(bins.at != before.at))
            left = self._left() + moved * self._worth / LASTS
            if bins.tunnels[gpn] == 0 and left <= self._budget:
                return True
        bins.restore(before)
        return False

    def _empty(self, gpn: int, others: Ints) -> bool:
        bins = self._bins
        waiting = bins.on(gpn)
        waiting = waiting[np.argsort(bins.size[waiting], kind="stable")].tolist()  # the heaviest last
        unserved = bins.unserved()[others]
        for _ in range(3 * len(waiting) + 20):
            if not waiting:
                return True
            tunnel = waiting.pop()
            joined, may = bins.joined(np.array([tunnel]), others)
            if may.any():
                best = int(np.where(may[0], joined[0] - unserved, np.inf).argmin())
                bins.move(tunnel, int(others[best]))
                unserved[best] = joined[0, best]
            elif (yielding := self._yielding(tunnel, others)) is not None:
                to = int(bins.at[yielding])
                bins.move(yielding, gpn)
                bins.move(tunnel, to)
                unserved = bins.unserved()[others]
                waiting.append(yielding)
                waiting.sort(key=lambda each: float(bins.size[each]))
            else:
                return False
        return not waiting

    def _yielding(self, tunnel: int, others: Ints) -> int | None:
        """The lightest of the tunnels on the others, lighter than this one, whose place it can take."""
        bins = self._bins
        needed = np.full(len(bins.load), np.inf)
        needed[others] = bins.load[others] + bins.size[tunnel] - bins.capacity[others] - TOLERANCE
        needed[bins.barred(tunnel)] = np.inf
        lighter = np.flatnonzero(bins.movable & (bins.size < bins.size[tunnel]) & (bins.at != NOWHERE))
        able = lighter[bins.size[lighter] >= needed[bins.at[lighter]]]
        return int(able[bins.size[able].argmin()]) if len(able) else None


def _avoidable(view: PackingView) -> Floats:
    """The shares of demand that were not served in the last hour, but for what no GPN could have carried."""
    shares, past = np.asarray(view.unserved, np.float64), view.history
    steps = min(len(shares), len(past))
    largest = float(view.gpn_columns.capacity.max(initial=0.0))
    if not steps or past.max(initial=0.0) <= largest:
        return shares
    past = past[len(past) - steps :]
    beyond = np.maximum(past - largest, 0.0).sum(axis=1) / np.maximum(past.sum(axis=1), TOLERANCE)
    avoidable: Floats = np.maximum(shares[len(shares) - steps :] - beyond, 0.0)
    return avoidable


def _feedback(unserved: Floats) -> float:
    """How much of what TARGET allows is the budget: more where less was left unserved lately."""
    allowed = 1 - TARGET
    lately = (float(unserved.sum()) + CREDIT * allowed) / (len(unserved) + CREDIT)
    return min(max(1 + GAIN * (1 - lately / allowed), LEAST), MOST)
