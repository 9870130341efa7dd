"""The record of a rate limit (`control/sas/limits.py` says who gets which)."""

from __future__ import annotations

from protego_cli.config.model import Rate
from protego_cli.control.channel.message import Record


class Limit(Record, frozen=True):
    """GPN: what a tunnel may carry, by its id; or what all tunnels of a tenant may on this GPN, by the VNI.
    GEN: the coarse ceiling of the same, outward alone. Rates are of inner packets; None for no limit.
    """

    of: str | int
    inward: Rate | None
    outward: Rate | None

    @property
    def key(self) -> tuple[str, int | str]:
        return "limit", self.of
