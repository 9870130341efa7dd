"""The receipt: what a run sent and what became of it. Pure arithmetic on what the endpoints counted.

A packet that was sent and that its receiver has not seen when it stops listening is lost. A migration is
proven by packets: `via_old` counts what the source GPN carried since the tunnel's previous migration (or
the start), `via_new` what the target carried until the tunnel's next one (or the end), both as the tenant's
endpoint saw them arrive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from protego_cli.lab.protocol import SiteCount, Snapshot


@dataclass(frozen=True)
class Move:
    """A migration that was carried out, and its tunnel's counts at the tenant just before."""

    tunnel: str
    source: str
    to: str
    total_ms: float
    before: dict[str, int]  # packets received so far, per GPN


class MigrationTimes(msgspec.Struct, frozen=True):
    p50: float
    p99: float
    max: float


class PerMigration(msgspec.Struct, frozen=True, rename={"source": "from"}):
    tunnel: str
    source: str
    to: str
    via_old: int
    via_new: int


class Receipt(msgspec.Struct, frozen=True):
    """`protego local --json`: a contract. Counts are over both directions; `pps` per tunnel and direction."""

    tunnels: int
    migrations: int
    sent: int
    received: int
    lost: int
    misdelivered: int
    corrupted: int
    duplicated: int
    reordered: int
    pps: float
    migration_ms: MigrationTimes
    per_migration: tuple[PerMigration, ...]

    def faults(self) -> list[str]:
        """Why this run failed, in words; empty when it did not."""
        found = [
            f"{count} {'packet was' if count == 1 else 'packets were'} {what}"
            for count, what in (
                (self.lost, "lost"),
                (self.misdelivered, "misdelivered"),
                (self.corrupted, "corrupted"),
                (self.duplicated, "duplicated"),
            )
            if count
        ]
        if not self.received:
            found.append("no packet arrived at all")
        for index, move in enumerate(self.per_migration, 1):
            idle = [name for name, via in ((move.source, move.via_old), (move.to, move.via_new)) if not via]
            if idle:
                found.append(f"migration {index} of {move.tunnel}: {' and '.join(idle)} carried no packet")
        return found


def make_receipt(
    peers: Snapshot, tenants: Snapshot, tunnels: Sequence[str], moves: Sequence[Move]
) -> Receipt:
    """From the endpoints' last words. Their sites are in the order of `tunnels`."""
    sent = received = lost = 0
    for peer, tenant in zip(peers.sites, tenants.sites, strict=True):
        for source, sink in ((peer, tenant), (tenant, peer)):
            sent += source.sent
            received += sink.received
            lost += source.sent - sink.received
    both = (*peers.sites, *tenants.sites)
    times = sorted(move.total_ms for move in moves)
    rates = [
        sum(site.sent for site in end.sites) / len(end.sites) / end.seconds
        for end in (peers, tenants)
        if end.sites and end.seconds
    ]
    return Receipt(
        tunnels=len(tunnels),
        migrations=len(moves),
        sent=sent,
        received=received,
        lost=lost,
        misdelivered=peers.misdelivered + tenants.misdelivered,
        corrupted=peers.corrupted + tenants.corrupted,
        duplicated=sum(site.duplicated for site in both),
        reordered=sum(site.reordered for site in both),
        pps=round(min(rates, default=0.0), 1),
        migration_ms=MigrationTimes(percentile(times, 50), percentile(times, 99), percentile(times, 100)),
        per_migration=_prove(moves, dict(zip(tunnels, tenants.sites, strict=True))),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank, to a hundredth; 0 when there is nothing to rank."""
    if not ordered:
        return 0.0
    return round(ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)], 2)


def _prove(moves: Sequence[Move], final: dict[str, SiteCount]) -> tuple[PerMigration, ...]:
    proofs: list[PerMigration] = []
    for index, move in enumerate(moves):
        previous = next((m.before for m in reversed(moves[:index]) if m.tunnel == move.tunnel), {})
        after = next(
            (m.before for m in moves[index + 1 :] if m.tunnel == move.tunnel), final[move.tunnel].via
        )
        via_old = move.before.get(move.source, 0) - previous.get(move.source, 0)
        via_new = after.get(move.to, 0) - move.before.get(move.to, 0)
        proofs.append(PerMigration(move.tunnel, move.source, move.to, via_old, via_new))
    return tuple(proofs)
