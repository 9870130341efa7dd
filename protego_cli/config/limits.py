"""Rate limits in the cluster file: `limit = { in = "100 Mbit/s", out = "50 Mbit/s", burst = "50 ms" }`.

Rates are of inner IP packets, in bits per second. A burst is bytes, or a time at the rate; one of a time is
never less than a batch of packets, so that a slow tunnel's limit does not cut into what comes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from protego_cli.config.fields import Table
from protego_cli.config.model import LimitConfig, Rate, TenantConfig, TunnelConfig
from protego_cli.config.values import shown

RATE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kMG]?)bit/s")
TIME: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(ms|s)")
SIZE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([kM])B")
FACTORS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
SECONDS: Final = {"ms": 0.001, "s": 1.0}
SLOWEST, FASTEST = 10_000, 10**12  # bits per second
SMALLEST, LARGEST = 15_000, 10**9  # bytes of a burst: ten packets of 1,500 at least
LONGEST: Final = 10.0  # seconds
BATCH: Final = 65_536  # bytes: what a sender's or receiver's card hands over at once
DEFAULT_BURST: Final = 0.05  # seconds

Burst = int | float
"""Bytes as an int, seconds as a float."""


def rate(value: object) -> int:
    """Bits per second."""
    bits: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        bits = value
    elif isinstance(value, str) and (match := RATE.fullmatch(value)):
        bits = float(match[1]) * FACTORS[match[2]]
    if bits is None or not SLOWEST <= bits <= FASTEST:
        raise ValueError(
            'expected a rate such as "100 Mbit/s", "2.5 Gbit/s" or 512000 (bits per second), '
            f"from 10 kbit/s to 1000 Gbit/s, got {shown(value)}"
        )
    return round(bits)


def burst(value: object) -> Burst:
    found: Burst | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        found = value if SMALLEST <= value <= LARGEST else None
    elif isinstance(value, str) and (size := SIZE.fullmatch(value)):
        found = round(float(size[1]) * FACTORS[size[2]])
        found = found if SMALLEST <= found <= LARGEST else None
    elif isinstance(value, str) and (time := TIME.fullmatch(value)):
        found = float(time[1]) * SECONDS[time[2]]
        found = found if 0.001 <= found <= LONGEST else None
    if found is None:
        raise ValueError(
            f'expected a burst as a time such as "50 ms", from 1 ms to 10 s, or as bytes such as "256 kB" '
            f"or 262144, from {SMALLEST} to {LARGEST}, got {shown(value)}"
        )
    return found


def read_limit(table: Table) -> LimitConfig:
    """The `limit` of a tunnel or a tenant."""
    inward = table.take("in", rate, None)
    outward = table.take("out", rate, None)
    size = table.take("burst", burst, DEFAULT_BURST)
    if "burst" in table and not ("in" in table or "out" in table):
        table.fault("expected in, out or both beside burst")
    table.done()
    return LimitConfig(_bucket(inward, size), _bucket(outward, size))


def _bucket(bits: int | None, size: Burst) -> Rate | None:
    if bits is None:
        return None
    if isinstance(size, float):
        size = min(max(round(size * bits / 8), BATCH), LARGEST)
    return Rate(bits, size)


def spelled(bits: int) -> str:
    """A rate in the largest unit that says it exactly."""
    unit = next(unit for unit in "GMk" if bits % FACTORS[unit] == 0 or unit == "k")
    return f"{bits / FACTORS[unit]:g} {unit}bit/s"


def described(limit: LimitConfig) -> str:
    """A limit as one line; empty for none."""
    ways = ("in", limit.inward), ("out", limit.outward)
    return ", ".join(f"{way} {spelled(rate.bits)} (burst {rate.burst} bytes)" for way, rate in ways if rate)


def unreachable(tenant: TenantConfig, tunnel: TunnelConfig) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of a tunnel's rates that its tenant's contract never lets it have."""
    for key, own, whole in (
        ("limit.in", tunnel.limit.inward, tenant.limit.inward),
        ("limit.out", tunnel.limit.outward, tenant.limit.outward),
    ):
        if own and whole and own.bits > whole.bits:
            problem = f"{spelled(own.bits)} is above the {spelled(whole.bits)} that all tunnels of tenant "
            yield key, problem + f"{tenant.name} have together; lower it, or leave it out"
