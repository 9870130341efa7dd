"""Scenes in which a gateway may have to stop: one for every state of the law, one for every exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from protego_cli.ike.events import IkeClosed
from protego_cli.ike.exchanges.delete import Withdraw
from protego_cli.ike.sa import IkeSa
from protego_cli.ike.snapshot import IkeSaState, capture
from protego_cli.ike.transitions import State
from tests.support.ike_pairs import GATEWAY, PEER, SPI, TUNNEL, connected, pair
from tests.support.network import Network, Site

NEW = 0x22222222

Scene = tuple[Network, Site, Site]


# ---- one scene for every state in which a gateway may have to stop


def dialled() -> Scene:
    network, gateway, peer = pair()
    gateway.dial(TUNNEL, PEER, SPI)
    return network, gateway, peer


def asked_to_prove() -> Scene:
    network, gateway, peer = dialled()
    network.run(lambda: gateway_sa(gateway).state is State.AUTH_SENT)
    return network, gateway, peer


def invited() -> Scene:
    network, gateway, peer = pair()
    peer.dial(TUNNEL, GATEWAY, SPI)
    network.run(lambda: bool(gateway.context.by_spi))
    return network, gateway, peer


def held() -> Scene:
    network, gateway, peer = pair()
    gateway.hold = True
    peer.dial(TUNNEL, GATEWAY, SPI)
    network.run(lambda: bool(gateway.tickets))
    gateway.hold = False
    return network, gateway, peer


def replaced() -> Scene:
    network, gateway, peer = connected()
    peer.rekey_ike()
    network.run(lambda: len(gateway.context.by_spi) == 2)
    return network, gateway, peer


def closing() -> Scene:
    network, gateway, peer = connected()
    gateway.close()
    return network, gateway, peer


def final() -> Scene:
    network, gateway, peer = connected()
    peer.close()
    network.run(lambda: bool(gateway.of(IkeClosed)))
    return network, gateway, peer


SCENES: dict[State, Callable[[], Scene]] = {
    State.INIT_SENT: dialled,
    State.AUTH_SENT: asked_to_prove,
    State.HALF_OPEN: invited,
    State.AUTH_HELD: held,
    State.ESTABLISHED: connected,
    State.REPLACED: replaced,
    State.CLOSING: closing,
    State.FINAL: final,
}


# ---- and for every exchange that may be under way


def rekeying() -> Scene:
    network, gateway, peer = connected()
    gateway.rekey(gateway.child.spi_in, NEW)
    return network, gateway, peer


def rekeying_the_ike_sa() -> Scene:
    network, gateway, peer = connected()
    gateway.rekey_ike()
    return network, gateway, peer


def creating() -> Scene:
    network, gateway, peer = connected()
    gateway.create(NEW)
    return network, gateway, peer


def deleting() -> Scene:
    network, gateway, peer = rekeying()
    network.settle()
    gateway.delete(next(iter(gateway.children)))
    return network, gateway, peer


def asking() -> Scene:
    network, gateway, peer = connected()
    gateway.check_alive()
    return network, gateway, peer


def withdrawing() -> Scene:
    network, gateway, peer = connected()
    gateway_sa(gateway).start(Withdraw(NEW), network.now)
    gateway.settle()
    return network, gateway, peer


def crossing() -> Scene:
    """Both rekey the IKE_SA, and the peer's new one stands before ours."""
    network, gateway, peer = connected()
    gateway.rekey_ike()
    peer.rekey_ike()
    network.run(lambda: len(gateway.context.by_spi) == 2)
    return network, gateway, peer


EXCHANGES: dict[str, Callable[[], Scene]] = {
    "Dial": dialled,
    "Authenticate": asked_to_prove,
    "CreateChild": creating,
    "RekeyChild": rekeying,
    "RekeyIke": rekeying_the_ike_sa,
    "DeleteChild": deleting,
    "DeleteIke": closing,
    "CheckAlive": asking,
    "Withdraw": withdrawing,
}


def gateway_sa(site: Site) -> IkeSa:
    """The IKE_SA that the driver knows, or the only one."""
    context = site.context
    (sa,) = context.by_handle.values() or context.by_spi.values()
    return sa


# ---- what is stored


def states(site: Site) -> list[bytes]:
    return [capture(sa) for sa in site.context.by_spi.values()]


def parsed(data: bytes) -> IkeSaState:
    return msgspec.msgpack.decode(data[1:], type=IkeSaState)


def changed(data: bytes, **changes: Any) -> bytes:
    return data[:1] + msgspec.msgpack.encode(msgspec.structs.replace(parsed(data), **changes))
