"""Which node holds which tunnel and which tenant to its rate limit, and to how much of it. No waiting here.

1. A tunnel's limit goes whole to every GPN that holds an SA of it, and leaves with the last one. A tunnel is
   on two GPNs at a time only around a migration; the burst that the new one begins with covers the change.
2. A tenant's limit is the sum over its tunnels, which may lie on many GPNs. It is divided by what the tunnels
   of each ask for: what passed and what limits dropped, averaged over `WINDOW` seconds. Where they ask for
   less than the limit, the rest is divided equally; where they ask for more, each gets in proportion, as
   packets would out of one bucket. The parts add up to the limit, in rate and, but for the least burst, in
   burst.
3. It is divided anew with the GPNs' reports, when some part has changed by `NOTABLE`, and at once when an SA
   comes or goes.
4. A tunnel asks at its home, the GPN that seals for it. A GPN that holds another SA of it, at either end of a
   migration, gets the tunnel's part too: for that time, that part is there twice, so that no packet is lost
   to the migration.
5. GEN and GIN know nothing of a packet's worth, so they hold coarse ceilings, which the traffic that a GPN
   would pass stays below. Every GEN holds those of all limited tunnels and tenants. A GIN holds each SPI to
   one, against forgers: what they send takes only that much of a GPN.

The work of a change or a report grows with the number of tunnels that are up, of the tenants it concerns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from protego_cli.config.model import Cluster, LimitConfig, Rate, TenantConfig
from protego_cli.control.channel.desired_records import AnyRecord, Limit
from protego_cli.control.channel.message import Key
from protego_cli.control.packing.load import INTERVAL, Average, Passed
from protego_cli.control.sas.tunnel import Tunnel

WINDOW: Final = 2.0  # seconds over which is averaged what tunnels ask for
NOTABLE: Final = 0.02  # share of a tenant's limit
LEAST_BURST: Final = 15_000  # bytes: however little is asked for, some packets pass
GEN_CEILING: Final = 1.25  # of the limit
GIN_CEILING: Final = 2.0


class Desires(Protocol):
    """The part of `Fabric` that decides."""

    def desire(self, node: str, put: Iterable[AnyRecord] = (), drop: Iterable[Key] = ()) -> None: ...


class _Tenant:
    """A tenant with a limit."""

    def __init__(self, config: TenantConfig) -> None:
        self.vni = config.vni
        self.limit = config.limit
        self.tunnels: dict[str, Tunnel] = {}  # those that have SAs
        self.asked: dict[str, Average] = {}  # bits per second, in and out, by tunnel
        self.parts: dict[str, Limit] = {}  # by GPN


class Limits:
    def __init__(self, cluster: Cluster, nodes: Desires) -> None:
        self._nodes = nodes
        self._gens: tuple[str, ...] = ()
        self._ceilings: dict[Key, Limit] = {}  # what every GEN holds
        self._tenants: dict[str, _Tenant] = {}
        self._seats: dict[str, set[str]] = {}  # the GPNs that hold a tunnel's limit
        self._heard: dict[str, float] = {}  # when each GPN reported
        self._limit_gens(cluster)
        self._limit_tenants(cluster)

    def reload(self, cluster: Cluster, tunnels: Iterable[Tunnel], now: float) -> None:
        """Hold to what another cluster file says, from now on; no SA is touched by that."""
        self._limit_gens(cluster)
        self._limit_tenants(cluster)
        for tunnel in tunnels:
            self._hold(tunnel)
        for tenant in self._tenants.values():
            self._divide(tenant, now, notable=0.0)

    def _limit_tenants(self, cluster: Cluster) -> None:
        before, self._tenants = self._tenants, {}
        for config in cluster.tenants:
            if _limits(config.limit):
                tenant = before.get(config.name)
                if tenant is None or tenant.vni != config.vni:
                    tenant = _Tenant(config)
                tenant.limit = config.limit
                self._tenants[config.name] = tenant
        for name, tenant in before.items():
            if self._tenants.get(name) is not tenant:
                for gpn in tenant.parts:
                    self._nodes.desire(gpn, (), (("limit", tenant.vni),))

    def _limit_gens(self, cluster: Cluster) -> None:
        before, gens = self._ceilings, tuple(gen.name for gen in cluster.nodes_of("gen"))
        self._ceilings = {record.key: record for record in _ceilings(cluster)}
        changed = [record for key, record in self._ceilings.items() if before.get(key) != record]
        gone = [key for key in before if key not in self._ceilings]
        for gen in gens:
            if gen in self._gens:
                self._nodes.desire(gen, changed, gone)
            else:
                self._nodes.desire(gen, self._ceilings.values())
        self._gens = gens

    def ceiling(self, tunnel: Tunnel) -> Rate | None:
        """What a GIN passes on of one SPI of the tunnel."""
        tenant = self._tenants.get(tunnel.config.tenant)
        rates = [tunnel.config.limit.inward, tenant.limit.inward if tenant else None]
        lowest = min((rate for rate in rates if rate), key=lambda rate: rate.bits, default=None)
        return _scaled(lowest, GIN_CEILING)

    # ---- what lies where

    def settle(self, tunnel: Tunnel, now: float) -> Sequence[str]:
        """An SA of the tunnel came, moved or went. Returns the GPNs that have another part of its tenant's
        limit now.
        """
        tenant = self._hold(tunnel)
        return self._divide(tenant, now) if tenant else ()

    def _hold(self, tunnel: Tunnel) -> _Tenant | None:
        """Put the tunnel's own limit where its SAs are. Returns its tenant, if that has a limit."""
        limit = tunnel.config.limit
        held = self._seats.pop(tunnel.id, set())
        seats = {placed.gpn for placed in tunnel.sas.values()} if _limits(limit) else set()
        for gpn in seats:
            self._nodes.desire(gpn, (Limit(tunnel.id, limit.inward, limit.outward),))
        for gpn in held - seats:
            self._nodes.desire(gpn, (), (("limit", tunnel.id),))
        if seats:
            self._seats[tunnel.id] = seats
        tenant = self._tenants.get(tunnel.config.tenant)
        if tenant is not None and tunnel.sas:
            tenant.tunnels[tunnel.id] = tunnel
        elif tenant is not None:
            tenant.tunnels.pop(tunnel.id, None)
            tenant.asked.pop(tunnel.id, None)
        return tenant

    def report(self, gpn: str, passed: Iterable[Passed], now: float) -> Sequence[str]:
        """A GPN has reported. Returns the GPNs whose part of some tenant's limit changed."""
        if not self._tenants:
            return ()
        interval = min(max(now - self._heard.get(gpn, now - INTERVAL), 0.05), WINDOW)
        self._heard[gpn] = now
        tenants: dict[str, _Tenant] = {}
        for each in passed:
            name = each.tunnel.partition("/")[0]
            tenant = self._tenants.get(name)
            if tenant is not None and each.tunnel in tenant.tunnels:
                totals = each.totals
                bits_in = 8 * (totals.bytes_in + totals.limited_bytes_in)
                bits_out = 8 * (totals.bytes_out + totals.limited_bytes_out)
                asked = tenant.asked.setdefault(each.tunnel, Average(2, now - interval, WINDOW))
                asked.feed((bits_in, bits_out), interval, now)
                tenants[name] = tenant
        return [changed for tenant in tenants.values() for changed in self._divide(tenant, now)]

    def _divide(self, tenant: _Tenant, now: float, notable: float = NOTABLE) -> Sequence[str]:
        """Desire of the GPNs their parts of a tenant's limit, if one has changed by more than that share."""
        home: dict[str, list[tuple[float, float]]] = {}
        visited: dict[str, list[tuple[float, float]]] = {}
        for name, tunnel in tenant.tunnels.items():
            average = tenant.asked.get(name)
            bits_in, bits_out = average.read(now) if average else (0.0, 0.0)
            newest = next(reversed(tunnel.sas.values()))
            seat = (tunnel.sealing or newest).gpn
            for gpn in {placed.gpn for placed in tunnel.sas.values()} | {seat}:
                (home if gpn == seat else visited).setdefault(gpn, []).append((bits_in, bits_out))
        inward, outward = (
            parts(rate, _sums(home, way), _sums(visited, way))
            for way, rate in enumerate((tenant.limit.inward, tenant.limit.outward))
        )
        now_due = {gpn: Limit(tenant.vni, inward.get(gpn), outward.get(gpn)) for gpn in home | visited}
        gone = [gpn for gpn in tenant.parts if gpn not in now_due]
        if not gone and all(
            _alike(tenant.limit, tenant.parts.get(gpn), due, notable) for gpn, due in now_due.items()
        ):
            return ()
        for gpn in gone:
            self._nodes.desire(gpn, (), (("limit", tenant.vni),))
        for gpn, due in now_due.items():
            self._nodes.desire(gpn, (due,))
        tenant.parts = now_due
        return [*now_due, *gone]


