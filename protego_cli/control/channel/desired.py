"""Desired state on the side that holds it: what a data node has been told, and what a message changes in it.

`Holding` applies `Sync` and `Update` (see `node_messages.py` for their promises) to a target that knows only
`put` and `drop`. A Sync becomes its difference from what is held, so that what stays is never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, Protocol

from protego_cli.control.channel.desired_records import (
    AnyRecord,
    Limit,
    Neighbour,
    Park,
    Peer,
    Route,
    Rule,
    Sa,
    Steer,
    Tenant,
    Tun,
)
from protego_cli.control.channel.message import Failed, Key
from protego_cli.control.channel.node_messages import Applied, Refusal, Stale, Sync, Update
from protego_cli.errors import ProtegoError, Refused

log = logging.getLogger(__name__)

NAMED: Final = 8192  # records refused in one message; of more than that the message is refused
REASONS: Final = 64  # of these that have a reason

# A record may name those of the types before its own: puts go in this order, drops in the reverse one.
_ORDER: tuple[type[AnyRecord], ...] = (Neighbour, Tenant, Tun, Park, Limit, Sa, Rule, Peer, Steer, Route)


def _rank(record: AnyRecord) -> int:
    return _ORDER.index(type(record))


class Target(Protocol):
    """What acts on the records."""

    def put(self, record: AnyRecord) -> None:
        """Add the record, or replace the one of its key. Raises ProtegoError or ValueError when it cannot be
        acted on.
        """
        ...

    def drop(self, key: Key) -> None:
        """Forget the record of this key. Called only for keys that were put."""
        ...


def put(target: Target, record: AnyRecord) -> None:
    """Put a record. Raises ProtegoError; where one of its values is of no use, a Refused that names it."""
    try:
        target.put(record)
    except ValueError as error:
        raise Refused(f"{record.key[0]} {record.key[1]}: {error}") from error


def difference(held: dict[Key, AnyRecord], wanted: Iterable[AnyRecord]) -> tuple[list[AnyRecord], list[Key]]:
    """The puts and drops that lead from `held` to `wanted`."""
    target = {record.key: record for record in wanted}
    puts = [record for key, record in target.items() if held.get(key) != record]
    return puts, [key for key in held if key not in target]


class Holding:
    """The records a node holds, with the epoch and revision they stand at."""

    def __init__(self, target: Target) -> None:
        self.epoch = 0  # the highest ever seen
        self.records: dict[Key, AnyRecord] = {}
        self._target = target
        self._revision: int | None = None  # None: a Sync must come first

    def expect_sync(self) -> None:
        """A new connection begins: nothing follows what was held until its Sync came."""
        self._revision = None

    def sync(self, message: Sync) -> Applied | Failed:
        """Reconcile with the whole desired state."""
        if message.epoch < self.epoch:
            return self._refuse(message.epoch)
        self.epoch = message.epoch
        puts, drops = difference(self.records, message.records)
        self._revision = message.revision
        return self._apply(message.revision, puts, drops)

    def update(self, message: Update) -> Applied | Stale | Failed:
        """Apply what changed; a repetition changes nothing, and a gap asks for a Sync."""
        if message.epoch < self.epoch:
            return self._refuse(message.epoch)
        if self._revision is None or message.epoch > self.epoch or message.revision > self._revision + 1:
            return Stale(self._revision or 0)
        if message.revision <= self._revision:
            return Applied(message.revision)
        self._revision = message.revision
        puts = [record for record in message.put if self.records.get(record.key) != record]
        drops = [key for key in message.drop if key in self.records]
        return self._apply(message.revision, puts, drops)

    def _refuse(self, epoch: int) -> Failed:
        return Failed(
            f"epoch {epoch} is below {self.epoch}, which this node has seen: another GMN has taken over"
        )

    def _apply(self, revision: int, puts: list[AnyRecord], drops: list[Key]) -> Applied | Failed:
        """One record that cannot be acted on keeps the others from nothing; it is tried again when it is put
        again, and by a Sync.
        """
        puts.sort(key=_rank)
        drops.sort(key=lambda key: _rank(self.records[key]), reverse=True)
        refused: list[Refusal] = []
        for record in puts:
            try:
                put(self._target, record)
            except ProtegoError as error:
                log.error("record refused key=%s/%s reason=%s", *record.key, error)  # noqa: TRY400 - no trace
                refused.append(Refusal(*record.key, str(error) if len(refused) < REASONS else ""))
            else:
                self.records[record.key] = record
        for key in drops:
            self._target.drop(key)
            del self.records[key]
        if len(refused) > NAMED:
            return Failed(f"{len(refused)} records refused; the first: {refused[0].reason}")
        return Applied(revision, tuple(refused))
