"""The state of an IKE_SA as bytes, and an engine's IKE_SAs again from such bytes.

`capture` is called for every IKE_SA that changed, before the datagrams of that change leave; `restore` once,
in a new process under a higher epoch. The rules:

- A request of ours that is outstanding is stored as the bytes that left, with all that its exchange needs to
  take the answer (an `ExchangeState`, in the exchange's own file), and is sent again at once. Of the
  exchanges that wait for their turn, those stay that say so (`survives`).
- A request of the peer whose response is held back is not stored: the peer sends it again, and it is offered
  anew, with a fresh SPI. So an IKE_SA in AUTH_HELD is stored as the half-open one it was. What its
  INITIAL_CONTACT has closed stays closed: the peer has proven that it knows nothing of it.
- When the peer was last heard, and the limits of a lifetime, are stored as wall-clock times. Half-open and
  lingering IKE_SAs get their time anew, since nobody listened meanwhile. Cookies are not stored: they are
  asked for once more.
- Our IVs begin with 16 bits of the epoch, so keys can serve in the 65,536 epochs from that in which they were
  `born`. In the last of these the IKE_SA is deleted; later it is forgotten, for it can seal nothing.
- An IKE_SA whose tunnel has left the configuration, or with CHILD_SAs of an algorithm that has gone, is
  reported as closed at once, and a DELETE tells the peer. Without its own algorithms it is forgotten.

The bytes hold keys. They never leave the process but sealed, and nothing of them shows in a repr.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from typing import Annotated, Final, cast

import msgspec

from protego_cli.crypto.proposal import IkeProposal, parse_ike
from protego_cli.errors import StateError
from protego_cli.ike.children import ChildState
from protego_cli.ike.context import NO_SPI, Context, RequestKey
from protego_cli.ike.events import ExchangeFailed, IkeClosed, Path, Standing
from protego_cli.ike.exchanges.alive import CheckAliveState
from protego_cli.ike.exchanges.auth import AuthenticateState
from protego_cli.ike.exchanges.base import Exchange
from protego_cli.ike.exchanges.create_child import CreateChildState
from protego_cli.ike.exchanges.delete import (
    DeleteChildState,
    DeleteIke,
    DeleteIkeState,
    WithdrawState,
    closing,
)
from protego_cli.ike.exchanges.init import DialState
from protego_cli.ike.exchanges.rekey_child import RekeyChildState
from protego_cli.ike.exchanges.rekey_ike import RekeyIkeState
from protego_cli.ike.keys import IkeKeys
from protego_cli.ike.sa import UNPROVEN, Handshake, IkeSa
from protego_cli.ike.succession import Rival
from protego_cli.ike.transitions import State
from protego_cli.ike.window import LAST_ID, ReceiveState, ReceiveWindow, SendState, SendWindow

VERSION: Final = 1
WORN: Final = "the gateway has restarted too often under its keys"
EPOCHS: Final = 1 << 16  # in which one key can serve

AnyExchange = (
    CheckAliveState
    | AuthenticateState
    | CreateChildState
    | DeleteChildState
    | DeleteIkeState
    | DialState
    | RekeyChildState
    | RekeyIkeState
    | WithdrawState
)
Spi = Annotated[bytes, msgspec.Meta(min_length=len(NO_SPI), max_length=len(NO_SPI))]

_HANDSHAKE: Final = frozenset({State.INIT_SENT, State.AUTH_SENT, State.HALF_OPEN})
_NAMED: Final = frozenset({State.ESTABLISHED, State.CLOSING})  # may have a handle and CHILD_SAs
_EXPIRING: Final = frozenset({State.HALF_OPEN, State.REPLACED, State.FINAL})
_STORED: Final = _HANDSHAKE | _NAMED | _EXPIRING
_OWN: Final[dict[type, State]] = {  # exchanges that are outstanding in one state, and always there
    DialState: State.INIT_SENT,
    AuthenticateState: State.AUTH_SENT,
    DeleteIkeState: State.CLOSING,
}


class Relations(msgspec.Struct, frozen=True, array_like=True):
    """Other IKE_SAs of the same peer, by our SPI (`ike.succession`); one that has gone has no say."""

    rival: tuple[bytes, bytes] | None  # and the lowest nonce
    contests: bytes | None
    heir: bytes | None
    ancestor: bytes | None


class IkeSaState(msgspec.Struct, frozen=True, array_like=True):
    state: State
    epoch: int  # under which this was stored
    born: int
    initiator: bool
    spi_i: Spi
    spi_r: Spi
    path: Path
    origin: str
    peer_natted: bool
    tunnel: str
    handle: int | None
    request_key: RequestKey | None
    last_heard: float  # wall-clock time, as the next two
    rekey_at: float | None
    dies_at: float | None
    failures: int
    relations: Relations
    handshake: Handshake | None
    suite: str | None
    keys: IkeKeys | None
    sender: SendState
    receiver: ReceiveState
    children: tuple[ChildState, ...]
    current: AnyExchange | None
    queue: tuple[AnyExchange, ...]
    forced: bool = True  # this and the next: left out by versions that always encapsulated
    encapsulated: bool = True

    def __repr__(self) -> str:
        return f"<IkeSaState {self.spi_i.hex()} {self.spi_r.hex()}>"

    @property
    def local_spi(self) -> bytes:
        return self.spi_i if self.initiator else self.spi_r


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(IkeSaState).decode


# ---- to bytes


def capture(sa: IkeSa) -> bytes:
    """The whole state of an IKE_SA that is not closed."""
    context, security = sa.context, sa.security
    unanswered = sa.state is State.AUTH_HELD  # to be stored as before the request
    state = IkeSaState(
        state=State.HALF_OPEN if unanswered else sa.state,
        epoch=context.epoch,
        born=sa.born,
        initiator=sa.initiator,
        spi_i=sa.spi_i,
        spi_r=sa.spi_r,
        path=sa.path,
        origin=sa.origin,
        peer_natted=sa.peer_natted,
        tunnel="" if unanswered else sa.name,
        handle=None if unanswered else sa.handle,
        request_key=sa.request_key,
        last_heard=sa.last_heard + context.wall,
        rekey_at=None if sa.rekey_at is None or unanswered else sa.rekey_at + context.wall,
        dies_at=None if sa.dies_at is None or unanswered else sa.dies_at + context.wall,
        failures=sa.failures,
        relations=Relations(
            (sa.rival.sa.local_spi, sa.rival.lowest) if sa.rival else None,
            sa.contests.local_spi if sa.contests else None,
            sa.heir.local_spi if sa.heir else None,
            sa.ancestor.local_spi if sa.ancestor else None,
        ),
        handshake=sa.handshake,
        suite=str(security.suite) if security else None,
        keys=security.keys if security else None,
        sender=sa.sender.state,
        receiver=sa.receiver.state,
        children=tuple(ChildState.of(child, sa.children) for child in sa.children.values()),
        current=_exchange(sa.current) if sa.current else None,
        queue=tuple(_exchange(exchange) for exchange in sa.queue if exchange.survives and not unanswered),
        forced=sa.forced,
        encapsulated=sa.encapsulated,
    )
    return bytes((VERSION,)) + _encode(state)


def _exchange(exchange: Exchange) -> AnyExchange:
    return cast(AnyExchange, exchange.state())  # a test holds the union against all there are


def standing(sa: IkeSa) -> Standing:
    """What the driver may know of an IKE_SA with a handle."""
    if sa.handle is None:
        raise RuntimeError("the driver does not know this IKE_SA")
    children = sa.children.values()
    return Standing(
        ike=sa.handle,
        tunnel=sa.name,
        path=sa.path,
        initiator=sa.initiator,
        suite=str(sa.suite),
        children=tuple(child.sa for child in children),
        leaving=frozenset(child.sa.spi_in for child in children if child.deleting or child.doomed),
        closing=closing(sa),
    )


# ---- from bytes


def restore(context: Context, states: Iterable[bytes], now: float) -> None:
    """Fill the context's tables. Raises StateError."""
    restored = []
    for data in states:
        state = _parse(data)
        _admit(context, state)
        sa = _take_up(context, state, now)
        if sa is not None:
            restored.append((sa, state))
    for sa, state in restored:
        _relate(sa, state.relations)
    for sa, _ in restored:
        _go_on(sa, now)
    for siblings in context.by_tunnel.values():
        siblings.sort(key=lambda sa: sa.handle or 0)


