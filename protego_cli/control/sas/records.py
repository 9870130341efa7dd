"""From a tunnel and its CHILD_SAs to the records that data nodes hold. Pure."""

from __future__ import annotations

import math
from typing import Literal

from protego_cli.control.channel.desired_records import Route, Rule, Sa
from protego_cli.control.sas.tunnel import Placed, Tunnel


def sa_record(tunnel: Tunnel, placed: Placed) -> Sa:
    """The SAD entry of a CHILD_SA on its GPN."""
    child = placed.child
    return Sa(
        spi_in=child.spi_in,
        spi_out=child.spi_out,
        tunnel=tunnel.id,
        vni=tunnel.vni,
        encryption=child.encryption,
        key_in=child.key_in,
        key_out=child.key_out,
        local_ts=child.local_ts,
        remote_ts=child.remote_ts,
        vip=child.path.local,
        peer=placed.peer[0],
        peer_port=placed.peer[1],
        seal_lo=placed.numbers.lo,
        seal_hi=placed.numbers.hi,
        floor=placed.floor,
        opens=placed.opens,
        window=placed.window,
        expires=None if math.isinf(placed.expires) else placed.expires,
        integrity=child.integrity,
        esn=child.esn,
        dscp=_dscp(tunnel.config.dscp),
        mtu=tunnel.config.mtu,
        fragment=tunnel.config.fragment,
        mss=tunnel.config.mss,
    )


def _dscp(option: Literal["copy", "clear"] | int) -> int | None:
    if option == "copy":
        return None
    return 0 if option == "clear" else option


def rule_record(placed: Placed, *, direct: bool = True) -> Rule:
    return Rule(placed.strand.name, placed.spi, direct)


def route_record(tunnel: Tunnel, placed: Placed) -> Route:
    """What the peer's side of the CHILD_SA's selectors covers, as prefixes."""
    prefixes = dict.fromkeys(prefix for selector in placed.child.remote_ts for prefix in selector.prefixes())
    return Route(placed.strand.name, tunnel.vni, tuple(prefixes), placed.gpn)
