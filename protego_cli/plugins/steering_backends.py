"""Built-in steering backends.

`mux` passes packets on in this process, in GRO and GSO batches. It needs no privilege and runs everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from protego_cli.counters import Counters
from protego_cli.hookspecs import hookimpl
from protego_cli.net.egress import MuxEgress
from protego_cli.net.ingress import MuxIngress
from protego_cli.net.steering import Egress, Ingress, Own, Sender, SteeringBackend


class Mux:
    name = "mux"

    def unavailable(self) -> str | None:
        return None

    def ingress(self, fabric: Sender, counters: Counters) -> Ingress:
        return MuxIngress(fabric, counters)

    def egress(self, fabric: Sender, counters: Counters, own: Own) -> Egress:
        return MuxEgress(fabric, counters, own)


@hookimpl
def protego_steering_backends() -> Sequence[SteeringBackend]:
    return [Mux()]