def _parse(data: bytes) -> IkeSaState:
    if data[:1] != bytes((VERSION,)):
        raise StateError(f"the state of an IKE_SA is not whole, or of another version than {VERSION}")
    try:
        state = _decode(memoryview(data)[1:])
    except ValueError:  # msgspec's errors are such, too; its text could quote what is stored
        raise StateError("the state of an IKE_SA does not parse") from None
    flaw = _flaw(state)
    if flaw is not None:
        raise StateError(f"the state of the IKE_SA {state.local_spi.hex()} makes no sense: {flaw}")
    return state


def _flaw(state: IkeSaState) -> str | None:
    """What could not be, or None. What this lets pass, the engine can work with."""
    kind, exchange = state.state, state.current
    outstanding = _OWN.get(type(exchange))
    checks = {
        "a state that is never stored": kind in _STORED,
        "addresses": _addressed(state),
        "SPIs": state.local_spi != NO_SPI and (state.spi_r == NO_SPI) == (kind is State.INIT_SENT),
        "epochs": 0 <= state.born <= state.epoch,
        "keys": (state.keys is None) == (state.suite is None) == (kind is State.INIT_SENT),
        "a handshake": (state.handshake is None) != (kind in _HANDSHAKE),
        "a role": state.initiator == (kind is not State.HALF_OPEN) or kind not in _HANDSHAKE,
        "an exchange": outstanding is kind if outstanding or kind in _OWN.values() else True,
        "a request": (exchange is None) == (state.sender.datagram is None),
        "a queue": not any(isinstance(waiting, DialState | AuthenticateState) for waiting in state.queue),
        "message IDs": 0 <= state.sender.id <= LAST_ID + 1 and 0 <= state.receiver.expected <= LAST_ID + 1,
        "a response": state.receiver.response is None or state.receiver.expected > 0,
        "times": all(
            math.isfinite(time) for time in (state.last_heard, state.rekey_at or 0.0, state.dies_at or 0.0)
        ),
        "CHILD_SAs": kind in _NAMED or not (state.children or state.handle is not None),
    }
    return next((name for name, right in checks.items() if not right), None)


