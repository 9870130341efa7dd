"""All that is known of one tunnel, for `protego tunnel show`; no key material."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

from protego_cli.config.diff import as_text
from protego_cli.config.model import TunnelConfig
from protego_cli.control.channel.operator_messages import (
    ChildSaDetail,
    IkeSaDetail,
    TunnelDetail,
    TunnelStatus,
)
from protego_cli.control.procedures.ageing import soft_time
from protego_cli.control.sas.tunnel import Placed, Tunnel, endpoint
from protego_cli.ike.view import IkeSaView

_REST: Final = ("window", "dscp", "mtu", "fragment", "mss", "limit", "apart", "lifetimes")


def tunnel_detail(tunnel: Tunnel, status: TunnelStatus, ike_sas: Sequence[IkeSaView]) -> TunnelDetail:
    now = time.time()
    return TunnelDetail(
        status=status,
        config=config_detail(tunnel.config),
        ike_sas=tuple(_ike_sa(sa, tunnel.ikes_since.get(sa.ike), now) for sa in ike_sas),
        child_sas=tuple(_child_sa(tunnel, placed) for placed in tunnel.sas.values()),
    )


def config_detail(config: TunnelConfig) -> dict[str, str | list[str] | None]:
    """The tunnel's keys as the cluster file spells them; of the secret, where it is."""
    return {
        "start": config.start,
        "peer": config.peer or "any",
        "vip": config.vip,
        "local_id": config.local_id,
        "remote_id": config.remote_id,
        "auth": f"psk, {config.auth.file}",
        "ike": list(config.ike),
        "esp": list(config.esp),
        "local_ts": list(config.local_ts),
        "remote_ts": list(config.remote_ts),
        "encapsulation": config.encapsulation,
        **{name: as_text(getattr(config, name)) or None for name in _REST},
    }


def _ike_sa(sa: IkeSaView, since: float | None, now: float) -> IkeSaDetail:
    path = sa.path
    return IkeSaDetail(
        spi_i=sa.spi_i.hex(),
        spi_r=sa.spi_r.hex(),
        suite=sa.suite,
        initiator="gateway" if sa.initiator else "peer",
        local=endpoint((path.local, path.local_port)),
        peer=endpoint((path.remote, path.remote_port)),
        nat=sa.peer_natted,
        encapsulated=sa.encapsulated,
        since=since,
        heard=now - sa.silent_for,
        rekey=None if sa.rekey_in is None else now + sa.rekey_in,
        expires=None if sa.dies_in is None else now + sa.dies_in,
        exchanges=sa.waiting,
    )


def _child_sa(tunnel: Tunnel, placed: Placed) -> ChildSaDetail:
    child, total = placed.child, placed.meter.total
    lives = math.isfinite(placed.expires) and not placed.retiring
    return ChildSaDetail(
        spi_in=f"{placed.spi:08x}",
        spi_out=f"{child.spi_out:08x}",
        state=_state(placed),
        gpn=placed.gpn,
        suite=child.suite,
        local_ts=tuple(map(str, child.local_ts)),
        remote_ts=tuple(map(str, child.remote_ts)),
        peer=endpoint(placed.peer),
        since=placed.since,
        rekey=soft_time(tunnel, placed) if lives else None,
        expires=placed.expires if lives else None,
        opens=placed.opens,
        seal_lo=placed.numbers.lo,
        seal_hi=placed.numbers.hi,
        sealed=max(0, placed.meter.next_out - placed.numbers.lo),
        highest_in=placed.meter.highest_in,
        packets_in=total.packets_in,
        packets_out=total.packets_out,
        bytes_in=total.bytes_in,
        bytes_out=total.bytes_out,
    )


def _state(placed: Placed) -> str:
    if placed.retiring:
        return "retiring"
    if placed.seals:
        return "sealing"
    return "successor" if placed is placed.strand.successor else "standing"