def parts(rate: Rate | None, home: Mapping[str, float], visited: Mapping[str, float]) -> dict[str, Rate]:
    """A limit divided among GPNs by the bits per second that their tunnels ask for: those that are at home
    there, and those that are at home elsewhere.
    """
    if rate is None:
        return {}
    asked = sum(home.values())
    spare = max(0.0, rate.bits - asked) / max(1, len(home))
    scale = min(1.0, rate.bits / asked) if asked else 0.0
    found: dict[str, Rate] = {}
    for gpn in {**home, **visited}:
        bits = (home.get(gpn, 0.0) + visited.get(gpn, 0.0)) * scale + spare
        bits = min(max(int(bits), 1), rate.bits)
        found[gpn] = Rate(bits, max(rate.burst * bits // rate.bits, min(LEAST_BURST, rate.burst)))
    return found


def _sums(by_gpn: Mapping[str, list[tuple[float, float]]], way: int) -> dict[str, float]:
    return {gpn: sum(bits[way] for bits in tunnels) for gpn, tunnels in by_gpn.items()}


def _alike(limit: LimitConfig, before: Limit | None, due: Limit, notable: float) -> bool:
    """Whether two parts of a limit differ by no more than that share of it."""
    if before is None:
        return False
    ways = (limit.inward, before.inward, due.inward), (limit.outward, before.outward, due.outward)
    return all(
        was == now or (whole and was and now and abs(was.bits - now.bits) <= notable * whole.bits)
        for whole, was, now in ways
    )


def _limits(limit: LimitConfig) -> bool:
    return limit.inward is not None or limit.outward is not None


def _scaled(rate: Rate | None, factor: float) -> Rate | None:
    return rate and Rate(round(rate.bits * factor), round(rate.burst * factor))


def _ceilings(cluster: Cluster) -> Iterable[Limit]:
    """What a GEN holds tunnels and tenants to."""
    for tenant in cluster.tenants:
        of: list[tuple[str | int, LimitConfig]] = [(tenant.vni, tenant.limit)]
        of += [(tunnel.id, tunnel.limit) for tunnel in tenant.tunnels]
        for name, limit in of:
            if limit.outward is not None:
                yield Limit(name, None, _scaled(limit.outward, GEN_CEILING))
