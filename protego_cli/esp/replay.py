"""The anti-replay window (RFC 4303 3.4.3), in two steps: `check`, open the packet, then `commit`.

A number that was only checked leaves no trace: a forger cannot move the window. The bitmap is one integer
whose bit i stands for number `top - i`, so that a run of consecutive numbers costs one shift.

0. With extended sequence numbers, `extend` says which 64-bit numbers a row has.
1. `fresh` says in one pass that a row of numbers is ascending and right of the window: the usual batch, which
   needs no further checks, for none of them can have been seen.
2. `check` answers for a single number.
3. `commit` and `commit_row` mark what opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt

_LOW = (1 << 32) - 1
_END = 1 << 64


class ReplayWindow:
    """Numbers at or below `floor` and from `end` on count as seen; 0 always does (the first packet is 1)."""

    __slots__ = ("_bitmap", "_mask", "end", "size", "top")

    def __init__(self, size: int, floor: int = 0) -> None:
        if size < 1:
            raise ValueError("a replay window needs at least one number")
        self.size = size
        self.end = _END
        self.top = floor  # the highest number committed
        self._mask = (1 << size) - 1
        self._bitmap = self._mask

    def extend(self, lows: Sequence[int]) -> Sequence[int]:
        """The 64-bit numbers of a row of which only the low halves were sent (RFC 4303 appendix A2).

        Each is the least that is not left of the window: so a number may be as far ahead as 2^32 less the
        window, and nothing seen before has another name.
        """
        edge = max(0, self.top - self.size + 1)
        first, count = lows[0], len(lows)
        ahead = first - edge & _LOW
        if ahead + count <= _LOW and _consecutive(lows):
            return range(edge + ahead, edge + ahead + count)
        return [edge + (low - edge & _LOW) for low in lows]

    def check(self, number: int) -> bool:
        """Whether the number may be opened: never seen, and not left of the window."""
        behind = self.top - number
        if behind < 0:
            return number < self.end
        return behind < self.size and not self._bitmap >> behind & 1

    def fresh(self, numbers: Sequence[int]) -> bool:
        """Whether the numbers are strictly ascending and all right of the window."""
        if numbers[0] <= self.top or numbers[-1] >= self.end:
            return False
        return _consecutive(numbers) or all(map(lt, numbers, numbers[1:]))

    def ahead(self, numbers: Sequence[int]) -> bool:
        """Whether the numbers, in whatever order, are all right of the window."""
        return min(numbers) > self.top and (self.end == _END or max(numbers) < self.end)

    def commit(self, number: int) -> None:
        """Mark a number whose packet opened; `check` must just have admitted it."""
        ahead = number - self.top
        if ahead <= 0:
            self._bitmap |= 1 << -ahead & self._mask
        else:
            self._shift(ahead, 1)
            self.top = number

    def commit_row(self, numbers: Sequence[int]) -> None:
        """Mark numbers, of a row that `fresh` admitted, whose packets opened."""
        last, count, size = numbers[-1], len(numbers), self.size
        if last - numbers[0] == count - 1:
            bits = (1 << count) - 1
        else:
            bits = 0
            for number in numbers:
                if last - number < size:
                    bits |= 1 << last - number
        self._shift(last - self.top, bits)
        self.top = last

    def raise_floor(self, floor: int) -> None:
        """Count every number up to `floor` as seen. Never lowers anything."""
        if floor >= self.top:
            self.top = floor
            self._bitmap = self._mask
        else:
            behind = self.top - floor
            if behind < self.size:
                self._bitmap |= self._mask >> behind << behind

    def _shift(self, ahead: int, bits: int) -> None:
        """Move the window right by `ahead` and set the lowest `bits`."""
        kept = self._bitmap << ahead if ahead < self.size else 0
        self._bitmap = (kept | bits) & self._mask


def _consecutive(numbers: Sequence[int]) -> bool:
    """Whether each is one more than that before it."""
    first, last = numbers[0], numbers[-1]
    if isinstance(numbers, range):  # of which the data path makes no others
        return True
    return last - first == len(numbers) - 1 and tuple(numbers) == tuple(range(first, last + 1))
