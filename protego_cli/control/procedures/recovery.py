"""When an SA gets another process: from which numbers it may open and seal there, so that none is used twice.

Sealing: a new range. Opening: only above what may have been opened before, which is at most the highest of

- the GINs' marks, the highest number that each has passed on for the SPI, and
- the highest number in the last report of the old process.

Where a mark is missing (a GIN that is not there, or that has restarted since the last report) nothing is
opened at all. Either way a rekey makes the tunnel whole.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from protego_cli.control.sas.ranges import EXHAUSTED
from protego_cli.control.sas.sad import Sad
from protego_cli.control.sas.tunnel import Placed
from protego_cli.errors import ProtegoError

log = logging.getLogger(__name__)


class Recovery:
    def __init__(self, sad: Sad) -> None:
        self._sad = sad

    def gin_restarted(self) -> None:
        """A GIN has forgotten its marks: until their GPNs report again, those of these SAs say too little."""
        for _, placed in self._sad.all():
            placed.marks_complete = False

    async def gpn_restarted(self, gpn: str) -> None:
        """Before its Sync: what the new process gets to hold, in its own numbers."""
        self._sad.process_ended(gpn)
        sas = self._sad.on(gpn)
        await self.settle_floors([placed for _, placed in sas])
        for tunnel, placed in sas:
            if placed.gpn != gpn:
                continue  # moved meanwhile
            self._sad.renumber(tunnel, placed)
            if placed.numbers == EXHAUSTED:
                self._sad.nodes.unrule(placed)

    async def settle_floors(self, sas: Sequence[Placed]) -> None:
        """Raise the floor of SAs whose process is gone above all that it may have opened."""
        if not sas:
            return
        marks = await self._marks([placed.spi for placed in sas])
        closed = 0
        for placed in sas:
            mark = marks.get(placed.spi) if placed.marks_complete else None
            if mark is None:
                placed.opens = False
                closed += 1
            else:
                # A mark is a low half: of numbers above it, in whatever high half, none has come by. The SA
                # opens those of the floor's high half only.
                highest = placed.meter.highest_in
                placed.floor = max(placed.floor, highest, highest >> 32 << 32 | mark)
        if closed:
            self._sad.events.emit(
                "marks missing", reason="SAs open nothing until they are rekeyed", sas=closed
            )

    async def _marks(self, spis: list[int]) -> dict[int, int]:
        """The GINs' marks; none, if one of the GINs that were ever there cannot be asked."""
        fabric = self._sad.fabric
        away = [
            node.name
            for node in fabric.nodes()
            if node.role == "gin" and node.boot is not None and not node.connected
        ]
        if away:
            log.warning("GINs cannot be asked for their marks nodes=%s", ",".join(away))
            return {}
        try:
            return await fabric.marks(spis)
        except ProtegoError as error:
            log.warning("GINs did not tell their marks reason=%s", error)
            return {}