def _addressed(state: IkeSaState) -> bool:
    path = state.path
    try:
        for address in (path.local, path.remote, state.origin):
            ipaddress.ip_address(address)
    except ValueError:
        return False
    return 0 < path.local_port < 1 << 16 and 0 < path.remote_port < 1 << 16


def _admit(context: Context, state: IkeSaState) -> None:
    """No IV and no name twice."""
    if state.epoch >= context.epoch:
        raise StateError(
            f"the state of the IKE_SA {state.local_spi.hex()} was stored under epoch {state.epoch}; "
            f"this gateway runs under {context.epoch}, which must be higher"
        )
    children = [child.sa.spi_in for child in state.children]
    if (
        state.local_spi in context.by_spi
        or state.local_spi in context.changed
        or state.handle in context.by_handle
        or (state.request_key is not None and state.request_key in context.by_request)
        or len(set(children)) < len(children)
        or not context.by_child.keys().isdisjoint(children)
    ):
        raise StateError(f"the state of the IKE_SA {state.local_spi.hex()} names what another one names, too")


def _take_up(context: Context, state: IkeSaState, now: float) -> IkeSa | None:
    """The IKE_SA, if it goes on."""
    suite: IkeProposal | None = None
    try:
        if state.suite is not None:
            suite = parse_ike(state.suite, context.registry)
    except ValueError as fault:
        _forget(context, state, str(fault))
        return None
    if context.epoch - state.born >= EPOCHS:
        _forget(context, state, WORN)
        return None
    sa = _bare(context, state, suite, now)
    try:
        _furnish(sa, state)
    except ValueError as fault:
        _give_up(sa, state, str(fault), now)
        return None
    return sa


def _relate(sa: IkeSa, relations: Relations) -> None:
    by_spi = sa.context.by_spi
    if relations.rival is not None and (rival := by_spi.get(relations.rival[0])) is not None:
        sa.rival = Rival(rival, relations.rival[1])
    sa.contests = by_spi.get(relations.contests or b"")
    sa.heir = by_spi.get(relations.heir or b"")
    sa.ancestor = by_spi.get(relations.ancestor or b"")
    seen, heir = {sa}, sa.heir
    while heir is not None:
        if heir in seen:
            raise StateError(f"the IKE_SA {sa.local_spi.hex()} is said to be its own heir")
        seen.add(heir)
        heir = heir.heir


def _go_on(sa: IkeSa, now: float) -> None:
    if sa.context.epoch - sa.born == EPOCHS - 1 and sa.state is State.ESTABLISHED and not closing(sa):
        sa.leave(WORN, now)
    elif sa.queue and sa.current is None:
        sa.pump(now)


