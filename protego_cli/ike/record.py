"""The record of a negotiation: what each side wanted, and what came of it. For people; it holds no secret.

A `Story` is what has been learned of the negotiation under way; `tell` makes it a `Negotiation`, which goes
out as an event, whether it succeeded or failed. Of what a peer sent only so much is kept as a person
would read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from protego_cli.crypto.algorithms import Registry, TransformType
from protego_cli.crypto.proposal import EspProposal, IkeProposal
from protego_cli.ike.identities import Identity
from protego_cli.ike.negotiation import name_of, without_ke
from protego_cli.wire.payloads import ExchangeType
from protego_cli.wire.proposals import Proposal, Transform
from protego_cli.wire.selectors import TrafficSelector

if TYPE_CHECKING:
    from protego_cli.ike.events import Path
    from protego_cli.ike.policies import Tunnel
    from protego_cli.ike.sa import IkeSa

MAX_PROPOSALS = 8
MAX_TRANSFORMS = 32  # in each of them
MAX_SELECTORS = 16
MAX_IDENTITY = 128  # characters
FURTHER = "FURTHER"  # the type of transforms of types that we do not know: no proposal with one will do
SUITES = 1024  # of ours whose names are remembered
MAX_TUNNELS = 8  # that are named as the ones that were looked at

Offer = tuple[tuple[str, str], ...]
"""One proposal: (type of transform, its keyword or name) in order, as ("ENCR", "aes256gcm16")."""


@dataclass(frozen=True)
class Bid:
    """The proposals for an SA."""

    ours: tuple[Offer, ...]
    theirs: tuple[Offer, ...] | None  # as initiator: what they chose; None: not heard
    chosen: Offer | None


@dataclass(frozen=True)
class Identities:
    """Who is who. As responder `ours` and `expected` are of the tunnel that was found, if there is one."""

    ours: str | None
    expected: str | None  # who the peer should be
    claimed: str | None  # who it says it is
    wanted: str | None  # who it wants us to be, if it says so
    known: tuple[str, ...] = ()  # "remote_id to local_id" of the tunnels it might have meant
    proven: bool | None = None  # by AUTH; None: it did not come to that


@dataclass(frozen=True)
class Selectors:
    """Traffic selectors, all of them seen from here: `local` is behind us, `remote` behind the peer."""

    our_local: tuple[TrafficSelector, ...]
    our_remote: tuple[TrafficSelector, ...]
    their_local: tuple[TrafficSelector, ...] | None  # None: not heard
    their_remote: tuple[TrafficSelector, ...] | None
    local: tuple[TrafficSelector, ...] = ()  # agreed
    remote: tuple[TrafficSelector, ...] = ()


@dataclass(frozen=True)
class Failure:
    detail: str
    notify: int | None  # None: nothing was said, or heard
    by_peer: bool  # it is the peer that refused, or kept silent
    sent: int = 0  # how often an unanswered request was sent; 0 where there was an answer


@dataclass(frozen=True)
class Negotiation:
    tunnel: str | None  # None: what the peer wants is no tunnel's
    exchange: str  # how far it came: "IKE_SA_INIT", "IKE_AUTH", "CREATE_CHILD_SA"
    initiator: bool  # we began
    path: Path
    nat: bool  # the peer is behind one
    authentic: bool  # the peer has proven itself; else anybody may have sent what is theirs
    ike: Bid | None
    identities: Identities | None
    esp: Bid | None
    selectors: Selectors | None
    failure: Failure | None  # None: it succeeded


@dataclass
class Story:
    """Of the negotiation under way."""

    ike: Bid | None = None
    identities: Identities | None = None
    esp: Bid | None = None
    selectors: Selectors | None = None


def tell(
    sa: IkeSa, story: Story, exchange: ExchangeType, *, initiator: bool, failure: Failure | None = None
) -> Negotiation:
    """The story's end."""
    return Negotiation(
        tunnel=sa.name or sa.context.policies.alone_at(sa.path.remote),
        exchange=exchange.name,
        initiator=initiator,
        path=sa.path,
        nat=sa.peer_natted,
        authentic=sa.handle is not None or bool(story.identities and story.identities.proven),
        ike=story.ike,
        identities=story.identities,
        esp=story.esp,
        selectors=story.selectors,
        failure=failure,
    )


def unanswered(tunnel: str | None, path: Path, ike: Bid | None, failure: Failure) -> Negotiation:
    """Of an IKE_SA_INIT that leaves nothing behind."""
    return Negotiation(
        tunnel, ExchangeType.IKE_SA_INIT.name, False, path, False, False, ike, None, None, None, failure
    )


def bid(
    registry: Registry,
    suites: Iterable[IkeProposal | EspProposal],
    offered: Sequence[Proposal] | None = None,
    chosen: IkeProposal | EspProposal | None = None,
    *,
    ignore_groups: bool = False,
) -> Bid:
    ours = tuple(_ours(suite.transforms, registry) for suite in suites)
    theirs = None
    if offered is not None:
        listed = (proposal.transforms for proposal in offered[:MAX_PROPOSALS])
        theirs = tuple(_offer(without_ke(t) if ignore_groups else t, registry) for t in listed)
    return Bid(ours, theirs, None if chosen is None else _ours(chosen.transforms, registry))


def _offer(found: tuple[Transform, ...], registry: Registry) -> Offer:
    return tuple(
        (
            TransformType(transform.type).name if transform.type in _TYPES else FURTHER,
            name_of(transform, registry),
        )
        for transform in found[:MAX_TRANSFORMS]
    )


_ours = lru_cache(SUITES)(_offer)
_TYPES = frozenset(TransformType)


def introduced(tunnels: Sequence[Tunnel], claimed: Identity, wanted: Identity | None) -> Identities:
    """What a peer says of itself, and the tunnels here that it may mean."""
    one = tunnels[0] if len(tunnels) == 1 else None
    return Identities(
        ours=str(one.local_id) if one else None,
        expected=str(one.remote_id) if one else None,
        claimed=str(claimed)[:MAX_IDENTITY],
        wanted=None if wanted is None else str(wanted)[:MAX_IDENTITY],
        known=tuple(f"{tunnel.remote_id} to {tunnel.local_id}" for tunnel in tunnels[:MAX_TUNNELS]),
    )


def few(selectors: Sequence[TrafficSelector]) -> tuple[TrafficSelector, ...]:
    return tuple(selectors[:MAX_SELECTORS])
