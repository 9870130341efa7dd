"""Built-in steering backends.

`mux` passes packets on in this process, in GRO and GSO batches. It needs no privilege and runs everywhere.
`nftables` has the kernel of a GIN pass ESP on, so that it costs no process anything. A GEN steers by VNI and
the longest inner prefix, which no rule can do: there it is `mux`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from protego_cli.counters import Counters
from protego_cli.hookspecs import hookimpl
from protego_cli.net.egress import MuxEgress
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.nftables import NftIngress, fault
from protego_cli.net.steering import Door, Egress, Ingress, Own, Sender, SteeringBackend


class Mux:
    name = "mux"

    def unavailable(self, role: Literal["gin", "gen"]) -> str | None:
        return None

    def ingress(self, fabric: Sender, counters: Counters, door: Door) -> Ingress:
        return MuxIngress(fabric, counters)

    def egress(self, fabric: Sender, counters: Counters, own: Own) -> Egress:
        return MuxEgress(fabric, counters, own)


class Nftables(Mux):
    name = "nftables"

    def unavailable(self, role: Literal["gin", "gen"]) -> str | None:
        return fault() if role == "gin" else None

    def ingress(self, fabric: Sender, counters: Counters, door: Door) -> Ingress:
        return NftIngress(fabric, counters, door)


@hookimpl
def protego_steering_backends() -> Sequence[SteeringBackend]:
    return [Mux(), Nftables()]