def _forget(context: Context, state: IkeSaState, reason: str) -> None:
    """Nothing can be said to the peer any more."""
    context.changed[state.local_spi] = None
    _report(context, state, reason)


def _report(context: Context, state: IkeSaState, reason: str) -> None:
    """Tell the driver of the end of what it knew."""
    if state.handle is not None:
        spis = tuple(child.sa.spi_in for child in state.children)
        context.emit(IkeClosed(state.handle, state.tunnel, reason, spis))
    if isinstance(state.current, DialState | AuthenticateState) and state.current.token is not None:
        context.emit(ExchangeFailed(state.current.token, state.tunnel, None, reason))


def _bare(context: Context, state: IkeSaState, suite: IkeProposal | None, now: float) -> IkeSa:
    """The IKE_SA without what the driver knows of it, and without exchanges."""
    sa = IkeSa(context, state.path, state.spi_i, state.spi_r, initiator=state.initiator)
    if suite is not None and state.keys is not None:
        try:
            sa.secure(suite, state.keys)
        except ValueError:
            raise StateError(f"the keys of the IKE_SA {sa.local_spi.hex()} do not fit its suite") from None
    sa.state, sa.born, sa.origin, sa.name = state.state, state.born, state.origin, state.tunnel
    sa.peer_natted, sa.handshake = state.peer_natted, state.handshake
    sa.forced, sa.encapsulated = state.forced, state.encapsulated
    sa.sender = SendWindow.restore(state.sender, context.settings, now)
    sa.receiver = ReceiveWindow.restore(state.receiver)
    sa.request_key = state.request_key
    if sa.request_key is not None:
        context.by_request[sa.request_key] = sa
    if sa.state in UNPROVEN:
        context.half_open.add(sa.origin)
    if sa.state in _EXPIRING:
        settings = context.settings
        sa.expires = now + (settings.patience if sa.state is State.REPLACED else settings.half_open_timeout)
    sa.last_heard = state.last_heard - context.wall
    if sa.state is State.ESTABLISHED:
        sa.last_heard = _heard(sa, now)
    sa.failures = state.failures
    return sa


def _heard(sa: IkeSa, now: float) -> float:
    """After a long time without us all peers are due for a sign of life: spread the questions."""
    liveness = sa.context.settings.liveness
    if sa.last_heard + liveness > now:
        return min(sa.last_heard, now)
    return now - liveness * sa.local_spi[0] / 256


def _furnish(sa: IkeSa, state: IkeSaState) -> None:
    """The rest. Raises ValueError, and has done nothing, when the IKE_SA cannot go on as it was."""
    context = sa.context
    tunnel = context.policies.get(state.tunnel)
    if tunnel is not None:
        sa.tunnel = tunnel
    elif state.state in (State.INIT_SENT, State.AUTH_SENT, State.ESTABLISHED, State.REPLACED):
        raise ValueError("its tunnel is no longer configured")
    restored = {child.sa.spi_in: child.restore(context.registry) for child in state.children}
    for stored in state.children:
        stored.link(restored[stored.sa.spi_in], restored)
    sa.children = restored
    try:
        current = state.current.restore(sa) if state.current else None
        queue = [waiting.restore(sa) for waiting in state.queue]
    except ValueError:
        sa.children = {}
        raise
    sa.current = current
    sa.queue.extend(queue)
    sa.rekey_at = None if state.rekey_at is None else state.rekey_at - context.wall
    sa.dies_at = None if state.dies_at is None else state.dies_at - context.wall
    context.by_child.update(dict.fromkeys(restored, sa))
    sa.handle = state.handle
    if sa.handle is not None:
        context.by_handle[sa.handle] = sa
        context.by_tunnel.setdefault(sa.name, []).append(sa)


def _give_up(sa: IkeSa, state: IkeSaState, reason: str, now: float) -> None:
    """Report the end at once; what is left is to tell the peer. A request that was outstanding counts as
    answered: if it was not, the peer takes no DELETE and has to find out by itself.
    """
    _report(sa.context, state, reason)
    if sa.sender.outstanding:
        sa.sender.finish()
    if sa.state is State.INIT_SENT:
        sa.close(reason)
    elif sa.state in (State.ESTABLISHED, State.REPLACED):
        sa.start(DeleteIke(reason), now)
    else:
        sa.abort(reason)
