"""Errors to the senders of packets that go no further: too big (`oversize.py`), or out of hops.

1. At a bounded rate for each pair of SAs, both directions together.
2. From the gateway's inner address; or as if from the packet's destination, where the gateway has none, or
   where the tunnel's selectors do not let that through: nothing is sealed that is not the tunnel's.
3. A tenant's machine is told in VXLAN, as whatever is delivered there. A peer's is told through the tunnel
   that its packet came by: `peer` returns what is to be sealed on that pair.
"""

from __future__ import annotations

from collections.abc import Mapping

from protego_cli.esp.limits import admit
from protego_cli.esp.outbox import Outbox
from protego_cli.esp.pairs import Pair
from protego_cli.esp.tenants import Tenant
from protego_cli.wire.icmp_errors import Fault, error_about
from protego_cli.wire.inner import parse


class Telling:
    def __init__(self, tenants: Mapping[int, Tenant], outbox: Outbox) -> None:
        self._tenants = tenants
        self._outbox = outbox

    def tenant(self, pair: Pair, packet: bytes, fault: Fault, counter: str, now: float) -> None:
        """Tell the sender of a packet from a tenant; `counter` counts what was sent."""
        if not admit((pair.errors,), 1, 1, now):
            return
        inner = parse(packet)
        tenant = self._tenants.get(pair.entry.vni)
        delivery = tenant.deliver(inner.addresses[: len(inner.addresses) // 2]) if tenant else None
        if tenant is None or delivery is None:
            return
        error = error_about(packet, fault, tenant.gateway.get(inner.version))
        if error is not None:
            datagram = delivery.header + error
            self._outbox.add(delivery.way._replace(counter=counter), len(datagram), datagram)

    def peer(self, pair: Pair, packet: bytes, fault: Fault, now: float) -> bytes | None:
        """What the sender of a packet from a peer is to be told; None for nothing."""
        if not admit((pair.errors,), 1, 1, now):
            return None
        tenant = self._tenants.get(pair.entry.vni)
        own = tenant.gateway.get(parse(packet).version) if tenant else None
        for source in (own, None) if own else (None,):
            error = error_about(packet, fault, source)
            if error is not None and pair.outbound.selectors.admit(parse(error), error):
                return error
        return None
