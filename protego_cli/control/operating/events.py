"""What happens in the gateway, as a bounded ring of typed events; each of them is a line of the log too.

1. `emit` numbers an event, keeps it, logs it and wakes who waits. It is the one way to tell of these kinds,
   so the log and `protego events` cannot disagree. The ring drops its oldest.
2. `read` finds what an operator asks for; `answer` also waits for what has not happened yet (long poll).

The numbers begin with every life of the GMN, so an event's name is its epoch and its number.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Literal

import trio

from protego_cli.control.channel.operator_messages import Event, Events, GetEvents
from protego_cli.errors import Refused

log = logging.getLogger(__name__)

Severity = Literal["info", "warning", "error"]

KINDS: Final[Mapping[str, Severity]] = {
    "IKE_SA up": "info",
    "IKE_SA closed": "info",
    "IKE_SA replaced": "info",
    "IKE_SA rekeyed": "info",
    "SA up": "info",
    "SA expired": "warning",  # it reached its hard limit, and no rekey of it succeeded
    "tunnel up": "info",
    "tunnel down": "warning",
    "tunnel held": "info",
    "tunnel released": "info",
    "tunnel not up": "warning",  # we dialled in vain
    "negotiation failed": "warning",  # a peer dialled, or asked, in vain
    "request rejected": "error",
    "peer moved": "info",
    "rekeyed": "info",
    "rekey failed": "warning",
    "migration begun": "info",
    "migrated": "info",
    "migration failed": "warning",
    "draining": "info",  # a GPN takes no more tunnels, and what it has goes elsewhere
    "drained": "info",
    "undrained": "info",
    "node up": "info",
    "node down": "warning",
    "node restarted": "warning",
    "clock differs": "warning",  # a node's from the GMN's, by more than lifetimes can bear
    "records refused": "error",  # a node is up, and cannot act on some of what it should hold
    "raw ESP missing": "error",  # a GIN cannot take what peers of some tunnels may send it
    "packing": "info",  # the elastic controller has decided on moves, or would
    "packing hindered": "warning",
    "node joined": "info",  # a node of a pool has its certificate
    "node launched": "info",
    "launch failed": "warning",
    "node vanished": "warning",  # its provisioner has lost it; it is launched again
    "node retired": "info",
    "retiring failed": "warning",
    "provisioner failed": "error",
    "marks missing": "warning",
    "policy failed": "error",
    "changed by reload": "info",
    "reloaded": "info",
    "reload refused": "error",
}
"""Every kind of event and how much it matters (docs/operations.md)."""

CAPACITY: Final = 10_000
PAGE: Final = 1_000  # events in the answer to one question of a follower
WAITING: Final = 16  # followers at once
PATIENCE: Final = 10.0  # seconds that one may wait at most
MAX_TEXT: Final = 1_000  # characters of a reason: some of it may be what a peer sent

_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class EventLog:
    def __init__(
        self, epoch: int = 0, clock: Callable[[], float] = time.time, capacity: int = CAPACITY
    ) -> None:
        """`clock` gives wall time, to the lifetimes of SAs as well."""
        self._epoch = epoch
        self.clock = clock
        self._ring: deque[Event] = deque(maxlen=capacity)
        self._number = 0  # of the newest
        self._arrived: trio.Event | None = None  # once somebody waits
        self._waiting = 0

    def emit(
        self,
        kind: str,
        *,
        tunnel: str | None = None,
        node: str | None = None,
        spi: int | None = None,
        reason: object = None,
        **details: str | int | float,
    ) -> None:
        """Tell of something; `kind` is one of KINDS. Nothing in it may be a secret. Never blocks."""
        severity = KINDS[kind]
        self._number += 1
        event = Event(
            number=self._number,
            time=round(self.clock(), 3),
            kind=kind,
            severity=severity,
            tunnel=tunnel,
            node=node,
            spi=None if spi is None else f"{spi:08x}",
            reason=None if reason is None else str(reason)[:MAX_TEXT],
            details=details,
        )
        self._ring.append(event)
        log.log(_LEVELS[severity], event)
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None

    async def answer(self, request: GetEvents) -> Events:
        """What is asked for; if there is none yet and `wait` allows it, when there is. Raises Refused."""
        found = self.read(request)
        if found.events or request.wait <= 0:
            return found
        if self._waiting >= WAITING:
            raise Refused(f"{WAITING} others follow the events already; try again when one of them ends")
        self._waiting += 1
        try:
            with trio.move_on_after(min(request.wait, PATIENCE)):
                while not found.events:
                    if self._arrived is None:
                        self._arrived = trio.Event()
                    await self._arrived.wait()
                    found = self.read(request)
        finally:
            self._waiting -= 1
        return found

    def read(self, request: GetEvents) -> Events:
        """The events behind number `after`; of more than a page, the first, or the last where they are asked
        for.
        """
        after = request.after if request.epoch in (0, self._epoch) else 0
        behind = []
        for event in reversed(self._ring):
            if event.number <= after or (request.since is not None and event.time < request.since):
                break
            behind.append(event)
        found = [event for event in reversed(behind) if _matches(event, request)]
        last = self._number
        if request.last is not None:
            found = found[-request.last :] if request.last > 0 else []
        elif len(found) > PAGE:
            found = found[:PAGE]
            last = found[-1].number
        oldest = self._ring[0].number if self._ring else self._number + 1
        lost = max(0, oldest - after - 1) if request.epoch else 0
        return Events(epoch=self._epoch, last=last, lost=lost, events=tuple(found))


def _matches(event: Event, request: GetEvents) -> bool:
    return request.tunnel in (None, event.tunnel) and request.node in (None, event.node)
